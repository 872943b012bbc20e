"""
Whether the Trainer's collator makes batches of the pool's samples, tried on two of them before anything is scored.

`default_data_collator` does not pad, and transformers' `DataCollatorForLanguageModeling` pads no labels. Both fail at
the first training step, which stands behind round 0: an hour of scoring was lost to it.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from torch.utils.data import BatchSampler, DataLoader
from transformers import TrainingArguments
from transformers.trainer_utils import RemoveColumnsCollator

from miwv_trainer.data.map_style import MapStyleDataset
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.training.batch_check import BatchCheck

Collator = Callable[[Sequence[Any]], Any]


def check_collator(dataloader: DataLoader, args: TrainingArguments, pool: Pool, world: World) -> None:
    """
    Checks that the shortest and the longest sample become a batch that holds them and their labels.

    A process that gets one sample a batch is tried with the longest. The random states are the caller's to preserve; a
    collator with a generator of its own is one call further afterwards.

    Raises:
        RuntimeError: the batch holds other samples or other labels.
        ValueError: the collator fails.
    """
    if not isinstance(dataloader, DataLoader):
        return  # A wrapper need not have a `collate_fn`. The batches are compared all the same.
    samples = pick_samples(pool.lengths, count_collated(dataloader, args))
    dataset, collate = cast(MapStyleDataset, dataloader.dataset), cast(Collator, dataloader.collate_fn)
    with world.run_together("trying the data collator"):
        rows = [dataset[index] for index in samples.tolist()]
        try:
            batch = collate(rows)
            if batch is None:
                raise TypeError("it returned None")
        except Exception as error:
            raise ValueError(explain_failure(collate, pool.lengths[samples] + len(pool.preamble), error)) from error
        if isinstance(batch, Mapping):
            BatchCheck(pool, lambda: 0, lambda epoch: samples).compare(batch, samples)


def count_collated(dataloader: DataLoader, args: TrainingArguments) -> int:
    """The number of samples that a process collates at once."""
    batch = cast(BatchSampler, dataloader.batch_sampler).batch_size
    return batch // args.world_size if args.accelerator_config.split_batches else batch


def pick_samples(lengths: np.ndarray, batch: int) -> np.ndarray:
    """The shortest and the longest sample; the longest alone for batches of one, or where there is one sample."""
    longest, shortest = int(lengths.argmax()), int(lengths.argmin())
    if batch < 2 or len(lengths) < 2:
        return np.array([longest])
    # Where all lengths are equal, both are the first.
    return np.array([shortest, longest if longest != shortest else len(lengths) - 1])


def explain_failure(collate: Collator, lengths: np.ndarray, error: Exception) -> str:
    """What the collator was given, how it failed, and what to do."""
    given = " and ".join(f"{length}" for length in lengths.tolist())
    what = f"a sample of {given} tokens" if len(lengths) == 1 else f"two samples of {given} tokens"
    reason = " ".join(str(error).split())
    return (
        f"The data collator ({name_collator(collate)}) makes no batch of {what}, so that the first training step would "
        f"fail: {type(error).__name__}: {reason[:200]}. Give the Trainer a collator that takes such rows and pads "
        "token ids and labels, such as `data_collator=DataCollatorForSeq2Seq(tokenizer)`. If it needs what exists only "
        "in training, set `check_batches=False`."
    )


def name_collator(collate: Collator) -> str:
    """The name of a function or of an object's class, without transformers' wrapper that leaves columns out."""
    while isinstance(collate, RemoveColumnsCollator):
        collate = collate.data_collator
    return collate.__name__ if inspect.isroutine(collate) else type(collate).__name__
