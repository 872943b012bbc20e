"""Scores of a model with another tokenizer are taken by the texts of the rows, and refused where the texts differ."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from miwv_trainer import (
    Measured,
    MIWVConfig,
    attach,
    pool_from_rows,
    pool_from_tokenized,
    read_rounds,
    score_and_select,
    select_again,
    tokenize,
)
from miwv_trainer.cli.main import main
from miwv_trainer.data.pool import Pool
from miwv_trainer.storage.stored_round import StoredRound
from tests.helpers.tiny import instruction_rows, tiny_config, tiny_model, tiny_tokenizer
from tests.helpers.trainers import by_epoch, noting_trainer

COUNT = 32
VALUES: dict[str, Any] = {"fraction": 0.25, "embedder": "tfidf"}
SHUFFLED = np.random.default_rng(1).permutation(COUNT)


def other_tokenizer() -> Any:
    """No chat template, so that samples are rendered by Alpaca's; other words and other special tokens."""
    return tiny_tokenizer(chat_template=None, special_tokens=["<s>", "</s>"], eos_token="</s>", bos_token="<s>")


def small_model() -> Any:
    return tiny_model(tiny_config(num_hidden_layers=1, hidden_size=16, intermediate_size=32), seed=5)


def dataset(rows: list[dict[str, Any]] | None = None, order: np.ndarray | None = None) -> datasets.Dataset:
    found = datasets.Dataset.from_list(rows or instruction_rows(COUNT))
    return found if order is None else found.select(order)


def by_rows(folder: str, **values: Any) -> MIWVConfig:
    return MIWVConfig(**{**VALUES, "scores_from": folder, "match": "rows", **values})


def refuse_scoring(module: Any, args: Any) -> None:
    assert module.training, "a scoring forward"


def output_of(scored: StoredRound) -> str:
    return str(scored.folder.parent.parent)


def taken(pool: Pool, folder: Path, config: MIWVConfig) -> StoredRound:
    """By a model that would fail if it were asked."""
    model = tiny_model()
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was forwarded"))
    return score_and_select(model, pool, config, folder)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> StoredRound:
    """By the smaller model and its own tokenizer, from the command line."""
    folder = tmp_path_factory.mktemp("small")
    small_model().save_pretrained(folder / "model")
    other_tokenizer().save_pretrained(folder / "model")
    dataset().to_json(folder / "pool.jsonl")
    typed = (
        f"score --model {folder / 'model'} --dataset {folder / 'pool.jsonl'} --output {folder / 'out'} --fraction 0.25"
    )
    assert main([*typed.split(), "--embedder", "tfidf"]) == 0
    return read_rounds(folder / "out")[0]


