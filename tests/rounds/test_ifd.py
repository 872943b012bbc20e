"""Instruction-Following Difficulty: against rows of text that are tokenised and forwarded here, one at a time."""

from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miwv_trainer import MIWVConfig, Pool, pool_from_rows, read_rounds, select_again
from miwv_trainer.data.build import pool_from_tokenized, tokenize
from miwv_trainer.report.explanations import explain_selection
from miwv_trainer.scoring.rows import count_response_row_tokens, make_response_row
from miwv_trainer.storage.store import Store
from tests.helpers.interrupted import Killed, counted
from tests.helpers.selecting import select_highest
from tests.helpers.tiny import instruction_rows, tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.tiny_rounds import finished_round

COUNT = 24
SYSTEM = "<|im_start|>system\nYou help.<|im_end|>\n"


def response_loss(model: Any, tokenizer: Any, before: str, response: str) -> float:
    """Mean loss of the response's tokens behind a text, by the model's own loss."""
    start = tokenizer(before, add_special_tokens=False)["input_ids"]
    ids = start + tokenizer(response, add_special_tokens=False)["input_ids"]
    labels = torch.tensor([[-100] * len(start) + ids[len(start) :]])
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids]), labels=labels).loss)


def losses_by_hand(model: Any, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Behind its prompt, and alone behind system turn and generation prompt."""
    behind, alone = [], []
    for row in instruction_rows(COUNT):
        asked = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
        opening, response = "<|im_start|>assistant\n", f"{row['output']}<|im_end|>\n"
        prompt = f"{SYSTEM}<|im_start|>user\n{asked}<|im_end|>\n{opening}"
        behind.append(response_loss(model, tokenizer, prompt, response))
        alone.append(response_loss(model, tokenizer, SYSTEM + opening, response))
    return np.asarray(behind), np.asarray(alone)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return pool_from_rows(tiny_dataset(COUNT), tiny_tokenizer())


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"tokens_per_batch": 60},
        {"extra_losses": "both", "layout": "tree"},
        {"extra_losses": "both", "layout": "padded"},
    ],
    ids=["one pass", "small batches", "tree", "padded"],
)
def test_ifd_is_that_of_rows_forwarded_alone(values: dict[str, Any], pool: Pool, tmp_path: Path) -> None:
    model = tiny_model()
    behind, alone = losses_by_hand(model, tiny_tokenizer())
    config = MIWVConfig(score="ifd", fraction=0.25, embedder="tfidf", **values)
    current = finished_round(model, pool, Store(tmp_path), config)
    np.testing.assert_allclose(current.column("zero_shot_loss"), behind, atol=1e-5)
    np.testing.assert_allclose(current.column("response_loss"), alone, atol=1e-5)
    ifd = np.exp(behind - alone)
    np.testing.assert_allclose(current.column("score"), ifd, atol=1e-5)
    assert current.selection.tolist() == select_highest(np.where(ifd > 1, np.nan, ifd), 6).tolist()
    assert 0 < (ifd > 1).sum() < COUNT - 6
    assert current.summary["left_out"] == {"IFD above 1": int((ifd > 1).sum())}
    assert np.isnan(current.column("one_shot_loss")).all() == (values.get("extra_losses") is None)
    if values.get("extra_losses") is None:
        assert (current.column("exemplar") == -1).all() and current.summary["layout"] == "zero_shot"
    explained = explain_selection(current)
    assert explained.phrases[explained.codes[int(ifd.argmax())]] == "left out by IFD above 1"
    other = read_rounds(tmp_path)[0]
    assert select_again(other, config).selection.tolist() == current.selection.tolist()


def test_other_scores_measure_no_responses_alone(pool: Pool, tmp_path: Path) -> None:
    current = finished_round(tiny_model(), pool, Store(tmp_path), MIWVConfig(score="zero_shot_loss"))
    assert current.scores["response_loss"].null_count == COUNT
    with pytest.raises(ValueError, match="have no losses of responses alone, which `score='ifd'` needs"):
        select_again(current, MIWVConfig(score="ifd"))


def test_guards_are_drawn_on_what_the_bound_leaves(pool: Pool, tmp_path: Path) -> None:
    current = finished_round(tiny_model(), pool, Store(tmp_path), MIWVConfig(score="ifd", loss_band=[0.0, 0.5]))
    is_below = current.column("score") <= 1
    losses = current.column("zero_shot_loss")
    low_half = is_below & (losses <= np.sort(losses[is_below])[(is_below.sum() - 1) // 2])
    assert current.summary["left_out"] == {
        "IFD above 1": int((~is_below).sum()),
        "loss_band=[0.0, 0.5]": int((is_below & ~low_half).sum()),
    }


def test_a_killed_round_goes_on_with_the_rows_that_it_had(pool: Pool, tmp_path: Path) -> None:
    config = MIWVConfig(score="ifd", tokens_per_batch=128)
    whole = finished_round(tiny_model(), pool, Store(tmp_path / "whole"), config)
    model = tiny_model()
    counted(model, most=16)
    with pytest.raises(Killed):
        finished_round(model, pool, Store(tmp_path / "killed"), config)
    assert list(Store(tmp_path / "killed").journal_folder(0).glob("rank-*.jsonl"))
    again = finished_round(tiny_model(), pool, Store(tmp_path / "killed"), config)
    assert again.scores.equals(whole.scores)
    assert again.summary["tokens_forwarded"] == whole.summary["tokens_forwarded"]


def test_under_bfloat16_the_selection_is_float32s(pool: Pool, tmp_path: Path) -> None:
    config = MIWVConfig(score="ifd", fraction=0.25)
    exact = tiny_model(seed=3).to(torch.bfloat16).float()
    refined = finished_round(tiny_model(seed=3).to(torch.bfloat16), pool, Store(tmp_path / "low"), config)
    expected = finished_round(exact, pool, Store(tmp_path / "exact"), config)
    assert refined.summary["refined_samples"] > 0
    assert refined.selection.tolist() == expected.selection.tolist()


def opening_of(pool: Pool, tokenizer: Any) -> str:
    return "" if pool.opening is None else tokenizer.decode(pool.opening)


def test_the_opening_is_the_generation_prompt_or_alpacas(pool: Pool) -> None:
    tokenizer = tiny_tokenizer()
    assert opening_of(pool, tokenizer) == "<|im_start|>assistant\n"
    tokenized = pool_from_tokenized(tokenize(tiny_dataset(COUNT), tokenizer), tokenizer)
    assert opening_of(tokenized, tokenizer) == "<|im_start|>assistant\n"
    alpaca = tiny_tokenizer(chat_template=None)
    assert opening_of(pool_from_rows(tiny_dataset(COUNT), alpaca), alpaca) == "### Response:"
    plain = [{"prompt": f"{row['instruction']} is ", "completion": row["output"]} for row in instruction_rows(COUNT)]
    assert pool_from_rows(plain, tokenizer).opening is None
    refusing = tiny_tokenizer(chat_template="{{ raise_exception('no') }}")
    assert pool_from_tokenized(tokenize(tiny_dataset(COUNT), tokenizer), refusing).opening is None


def test_each_turn_of_a_conversation_has_its_opening() -> None:
    tokenizer = tiny_tokenizer()
    turns = [("user", "Explain apples"), ("assistant", "rivers"), ("user", "Define bread"), ("assistant", "taxes")]
    messages = [{"messages": [{"role": role, "content": words} for role, words in turns]}]
    pool = pool_from_rows([*messages, *instruction_rows(2)][:1] * 2, tokenizer)
    row = make_response_row(pool, 0)
    assert len(row.ids) == count_response_row_tokens(pool)[0]
    text = tokenizer.decode(row.ids)
    assert text.replace("\n", "") == (
        f"{SYSTEM}<|im_start|>assistant\nrivers<|im_end|>\n<|im_start|>assistant\ntaxes<|im_end|>\n".replace("\n", "")
    )
    scored = tokenizer.decode(row.ids[row.targets])
    assert "assistant" not in scored and scored.count("<|im_end|>") == 2


def test_without_anything_before_it_the_first_token_is_not_scored() -> None:
    plain = [{"prompt": f"{row['instruction']} is ", "completion": row["output"]} for row in instruction_rows(COUNT)]
    pool = pool_from_rows(plain, tiny_tokenizer(eos_token="<|im_end|>"))
    assert not len(pool.preamble) and pool.opening is None
    for sample in range(COUNT):
        row = make_response_row(pool, sample)
        assert row.targets.tolist() == list(range(1, len(row.ids)))
        assert len(row.ids) == pool.response_tokens[sample] == count_response_row_tokens(pool)[sample]


def test_the_ratio_is_of_perplexities(pool: Pool, tmp_path: Path) -> None:
    current = finished_round(tiny_model(), pool, Store(tmp_path), MIWVConfig(score="ifd"))
    behind, alone = current.column("zero_shot_loss"), current.column("response_loss")
    for score, first, second in zip(current.column("score"), behind.tolist(), alone.tolist(), strict=True):
        assert score == pytest.approx(exp(first) / exp(second), rel=1e-6)
