"""The pool that is scored is the pool that is trained: known by its content, at the beginning and in the batches."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq, Trainer

from miwv_trainer import MIWVConfig, attach, tokenize
from miwv_trainer.compat import is_at_least
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.sample_hashes import describe_difference, hash_ids, hash_sample_ids, hash_sample_masks
from miwv_trainer.training.batch_check import BatchCheck
from tests.helpers.chats import as_rows, conversations, sft_trainer
from tests.helpers.templates import new_tokenizer
from tests.helpers.tiny import instruction_rows, tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.trainers import arguments

CONFIG = MIWVConfig(fraction=0.25, embedder="tfidf")
COUNT = 24


def trainer_of(folder: Path, pool: Any = None, collator: Any = None, **values: Any) -> Trainer:
    tokenizer = tiny_tokenizer()
    return Trainer(
        tiny_model(),
        arguments(folder, num_train_epochs=1, **values),
        train_dataset=pool if pool is not None else tokenize(tiny_dataset(COUNT), tokenizer),
        data_collator=collator or DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )


def relabel(pool: datasets.Dataset) -> datasets.Dataset:
    """The first response token of every sample becomes prompt."""

    def later(row: dict[str, Any]) -> dict[str, Any]:
        first = next(i for i, label in enumerate(row["labels"]) if label != -100)
        return {"labels": [-100] * (first + 1) + row["labels"][first + 1 :]}

    return pool.map(later)


def other_shard(pool: datasets.Dataset) -> datasets.Dataset:
    return tokenize(tiny_dataset(COUNT, seed=1), tiny_tokenizer())


def one_sample_edited(pool: datasets.Dataset) -> datasets.Dataset:
    rows = [dict(row) for row in pool]
    rows[5]["input_ids"] = [*rows[5]["input_ids"][:-1], 7]
    rows[5]["labels"] = [*rows[5]["labels"][:-1], 7]
    return datasets.Dataset.from_list(rows)


CHANGES: dict[str, tuple[Callable[[datasets.Dataset], datasets.Dataset], str]] = {
    "shuffled": (lambda pool: pool.shuffle(seed=1), r"same samples in another order \(\d+ of 24 stand elsewhere\)"),
    "sorted by length": (lambda pool: pool.select(np.argsort([len(i) for i in pool["input_ids"]])), "another order"),
    "relabelled": (relabel, r"other labels in \d+ of 24 samples"),
    "another shard of the same length": (other_shard, r"other token ids in \d+ of 24 samples"),
    "one sample edited": (one_sample_edited, "other token ids in 1 of 24 samples, the first of them sample 5"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_dataset_that_was_changed_after_attach_is_refused_before_anything_is_scored(
    change: str, tmp_path: Path
) -> None:
    changed, words = CHANGES[change]
    trainer = trainer_of(tmp_path)
    callback = attach(trainer, CONFIG)
    trainer.train_dataset = changed(trainer.train_dataset)
    with pytest.raises(ValueError, match=rf"{words}.*attach again"):
        trainer.train()
    assert callback.rounds == [] and not list(tmp_path.rglob("scores.parquet"))


def test_a_dataset_that_holds_the_same_in_another_form_is_taken(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    callback = attach(trainer, CONFIG)
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in trainer.train_dataset]
    trainer.train_dataset = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    trainer.train()
    assert len(callback.rounds) == 1


class Replacing(DataCollatorForSeq2Seq):
    """Gives, from the `after`-th batch on, rows of another pool."""

    after, calls = 0, 0

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        self.calls += 1
        if self.calls > self.after:
            other = tokenize(tiny_dataset(len(features), seed=9), self.tokenizer)
            features = [{k: row[k] for k in ("input_ids", "attention_mask", "labels")} for row in other]
        return super().__call__(features, return_tensors)


@pytest.mark.parametrize("after", [0, 1])
def test_batches_of_other_samples_stop_the_run(after: int, tmp_path: Path) -> None:
    """From the trial before scoring on, or from the first batch of the training."""
    trainer = trainer_of(tmp_path, collator=Replacing(tiny_tokenizer()))
    trainer.data_collator.after = after
    callback = attach(trainer, CONFIG)
    with pytest.raises(
        RuntimeError, match=r"rows of a training batch are not what was selected; the first is no sample"
    ):
        trainer.train()
    assert len(callback.rounds) == after


def test_batches_of_the_pool_that_are_not_selected_stop_the_run(tmp_path: Path) -> None:
    """A loader around the Trainer's own, which hides its dataset, gives every sample in turn."""

    class Own(Trainer):
        def get_train_dataloader(self) -> Any:
            inner = super().get_train_dataloader()
            rows = [self.train_dataset[i] for i in range(len(self.train_dataset))]
            keep = ("input_ids", "attention_mask", "labels")

            class Wrapper:
                def __len__(self) -> int:
                    return len(inner)

                def __iter__(self) -> Any:
                    for start in range(len(inner)):
                        part = rows[4 * start : 4 * start + 4]
                        yield inner.collate_fn([{k: row[k] for k in keep} for row in part])

            return Wrapper()

    plain = trainer_of(tmp_path)
    trainer = Own(
        plain.model,
        plain.args,
        train_dataset=plain.train_dataset,
        data_collator=plain.data_collator,
        processing_class=plain.processing_class,
    )
    callback = attach(trainer, CONFIG)
    with pytest.raises(RuntimeError, match=r"sample \d+ of the pool, which is not selected") as raised:
        trainer.train()
    number = int(str(raised.value).split("sample ")[1].split()[0])
    assert number not in callback.rounds[0].selection


