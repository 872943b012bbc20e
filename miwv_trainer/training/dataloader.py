"""What the Trainer's dataloader makes of an order: its batches over all ranks, its steps, how far ahead it draws."""

import logging
import math
from typing import cast

from torch.utils.data import BatchSampler, DataLoader
from transformers import TrainingArguments

from miwv_trainer.compat import read_sampling_strategy
from miwv_trainer.training.ordering import Strategy
from miwv_trainer.training.sampler import MIWVDataSampler
from miwv_trainer.training.schedule import StepSchedule, count_steps_ahead

logger = logging.getLogger(__name__)


def count_batch_samples(args: TrainingArguments) -> int:
    """Samples that all processes together train on between two draws from the dataloader."""
    return args.train_batch_size * (1 if args.accelerator_config.split_batches else args.world_size)


def count_step_samples(args: TrainingArguments) -> int:
    """Samples of one optimizer step over all processes."""
    return count_batch_samples(args) * args.gradient_accumulation_steps


def count_epoch_samples(args: TrainingArguments, sampler: MIWVDataSampler) -> int:
    """Samples that an epoch trains, without those that a dropped last batch holds or that repeats fill one with."""
    dropped = len(sampler) % count_batch_samples(args) if args.dataloader_drop_last else 0
    return len(sampler) - dropped


def read_strategy(args: TrainingArguments) -> Strategy:
    """
    The Trainer's `train_sampling_strategy`, which the sampler follows within the selection.

    Raises:
        ValueError: `"batch_rebalance"`, which composes batches of its own.
    """
    strategy = read_sampling_strategy(args)
    if strategy == "batch_rebalance":
        raise ValueError(
            '`train_sampling_strategy="batch_rebalance"` composes the batches of each process itself, from the lengths '
            "of the whole dataset, before a selection is known. Set "
            '`train_sampling_strategy="group_by_length"`, which puts selected samples of like length into one batch.'
        )
    return cast(Strategy, strategy)


def read_schedule(dataloader: DataLoader, args: TrainingArguments) -> StepSchedule:
    """How the Trainer will go through an epoch's order with this dataloader. The same on all ranks."""
    batch, workers, prefetch = args.train_batch_size, args.dataloader_num_workers, args.dataloader_prefetch_factor
    if isinstance(dataloader, DataLoader):
        # After running out of memory, `auto_find_batch_size` makes a loader of smaller batches and leaves the arguments
        # as they were.
        batch = cast(BatchSampler, dataloader.batch_sampler).batch_size  # `check_sampler` has refused any other
        workers, prefetch = dataloader.num_workers, dataloader.prefetch_factor
    accumulation = args.gradient_accumulation_steps
    ranks = 1 if args.accelerator_config.split_batches else args.world_size
    return StepSchedule(
        steps_per_epoch=max(1, math.ceil(len(dataloader) / accumulation)),
        effective_batch=batch * ranks * accumulation,
        look_ahead=count_steps_ahead(workers, prefetch, accumulation),
    )


def check_sampler(dataloader: DataLoader, sampler: MIWVDataSampler) -> None:
    """
    Checks that the Trainer's dataloader draws from the sampler. Warns where a wrapper hides what it draws from.

    Raises:
        ValueError: it draws from another one.
    """
    if not isinstance(dataloader, DataLoader):
        logger.warning(
            "The training dataloader is a %s, in which the sampler cannot be seen: make sure that it draws from the "
            "MIWVDataSampler, as a wrapper around `super().get_train_dataloader()` does.", type(dataloader).__name__,
        )  # fmt: skip
        return
    found = find_sampler(dataloader)
    if found is not sampler:
        raise ValueError(
            "The Trainer does not use this MIWVDataSampler: its training dataloader has a "
            f"{type(found).__name__}. Return the sampler from `_get_train_sampler`, or use "
            "`attach(trainer, config)`; a Trainer whose `get_train_dataloader` builds a loader of its own must pass "
            "the sampler to it."
        )


