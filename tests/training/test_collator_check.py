"""A collator that cannot make batches of the pool's samples stops the run before anything is scored."""

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    Trainer,
    default_data_collator,
)

from miwv_trainer import MIWVConfig, attach, tokenize
from miwv_trainer.training.collator_check import pick_samples
from tests.helpers.tiny import tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.trainers import arguments

CONFIG = MIWVConfig(fraction=0.25, embedder="tfidf")


def trainer_of(folder: Path, collator: Any, dataset: Any = None, **values: Any) -> Trainer:
    tokenizer = tiny_tokenizer()
    return Trainer(
        tiny_model(),
        arguments(folder, num_train_epochs=1, **values),
        train_dataset=dataset or tokenize(tiny_dataset(16), tokenizer),
        data_collator=collator,
        processing_class=tokenizer,
    )


def lack_a_column(rows: list[dict[str, Any]]) -> Any:
    return {"input_ids": [row["text_ids"] for row in rows]}


class Stacking:
    """Stacks rows of any length into one tensor, which fails for two lengths."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([torch.tensor(row[name]) for row in rows]) for name in rows[0]}


def return_nothing(rows: Any) -> None:
    """A function of one's own that forgets its `return`."""


def return_a_list(rows: list[dict[str, Any]]) -> Any:
    return [torch.tensor(row["input_ids"]) for row in rows]


def rename_the_ids(rows: list[dict[str, Any]]) -> Any:
    batch = DataCollatorForSeq2Seq(tiny_tokenizer())(rows)
    return {"tokens": batch.pop("input_ids"), **batch}


def return_lists_of_ids(rows: list[dict[str, Any]]) -> Any:
    return {name: [row[name] for row in rows] for name in rows[0]}


FAILING = {
    "default_data_collator": lambda t: default_data_collator,
    # The Trainer's own default where it is given a tokenizer.
    "DataCollatorWithPadding": lambda t: None,
    "DataCollatorForLanguageModeling": lambda t: DataCollatorForLanguageModeling(t, mlm=False),
    "DataCollatorForSeq2Seq": lambda t: DataCollatorForSeq2Seq(t, padding="max_length", max_length=8),
    "Stacking": lambda t: Stacking(),
    "lack_a_column": lambda t: lack_a_column,
    "return_nothing": lambda t: return_nothing,
    "return_a_list": lambda t: return_a_list,
    "rename_the_ids": lambda t: rename_the_ids,
    "return_lists_of_ids": lambda t: return_lists_of_ids,
}


@pytest.mark.parametrize("name", FAILING)
def test_a_collator_that_fails_is_told_before_scoring(name: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, FAILING[name](tiny_tokenizer()))
    if name == "DataCollatorWithPadding":
        assert isinstance(trainer.data_collator, DataCollatorWithPadding)
    callback = attach(trainer, CONFIG)
    lengths = sorted(len(row) for row in trainer.train_dataset["input_ids"])
    given = rf"\({name}\) makes no batch of two samples of {lengths[0]} and {lengths[-1]} tokens"
    with pytest.raises(ValueError, match=rf"{given}.*fail: \w+Error: .*DataCollatorForSeq2Seq\(tok"):
        trainer.train()
    assert not callback.rounds and not list(tmp_path.rglob("miwv"))


@pytest.mark.parametrize("name", ["return_a_list", "rename_the_ids", "return_lists_of_ids"])
def test_what_is_refused_would_fail_in_the_trainer(name: str, tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError, AttributeError)):
        trainer_of(tmp_path, FAILING[name](tiny_tokenizer())).train()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("return_a_list", "TypeError: it returned a list, not a mapping with `input_ids`"),
        ("rename_the_ids", "it returned a mapping without a tensor `input_ids` (keys: attention_mask, labels, tokens)"),
        ("return_lists_of_ids", "TypeError: it returned a mapping without a tensor `input_ids` (keys: "),
    ],
)  # fmt: skip
def test_a_batch_of_another_kind_is_named(name: str, words: str, tmp_path: Path) -> None:
    attach(trainer := trainer_of(tmp_path, FAILING[name](tiny_tokenizer())), CONFIG)
    with pytest.raises(ValueError, match=re.escape(words)):
        trainer.train()


class Dropping(DataCollatorForSeq2Seq):
    """Keeps the first rows of a batch, or those that are short enough."""

    most, limit = 1, 10_000

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        kept = [row for row in features if len(row["input_ids"]) <= self.limit]
        return super().__call__(kept[: self.most], return_tensors)


class DroppingLong(Dropping):
    most, limit = 99, 45


class DroppingAll(Dropping):
    """Returns an empty batch."""

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        return {name: part[:0] for name, part in super().__call__(features, return_tensors).items()}


@pytest.mark.parametrize(("kind", "left"), [(Dropping, 1), (DroppingLong, 1), (DroppingAll, 0)])
def test_a_collator_that_drops_samples_is_told_before_scoring(kind: Any, left: int, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, kind(tiny_tokenizer()))
    callback = attach(trainer, CONFIG)
    lengths = sorted(len(row) for row in trainer.train_dataset["input_ids"])
    assert lengths[0] <= 45 < lengths[-1]
    words = (
        rf"\({kind.__name__}\) was given two samples of {lengths[0]} and {lengths[-1]} tokens and returned a batch of "
        rf"{left}: .*before `attach`.*check_batches=False"
    )
    with pytest.raises(ValueError, match=words):
        trainer.train()
    assert not callback.rounds and not list(tmp_path.rglob("miwv"))


