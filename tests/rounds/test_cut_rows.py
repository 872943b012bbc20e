"""Scores of whole rows are refused for a run whose samples are cut, although its columns of text are whole."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import trl
from transformers import DataCollatorForSeq2Seq, Trainer

from miwv_trainer import MIWVConfig, attach, pool_from_rows, pool_from_tokenized, score_and_select, tokenize
from miwv_trainer.storage.stored_round import StoredRound
from tests.helpers.chats import skip_if_masked_wrongly, turn
from tests.helpers.tiny import instruction_rows, tiny_config, tiny_model, tiny_tokenizer
from tests.helpers.trainers import arguments

COUNT, LONGEST = 24, 48
VALUES: dict[str, Any] = {"fraction": 0.25, "embedder": "tfidf"}
PAIRS = [{"prompt": row["instruction"] + "\n", "completion": row["output"]} for row in instruction_rows(COUNT)]
CHATS = [{"messages": [turn("user", row["prompt"]), turn("assistant", row["completion"])]} for row in PAIRS]
CUT = "names scores of whole rows in .*, but {} of this run's 24 samples are cut: .* The first is sample {}. Raise .*"


def score(rows: list[dict[str, Any]], folder: Path) -> StoredRound:
    """By a model with another tokenizer."""
    tokenizer = tiny_tokenizer(special_tokens=["<|im_start|>", "<|im_end|>", "<|more|>"])
    model = tiny_model(tiny_config(num_hidden_layers=1), seed=5)
    return score_and_select(model, pool_from_rows(datasets.Dataset.from_list(rows), tokenizer), config(), folder)


def config(source: StoredRound | None = None) -> MIWVConfig:
    if source is None:
        return MIWVConfig(**VALUES)
    return MIWVConfig(**VALUES, scores_from=str(source.folder.parent.parent), match="rows")


def sft_trainer(rows: list[dict[str, Any]], folder: Path, longest: int | None) -> Trainer:
    skip_if_masked_wrongly(rows)
    values = {"output_dir": str(folder), "use_cpu": True, "report_to": "none", "bf16": False, "save_strategy": "no"}
    return trl.SFTTrainer(
        model=tiny_model(),
        args=trl.SFTConfig(**values, max_steps=1, max_length=longest),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )


def plain_trainer(dataset: datasets.Dataset, folder: Path) -> Trainer:
    return Trainer(
        model=tiny_model(),
        args=arguments(folder, max_steps=1),
        train_dataset=dataset,
        data_collator=DataCollatorForSeq2Seq(tiny_tokenizer()),
        processing_class=tiny_tokenizer(),
    )


def cut(dataset: datasets.Dataset, keep: slice) -> datasets.Dataset:
    return dataset.map(lambda row: {name: row[name][keep] for name in ("input_ids", "labels", "attention_mask")})


def expect_cut(dataset: datasets.Dataset, longest: int, marks: int) -> str:
    """The words of the refusal. The last `marks` tokens of a sample say nothing."""
    indices = [place for place, ids in enumerate(dataset["input_ids"]) if len(ids) - marks > longest]
    assert 0 < len(indices) < COUNT
    return CUT.format(len(indices), indices[0])


@pytest.mark.parametrize(("rows", "longest", "marks"), [(PAIRS, 16, 1), (CHATS, LONGEST, 2)], ids=["pairs", "messages"])
def test_sft_trainer_with_a_longest_length(
    rows: list[dict[str, Any]], longest: int, marks: int, tmp_path: Path
) -> None:
    source = score(rows, tmp_path / "source")
    whole = sft_trainer(rows, tmp_path / "whole", None)
    callback = attach(whole, config(source))
    whole.train()
    assert callback.rounds[0].selection.tolist() == source.selection.tolist()
    short = sft_trainer(rows, tmp_path / "short", longest)
    assert set(rows[0]) <= set(short.train_dataset.column_names)
    attach(short, config(source))
    with pytest.raises(ValueError, match=expect_cut(whole.train_dataset, longest, marks)):
        short.train()
    assert not list((tmp_path / "short").glob("miwv/round*"))


@pytest.mark.parametrize("rows", [PAIRS, CHATS], ids=["pairs", "messages"])
def test_a_plain_trainer_with_cut_token_ids(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    source, marks = score(rows, tmp_path / "source"), 1 if rows is PAIRS else 2
    whole = tokenize(datasets.Dataset.from_list(rows), tiny_tokenizer())
    longest = sorted(map(len, whole["input_ids"]))[-4] - 3
    trainer = plain_trainer(cut(whole, slice(longest)), tmp_path / "right")
    attach(trainer, config(source))
    with pytest.raises(ValueError, match=expect_cut(whole, longest, marks)):
        trainer.train()
    # Without the columns, a sample is what its tokens say.
    tokens_only = cut(whole, slice(longest)).select_columns(["input_ids", "labels", "attention_mask"])
    pool = pool_from_tokenized(tokens_only, tiny_tokenizer())
    with pytest.raises(ValueError, match="names scores of other rows"):
        score_and_select(tiny_model(), pool, config(source), tmp_path / "tokens")


def test_questions_that_lack_their_beginning(tmp_path: Path) -> None:
    source = score(PAIRS, tmp_path / "source")
    whole = tokenize(datasets.Dataset.from_list(PAIRS), tiny_tokenizer())
    trainer = plain_trainer(cut(whole, slice(2, None)), tmp_path / "left")
    attach(trainer, config(source))
    with pytest.raises(ValueError, match=CUT.format(COUNT, 0)):
        trainer.train()


def test_cut_samples_are_scored_where_the_other_run_cut_them_alike(tmp_path: Path) -> None:
    """The losses are then those of the same tokens."""
    dataset = cut(tokenize(datasets.Dataset.from_list(PAIRS), tiny_tokenizer()), slice(16))
    pool = pool_from_tokenized(dataset, tiny_tokenizer())
    source = score_and_select(tiny_model(seed=5), pool, config(), tmp_path / "source")
    found = score_and_select(tiny_model(), pool, config(source), tmp_path / "found")
    assert found.selection.tolist() == source.selection.tolist()