def find_sampler(dataloader: DataLoader) -> object:
    """The index sampler at the bottom of accelerate's wrappers around a dataloader."""
    batch_sampler = dataloader.batch_sampler
    while isinstance(batch_sampler, BatchSampler):
        # accelerate's BatchSamplerShard and SkipBatchSampler hold the next one as `batch_sampler`. torch's own is the
        # innermost and holds the index sampler as `sampler`.
        inner = vars(batch_sampler).get("batch_sampler")
        if inner is None:
            return vars(batch_sampler).get("sampler")
        batch_sampler = inner
    return batch_sampler


def check_pool_size(size: int, sampler: MIWVDataSampler, dataloader: DataLoader) -> None:
    """
    Checks that pool, sampler and the Trainer's dataset hold equally many samples.

    Raises:
        ValueError: they do not.
    """
    # A wrapper of a Trainer's own need not have a `dataset`.
    in_trainer = len(dataloader.dataset) if isinstance(dataloader, DataLoader) else size  # type: ignore[arg-type]
    if not size == sampler.pool_size == in_trainer:
        raise ValueError(
            f"The pool has {size} samples, the sampler was made for {sampler.pool_size}, and the Trainer trains on "
            f"{in_trainer}; they must be the same dataset. If `train_dataset` was replaced, attach again."
        )


def check_batches(args: TrainingArguments, sampler: MIWVDataSampler) -> None:
    """
    Checks the Trainer's dataloader options.

    Raises:
        ValueError:
            the sampler cannot follow an option, or it leaves a process without a batch. The message names the option
            and what to set instead.
    """
    if sampler.strategy != read_strategy(args):
        raise ValueError(
            f"The MIWVDataSampler was made with `strategy={sampler.strategy!r}`, but the Trainer has "
            f"`train_sampling_strategy={read_sampling_strategy(args)!r}`; give both the same."
        )
    if args.accelerator_config.dispatch_batches:
        raise ValueError(
            "`dispatch_batches=True` joins the batches of all processes on rank 0, which fails as soon as they are "
            "padded to different lengths. Leave it out of `accelerator_config`: each process then reads its own part "
            "of each batch, of the same samples."
        )
    batch, count = count_batch_samples(args), len(sampler)
    if args.dataloader_drop_last:
        # Without this check the Trainer fails on the empty dataloader with a message about datasets without a length.
        if count < batch:
            raise ValueError(
                f"There is no batch to train on: {count} samples are selected, less than the {batch} of one batch "
                "over all processes, and `dataloader_drop_last` drops it. Raise `fraction`, lower "
                "`per_device_train_batch_size`, or set `dataloader_drop_last=False`."
            )
        return
    # accelerate deals the last batch out in whole parts, rank by rank. A rank that gets nothing ends its epoch while
    # the others wait for it in a collective.
    part = batch // args.world_size
    rest = count % batch
    if not args.accelerator_config.even_batches and 0 < rest <= part * (args.world_size - 1):
        raise ValueError(
            f"`even_batches=False` leaves {args.world_size - -(-rest // part)} of {args.world_size} processes without "
            f"a last batch, for which the others would wait forever: {count} samples are selected, {rest} more than "
            f"fill batches of {batch}. Set `even_batches=True`, `dataloader_drop_last=True`, or a `fraction` that "
            f"selects a multiple of {batch}."
        )


def warn_of_last_batch(args: TrainingArguments, sampler: MIWVDataSampler) -> None:
    """Warns where the selection does not fill the last batch, and says what becomes of that batch."""
    # accelerate fills it from the beginning of the order (huggingface/accelerate#684), so that the number of repeated
    # samples depends on the number of ranks.
    batch = count_batch_samples(args)
    rest = len(sampler) % batch
    if rest == 0:
        return
    if args.dataloader_drop_last:
        logger.warning(
            "The selection of %d is no multiple of %d (processes x batch): %d samples are dropped in each epoch.",
            len(sampler), batch, rest,
        )  # fmt: skip
    elif args.world_size > 1 and args.accelerator_config.even_batches:
        logger.warning(
            "The selection of %d is no multiple of %d (processes x batch): the last batch of each epoch is filled with "
            "%d repeats from the epoch's beginning.", len(sampler), batch, batch - rest,
        )  # fmt: skip