def test_a_training_step_that_makes_rows_of_its_own_may_switch_the_comparison_off(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, collator=Replacing(tiny_tokenizer()))
    attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf", check_batches=False))
    trainer.train()
    assert trainer.state.global_step == 2


class Cutting(DataCollatorForSeq2Seq):
    kept = 12

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        cut = [{name: values[: self.kept] for name, values in row.items()} for row in features]
        return super().__call__(cut, return_tensors)


def test_a_collator_that_cuts_rows_is_no_stranger(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, collator=Cutting(tiny_tokenizer()))
    attach(trainer, CONFIG)
    trainer.train()


def test_rows_that_are_cut_before_their_response_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    collator = Cutting(tiny_tokenizer())
    collator.kept = 3
    trainer = trainer_of(tmp_path, collator=collator)
    attach(trainer, CONFIG)
    trainer.train()
    told = [line for line in caplog.messages if "hold no token of their response" in line]
    assert len(told) == 1 and re.match(r"(\d) of \1 rows of a training batch", told[0])
    caplog.clear()
    whole = trainer_of(tmp_path / "whole")
    attach(whole, CONFIG)
    whole.train()
    assert "hold no token of their response" not in caplog.text


def test_no_hook_stays_on_the_model_not_even_after_a_run_that_failed(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, collator=Replacing(tiny_tokenizer()))
    trainer.data_collator.after = 1  # not the trial before scoring
    attach(trainer, CONFIG)
    for _ in range(2):
        trainer.data_collator.calls = 0
        with pytest.raises(RuntimeError, match="not what was selected"):
            trainer.train()
        assert len(trainer.model._forward_pre_hooks) == 1
    trainer.data_collator.after = 10**9
    trainer.train()
    assert not trainer.model._forward_pre_hooks


class Relabelling(DataCollatorForSeq2Seq):
    """Trains the whole of every row, as `DataCollatorForLanguageModeling` does."""

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        batch = super().__call__(features, return_tensors)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return batch


class Shifting(DataCollatorForSeq2Seq):
    """Gives other labels at the places of the response."""

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        batch = super().__call__(features, return_tensors)
        batch["labels"] = torch.where(batch["labels"] == -100, -100, 7)
        return batch


class HidingTheEnd(DataCollatorForSeq2Seq):
    """Takes the labels of the last token away, as collators do that mask every token like the padding's."""

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        shorter = [{**row, "labels": [*row["labels"][:-1], -100]} for row in features]
        return super().__call__(shorter, return_tensors)


class CuttingRelabelled(Relabelling):
    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        cut = [{name: values[:12] for name, values in row.items()} for row in features]
        return super().__call__(cut, return_tensors)


@pytest.mark.parametrize(
    "collator",
    [Relabelling, Shifting, HidingTheEnd, CuttingRelabelled, lambda t: DataCollatorForLanguageModeling(t, mlm=False)],
)
def test_a_collator_that_makes_labels_of_its_own_stops_the_run(collator: Any, tmp_path: Path) -> None:
    """The last is transformers' own, which takes columns without labels only, or overwrites them."""
    trainer = trainer_of(tmp_path, collator=collator(tiny_tokenizer()))
    if isinstance(trainer.data_collator, DataCollatorForLanguageModeling):
        inner = trainer.data_collator
        keep = ("input_ids", "attention_mask")
        trainer.data_collator = lambda rows: inner([{name: row[name] for name in keep} for row in rows])
    attach(trainer, CONFIG)
    with pytest.raises(
        RuntimeError, match=r"have other labels than the dataset; the first is sample \d+.*attach again"
    ):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("values", [{"label_smoothing_factor": 0.1}, {"remove_unused_columns": False}])