def test_a_trainer_with_another_tokenizer_trains_on_the_smaller_models_selection(
    tmp_path: Path, scored: StoredRound, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = noting_trainer(tmp_path, num_train_epochs=1)
    with pytest.raises(ValueError, match='names scores of another pool.*; with `match="rows"`, the same texts suffice'):
        attach(trainer, MIWVConfig(**VALUES, scores_from=output_of(scored)))
        trainer.train()
    trainer = noting_trainer(tmp_path, num_train_epochs=1)
    callback = attach(trainer, by_rows(output_of(scored)))
    trainer.model.register_forward_pre_hook(refuse_scoring)
    trainer.train()
    (found,) = callback.rounds
    for name in ("exemplar", "similarity", "zero_shot_loss", "one_shot_loss", "miwv", "selected"):
        np.testing.assert_array_equal(found.column(name), scored.column(name))
    assert found.selection.tolist() == np.sort(np.argsort(-scored.column("miwv"), kind="stable")[:8]).tolist()
    assert set(by_epoch()[0]) == set(found.selection.tolist())
    origin = found.summary["scores_from"]
    assert origin["match"] == "rows" and origin["folder"] == output_of(scored)

    # What the round knows of its samples is this run's own, so that they are found in the file by their content.
    assert (found.column("response_tokens") != scored.column("response_tokens")).any()
    assert (found.column("ids_hash") != scored.column("ids_hash")).all()
    assert (found.column("words_hash") == scored.column("words_hash")).all()
    reversed_rows = tmp_path / "reversed.jsonl"
    dataset(order=np.arange(COUNT)[::-1]).to_json(reversed_rows)
    capsys.readouterr()
    typed = f"select --scores {tmp_path} --fraction 0.25 --dataset {reversed_rows} --to {tmp_path / 'chosen.jsonl'}"
    assert main(typed.split()) == 0
    chosen = [json.loads(line)["instruction"] for line in (tmp_path / "chosen.jsonl").read_text().splitlines()]
    assert set(chosen) == {instruction_rows(COUNT)[index]["instruction"] for index in found.selection}
    assert main(["report", "--run", str(tmp_path)]) == 0
    assert "matched by the texts of the rows" in capsys.readouterr().out


@pytest.mark.parametrize("knows_columns", [True, False], ids=["columns", "tokens"])
def test_rows_in_another_order_bring_losses_exemplars_and_embeddings_along(
    knows_columns: bool, tmp_path: Path, scored: StoredRound
) -> None:
    tokenized = tokenize(dataset(order=SHUFFLED), tiny_tokenizer())
    if not knows_columns:
        tokenized = tokenized.select_columns(["input_ids", "attention_mask", "labels"])
    pool = pool_from_tokenized(tokenized, tiny_tokenizer())
    assert pool.hashes is not None and pool.hashes.from_columns == knows_columns
    config = by_rows(output_of(scored), diversity="mmr")
    found = taken(pool, tmp_path, config)
    for name in ("similarity", "zero_shot_loss", "one_shot_loss"):
        np.testing.assert_array_equal(found.column(name), scored.column(name)[SHUFFLED])
    np.testing.assert_array_equal(SHUFFLED[found.column("exemplar")], scored.column("exemplar")[SHUFFLED])
    expected = select_again(scored, MIWVConfig(**VALUES, diversity="mmr")).selection
    assert sorted(SHUFFLED[found.selection]) == sorted(expected)
    assert sorted(expected) != scored.selection.tolist()
    again = taken(pool, tmp_path, config)
    assert again.was_there


def test_further_exemplars_are_renumbered_too(tmp_path: Path) -> None:
    values = {"score": "influence", "exemplars_per_sample": 3}
    source = score_and_select(
        small_model(), pool_from_rows(dataset(), other_tokenizer()), MIWVConfig(**VALUES, **values), tmp_path / "small"
    )
    pool = pool_from_rows(dataset(order=SHUFFLED), tiny_tokenizer())
    found = taken(pool, tmp_path / "found", by_rows(output_of(source), **values))
    np.testing.assert_array_equal(SHUFFLED[found.ranked("exemplar")], source.ranked("exemplar")[SHUFFLED])
    np.testing.assert_array_equal(found.ranked("one_shot_loss"), source.ranked("one_shot_loss")[SHUFFLED])
    np.testing.assert_array_equal(found.column("score"), source.column("score")[SHUFFLED])


def changed(place: int, **values: str) -> list[dict[str, Any]]:
    rows = instruction_rows(COUNT)
    rows[place] = {**rows[place], **values}
    return rows


EXTRA = {"instruction": "Sing a song", "input": "", "output": "La la la"}
OTHER_ROWS = {
    "an answer": (changed(5, output="apples, rivers and no more"), "1 .the first is sample 5, hash [0-9a-f]{16}."),
    "a question": (changed(0, instruction="Explain pears 0"), "1 .the first is sample 0, hash [0-9a-f]{16}."),
    "an input": (changed(3, input="case three"), "1 .the first is sample 3, hash [0-9a-f]{16}."),
    "a row more": ([EXTRA, *instruction_rows(COUNT)], "this run's are 33.*, 1 .the first is sample 0, hash"),
    "a row twice": ([*instruction_rows(COUNT), instruction_rows(COUNT)[4]], "this run's are 33.*, 1 "),
    "a row less": (instruction_rows(COUNT)[:-1], "this run's are 31.*, 0 of this run's samples are not there, and 1 "),
}


@pytest.mark.parametrize("knows_columns", [True, False], ids=["columns", "tokens"])
@pytest.mark.parametrize("name", OTHER_ROWS)
def test_other_rows_are_refused_with_both_values(
    name: str, knows_columns: bool, tmp_path: Path, scored: StoredRound
) -> None:
    rows, words = OTHER_ROWS[name]
    tokenized = tokenize(dataset(rows), tiny_tokenizer())
    if not knows_columns:
        tokenized = tokenized.select_columns(["input_ids", "attention_mask", "labels"])
    pool = pool_from_tokenized(tokenized, tiny_tokenizer())
    by = "everything they say" if knows_columns else "their last question and its answers"
    with pytest.raises(ValueError, match=f"names scores of other rows: .* is of 32 samples, .*By {by}, .*") as error:
        taken(pool, tmp_path, by_rows(output_of(scored)))
    error.match(words)
    assert not list(tmp_path.glob("miwv/round*"))


def with_history(order: list[int]) -> datasets.Dataset:
    """Pairs of conversations that differ only before the last question."""
    rows = [
        [turn for said in (f"Topic {number % 2}", row["instruction"]) for turn in (said, row["output"])]
        for number, row in enumerate(row for row in instruction_rows(10) for _ in range(2))
    ]
    roles = ["user", "assistant", "user", "assistant"]
    messages = [[{"role": role, "content": said} for role, said in zip(roles, row, strict=True)] for row in rows]
    return datasets.Dataset.from_list([{"messages": messages[index]} for index in order])


def test_samples_that_their_texts_do_not_tell_apart_are_taken_in_order_only(tmp_path: Path) -> None:
    """Only the last answer is trained on, and a Trainer's dataset without columns tells only the last question."""
    template = tiny_tokenizer().chat_template
    other = tiny_tokenizer(chat_template=template, special_tokens=["<|im_start|>", "<|im_end|>", "<|more|>"])
    order = list(range(20))
    swapped = [1, 0, *order[2:]]

    def pool(tokenizer: Any, places: list[int]) -> Pool:
        columns = ["input_ids", "attention_mask", "labels"]
        tokenized = tokenize(with_history(places), tokenizer).select_columns(columns)
        labels = [
            [-100] * (len(each) - 6) + each[-6:] for each in tokenized["labels"]
        ]  # the last answer of each, or its end
        tokenized = tokenized.remove_columns("labels").add_column("labels", labels)
        return pool_from_tokenized(tokenized, tokenizer)

    config = MIWVConfig(**VALUES, allow_identical_exemplars=True)
    source = score_and_select(small_model(), pool(other, order), config, tmp_path / "small")
    rows = by_rows(output_of(source), allow_identical_exemplars=True)
    found = taken(pool(tiny_tokenizer(), order), tmp_path / "same", rows)
    np.testing.assert_array_equal(found.column("miwv"), source.column("miwv"))
    with pytest.raises(ValueError, match="same rows in another order, and .* cannot be told .*: samples 0 and 1 of"):
        taken(pool(tiny_tokenizer(), [*swapped[:2], *swapped[:1:-1]]), tmp_path / "swapped", rows)


def test_samples_without_known_texts_are_refused(tmp_path: Path, scored: StoredRound) -> None:
    pool = pool_from_rows(dataset(), tiny_tokenizer())
    with pytest.raises(ValueError, match="those of 32 of this run's 32 samples and of 0 of the 32 in .* are not known"):
        taken(replace(pool, hashes=None), tmp_path, by_rows(output_of(scored)))


def test_rows_are_matched_with_another_run_only() -> None:
    with pytest.raises(ValueError, match="`match` is 'rows', but .* `scores_from` names none"):
        MIWVConfig(match="rows")
    with pytest.raises(ValueError, match="`match` must be one of 'tokens', 'rows', but got 'text'"):
        MIWVConfig(match="text", scores_from="a")  # type: ignore[arg-type]


def test_the_same_tokens_are_the_same_rows(tmp_path: Path, scored: StoredRound) -> None:
    """Without hashes too: rounds of earlier versions have none."""
    pool = replace(pool_from_rows(dataset(), other_tokenizer()), hashes=None)
    found = taken(pool, tmp_path, by_rows(output_of(scored)))
    np.testing.assert_array_equal(found.column("miwv"), scored.column("miwv"))


def prefer_long(measured: Measured) -> np.ndarray:
    """A score of the user's own that counts tokens."""
    return measured.response_tokens - np.exp(-measured.zero_shot_loss)


COUNTING: dict[str, dict[str, Any]] = {
    "a guard": {"min_response_tokens": 9},
    "a budget": {"selection_budget": "tokens"},
    "bands": {"length_bands": 3},
    "a residual": {"score": "residual_miwv"},
    "a function": {"score": prefer_long, "extra_losses": "zero_shot"},
}


@pytest.mark.parametrize("name", COUNTING)
def test_tokens_are_counted_by_this_runs_tokenizer(name: str, tmp_path: Path) -> None:
    """The other one knows words in capitals, which are single letters to this run's."""
    rows = [
        {**row, "output": row["output"].upper()} if place % 2 else row
        for place, row in enumerate(instruction_rows(COUNT))
    ]
    core = ByteLevelBPETokenizer()
    core.train_from_iterator([row["output"].upper() for row in rows], vocab_size=400, show_progress=False)
    other = PreTrainedTokenizerFast(tokenizer_object=core._tokenizer, eos_token="</s>", pad_token="</s>")
    source = score_and_select(
        small_model(), pool_from_rows(dataset(rows), other), MIWVConfig(**VALUES), tmp_path / "small"
    )
    pool = pool_from_rows(dataset(rows), tiny_tokenizer())
    values = COUNTING[name]
    found = taken(pool, tmp_path / "found", by_rows(output_of(source), **values))
    again = select_again(found, MIWVConfig(**{**VALUES, **values})).selection
    assert found.selection.tolist() == np.sort(again).tolist()
    # By the tokens of the other run, it would be another selection.
    assert set(select_again(source, MIWVConfig(**{**VALUES, **values})).selection) != set(found.selection)
    np.testing.assert_array_equal(found.column("response_tokens"), pool.response_tokens)
    if name == "a guard":
        assert pool.response_tokens[found.selection].min() >= 9 and (pool.response_tokens < 9).any()
