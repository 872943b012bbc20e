"""
Whether the Trainer's collator makes batches of the pool's samples, tried on two of them before anything is scored.

`default_data_collator` does not pad, and transformers' `DataCollatorForLanguageModeling` pads no labels. Both fail at
the first training step, which stands behind round 0: an hour of scoring was lost to it. If a collator drops
samples of a batch, the Trainer trains what is left, without a word.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader
from transformers import TrainingArguments
from transformers.trainer_utils import RemoveColumnsCollator

from miwv_trainer.data.map_style import MapStyleDataset
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.foreign_errors import describe_error
from miwv_trainer.training.batch_check import BatchCheck

Collator = Callable[[Sequence[Any]], Any]


def check_collator(dataloader: DataLoader, args: TrainingArguments, pool: Pool, world: World) -> None:
    """
    Checks that the shortest and the longest sample become a batch that holds them and their labels.

    A process that gets one sample a batch is tried with the longest. The random states are the caller's to preserve; a
    collator with a generator of its own is one call further afterwards.

    Raises:
        RuntimeError: the batch holds other samples or other labels.
        ValueError: the collator fails, returns what is no batch of token ids, or drops samples.
    """
    if not isinstance(dataloader, DataLoader):
        return  # A wrapper need not have a `collate_fn`. The batches are compared all the same.
    samples = pick_samples(pool.lengths, count_collated(dataloader, args))
    dataset, collate = cast(MapStyleDataset, dataloader.dataset), cast(Collator, dataloader.collate_fn)
    with world.run_together("trying the data collator"):
        rows = [dataset[index] for index in samples.tolist()]
        lengths = pool.lengths[samples] + len(pool.preamble)
        try:
            batch = _check_batch(collate(rows))
        except Exception as error:
            raise ValueError(explain_failure(collate, lengths, error)) from error
        if isinstance(batch.get("input_ids"), torch.Tensor):
            left = count_samples(batch, lengths)
            if left < len(samples):
                raise ValueError(explain_dropped(collate, lengths, left))
            BatchCheck(pool, lambda: 0, lambda epoch: samples).compare(batch, samples)


def _check_batch(batch: object) -> Mapping[str, Any]:
    """Raises `TypeError` on what the Trainer cannot give to a model: it passes a mapping on as keyword arguments."""
    if not isinstance(batch, Mapping):
        what = "None" if batch is None else f"a {type(batch).__name__}"
        raise TypeError(f"it returned {what}, not a mapping with `input_ids`")
    if not isinstance(batch.get("input_ids"), torch.Tensor) and "inputs_embeds" not in batch:
        raise TypeError(
            f"it returned a mapping without a tensor `input_ids` (keys: {', '.join(map(str, sorted(batch)))})"
        )
    return batch


def count_samples(batch: Mapping[str, Any], lengths: np.ndarray) -> int:
    """
    How many of the given samples a batch may hold.

    A collator may put several into one row, and say where each begins, or not. A batch of as many tokens as all samples
    together counts as holding them all.

    Args:
        lengths: `(n,)` tokens of each sample that was given.
    """
    ids, mask, positions = batch["input_ids"], batch.get("attention_mask"), batch.get("position_ids")
    ends = batch.get("cu_seq_lens_q")
    counts = [len(ids)]
    if isinstance(positions, torch.Tensor) and positions.shape == ids.shape and len(ids) == 1:
        counts.append(int((positions == positions[0, 0]).sum()))
    if isinstance(ends, torch.Tensor):
        counts.append(ends.numel() - 1)
    tokens = ids.numel()
    if isinstance(mask, torch.Tensor) and mask.shape == ids.shape:
        tokens = int(torch.count_nonzero(mask))
    if tokens >= lengths.sum():
        counts.append(len(lengths))
    return max(counts)


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
    return (
        f"The data collator ({name_collator(collate)}) makes no batch of {_describe_given(lengths)}, so that the first "
        f"training step would fail: {describe_error(error)}. Give the Trainer a collator that takes "
        "such rows and pads token ids and labels, such as `data_collator=DataCollatorForSeq2Seq(tokenizer)`. If it "
        "needs what exists only in training, or if your `compute_loss` takes what it returns, set "
        "`check_batches=False`."
    )


def explain_dropped(collate: Collator, lengths: np.ndarray, left: int) -> str:
    """What the collator was given, how much of it came back, and what to do."""
    return (
        f"The data collator ({name_collator(collate)}) was given {_describe_given(lengths)} and returned a batch of "
        f"{left}: what it drops would be selected and never trained. Leave out of the dataset before `attach` what is "
        "not to be trained, and give the Trainer a collator that keeps every row, such as "
        "`data_collator=DataCollatorForSeq2Seq(tokenizer)`. If it drops samples on purpose, set `check_batches=False`."
    )


def _describe_given(lengths: np.ndarray) -> str:
    given = " and ".join(f"{length}" for length in lengths.tolist())
    return f"a sample of {given} tokens" if len(lengths) == 1 else f"two samples of {given} tokens"


def name_collator(collate: Collator) -> str:
    """The name of a function or of an object's class, without transformers' wrapper that leaves columns out."""
    while isinstance(collate, RemoveColumnsCollator):
        collate = collate.data_collator
    return collate.__name__ if inspect.isroutine(collate) else type(collate).__name__