def test_labels_of_the_dataset_that_reach_the_training_are_taken(values: dict[str, Any], tmp_path: Path) -> None:
    keep = ("input_ids", "attention_mask", "labels")
    pool = tokenize(tiny_dataset(COUNT), tiny_tokenizer()).select_columns(list(keep))
    trainer = trainer_of(tmp_path, pool, **values)
    attach(trainer, MIWVConfig(fraction=0.25, embedder="model"))
    trainer.train()
    assert trainer.state.global_step == 2


CHATS = as_rows(conversations())
PAIRS = [{"prompt": row["instruction"], "completion": f" {row['output']}"} for row in instruction_rows(12)]
COLLATED = {
    "completions without padding": (PAIRS, {"padding_free": True, "max_length": None}),
    "completions with label smoothing": (PAIRS, {"label_smoothing_factor": 0.1}),
    "whole conversations": (CHATS, {}),
    "whole conversations without padding": (CHATS, {"padding_free": True, "max_length": None}),
    "assistant turns": (CHATS, {"assistant_only_loss": True}),
    "assistant turns without padding": (CHATS, {"assistant_only_loss": True, "padding_free": True, "max_length": None}),
    "cut completions": (PAIRS, {"max_length": 24}),
}

NEEDS_SMOOTHING = pytest.mark.skipif(
    is_at_least("trl", "1.0") and not is_at_least("trl", "1.16"),
    reason="before TRL 1.16, SFTTrainer fails at the first step with label smoothing and its fused head",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[NEEDS_SMOOTHING] if "smoothing" in name else []) for name in COLLATED]
)
def test_labels_that_trls_own_collator_makes_are_taken(name: str, tmp_path: Path) -> None:
    rows, values = COLLATED[name]
    values = {"num_train_epochs": 1, "save_strategy": "no", "disable_tqdm": True, **values}
    trainer = sft_trainer(tmp_path, rows, new_tokenizer("qwen2_5"), per_device_train_batch_size=2, **values)
    callback = attach(trainer, MIWVConfig(fraction=0.34, embedder="tfidf"))
    trainer.train()
    assert trainer.state.global_step > 0 and len(callback.rounds) == 1


def test_rows_without_padding_are_told_apart_by_their_positions() -> None:
    pool = pool_from_rows(instruction_rows(6), tiny_tokenizer())
    model = torch.nn.Identity().train()
    model.forward = lambda **inputs: None  # type: ignore[method-assign]
    check = BatchCheck(pool, lambda: 0, lambda epoch: np.array([1, 4]))
    check.watch(model)

    def forward(*samples: int) -> None:
        rows = [np.concatenate([pool.preamble, pool.sample(i)]) for i in samples]
        ids = torch.as_tensor(np.concatenate(rows).astype(np.int64))[None]
        model(input_ids=ids, position_ids=torch.as_tensor(np.concatenate([np.arange(len(r)) for r in rows]))[None])

    forward(4, 1)
    with pytest.raises(RuntimeError, match=r"1 of 2 rows.*sample 3 of the pool, which is not selected"):
        forward(1, 3)
    model.eval()
    forward(3, 2)  # evaluation forwards what it likes


def test_hashes_know_samples_by_their_content_whatever_preamble_was_split_off() -> None:
    rows = instruction_rows(8)
    pool = pool_from_rows(rows, tiny_tokenizer())
    by_hand = [hash_ids(np.concatenate([pool.preamble, pool.sample(i)])) for i in range(8)]
    assert hash_sample_ids(pool).tolist() == by_hand and len(set(by_hand)) == 8
    turned = pool_from_rows(rows[::-1], tiny_tokenizer())
    assert hash_sample_ids(turned).tolist() == by_hand[::-1]
    assert hash_sample_masks(turned).tolist() == hash_sample_masks(pool).tolist()[::-1]
    fewer = pool_from_rows(rows[:7], tiny_tokenizer())
    words = describe_difference(*(f(p) for p in (pool, fewer) for f in (hash_sample_ids, hash_sample_masks)))
    assert words == "has 7 samples instead of 8"
