"""A collator that cannot make batches of the pool's samples stops the run before anything is scored."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
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


FAILING = {
    "default_data_collator": lambda t: default_data_collator,
    # The Trainer's own default where it is given a tokenizer.
    "DataCollatorWithPadding": lambda t: None,
    "DataCollatorForLanguageModeling": lambda t: DataCollatorForLanguageModeling(t, mlm=False),
    "DataCollatorForSeq2Seq": lambda t: DataCollatorForSeq2Seq(t, padding="max_length", max_length=8),
    "Stacking": lambda t: Stacking(),
    "lack_a_column": lambda t: lack_a_column,
    "return_nothing": lambda t: return_nothing,
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