def test_a_trainer_trains_on_fewer_samples_without_a_word(tmp_path: Path) -> None:
    """Which is why they are refused: nothing else would tell that most of a selection is not trained."""
    trainer, rows = trainer_of(tmp_path, Dropping(tiny_tokenizer()), per_device_train_batch_size=4), []
    trainer.model.register_forward_pre_hook(
        lambda m, a, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    trainer.train()
    assert rows == [1, 1, 1, 1] and len(trainer.train_dataset) == 16


def test_embeddings_in_place_of_ids_are_left_to_the_model(tmp_path: Path) -> None:
    """Nothing can be compared in such a batch, and models take it."""
    trainer = trainer_of(tmp_path, None)
    embed, pad = trainer.model.get_input_embeddings(), DataCollatorForSeq2Seq(tiny_tokenizer())

    def give_embeddings(rows: list[dict[str, Any]]) -> Any:
        batch = pad(rows)
        return {"inputs_embeds": embed(batch.pop("input_ids")).detach(), **batch}

    trainer.data_collator = give_embeddings
    callback = attach(trainer, CONFIG)
    trainer.train()
    assert callback.rounds


class Joining:
    """One long row without a mark of where a sample begins."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor([sum((row[name] for row in rows), [])]) for name in ("input_ids", "labels")}


@pytest.mark.parametrize(
    "collator",
    [
        DataCollatorWithFlattening(),
        DataCollatorWithFlattening(return_position_ids=False, return_flash_attn_kwargs=True, return_seq_idx=True),
        Joining(),
    ],
    ids=["positions", "lengths", "neither"],
)
def test_a_collator_that_puts_samples_into_one_row_drops_none(collator: Any, tmp_path: Path) -> None:
    pool = tokenize(tiny_dataset(16), tiny_tokenizer()).remove_columns("attention_mask")
    trainer = trainer_of(tmp_path, collator, pool, per_device_train_batch_size=4)
    callback = attach(trainer, CONFIG)
    trainer.train()
    assert callback.rounds and trainer.state.global_step > 0


def test_a_flattening_collator_that_drops_is_told(tmp_path: Path) -> None:
    flatten = DataCollatorWithFlattening()
    trainer = trainer_of(tmp_path, lambda rows: flatten(rows[:1]))
    attach(trainer, CONFIG)
    with pytest.raises(ValueError, match=r"was given two samples of .* and returned a batch of 1: "):
        trainer.train()


def test_one_that_flattens_and_cuts_keeps_its_samples(tmp_path: Path) -> None:
    flatten = DataCollatorWithFlattening()

    def cut(rows: list[dict[str, Any]]) -> Any:
        return flatten([{name: row[name][-25:] for name in ("input_ids", "labels")} for row in rows])

    trainer = trainer_of(tmp_path, cut)
    callback = attach(trainer, CONFIG)
    trainer.train()
    assert callback.rounds


def test_labels_that_a_collator_replaces_are_told_before_scoring(tmp_path: Path) -> None:
    inner = DataCollatorForLanguageModeling(tiny_tokenizer(), mlm=False)
    keep = ("input_ids", "attention_mask")
    trainer = trainer_of(tmp_path, lambda rows: inner([{name: row[name] for name in keep} for row in rows]))
    callback = attach(trainer, CONFIG)
    with pytest.raises(RuntimeError, match=r"2 of 2 rows of a training batch have other labels than the dataset"):
        trainer.train()
    assert not callback.rounds and not list(tmp_path.rglob("miwv"))


def test_a_collator_that_never_sees_two_lengths_need_not_pad(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, default_data_collator, per_device_train_batch_size=1)
    attach(trainer, CONFIG)
    trainer.train()
    pool = tokenize(tiny_dataset(16), tiny_tokenizer())
    shortest = min(len(row) for row in pool["input_ids"])
    cut = pool.map(lambda row: {name: row[name][-shortest:] for name in ("input_ids", "attention_mask", "labels")})
    trainer = trainer_of(tmp_path / "cut", default_data_collator, cut)
    attach(trainer, CONFIG)
    trainer.train()
    assert trainer.state.global_step > 0


def test_without_check_batches_nothing_is_tried(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, default_data_collator)
    callback = attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf", check_batches=False))
    with pytest.raises(ValueError, match=r"^(?!The data collator)"):
        trainer.train()
    assert len(callback.rounds) == 1


class Drawing(DataCollatorForSeq2Seq):
    """Draws from every global random state, and remembers what it drew."""

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        self.drawn = [*getattr(self, "drawn", []), (random.random(), np.random.rand(), torch.rand(1).item())]
        return super().__call__(features, return_tensors)


def test_a_trial_changes_no_random_state_of_the_training(tmp_path: Path) -> None:
    drawn = []
    for check in (True, False):
        collator = Drawing(tiny_tokenizer())
        trainer = trainer_of(tmp_path / str(check), collator)
        attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf", check_batches=check))
        trainer.train()
        drawn.append(collator.drawn)
    tried, plain = drawn
    assert len(tried) == len(plain) + 1 and tried[1:] == plain


def test_the_shortest_and_the_longest_sample_are_tried() -> None:
    lengths = np.array([5, 9, 3, 9, 3])
    assert pick_samples(lengths, batch=8).tolist() == [2, 1]
    assert pick_samples(lengths, batch=1).tolist() == [1]
    assert pick_samples(np.array([4, 4, 4]), batch=2).tolist() == [0, 2]
    assert pick_samples(np.array([4]), batch=2).tolist() == [0]
