"""What the Trainer's dataloader makes of an order: batches, over all processes."""

import logging

from transformers import TrainingArguments

from miwv_trainer.training.ordering import Strategy
from miwv_trainer.training.sampler import MIWVDataSampler

logger = logging.getLogger(__name__)


def samples_per_batch(args: TrainingArguments) -> int:
    """Samples that all processes together train on between two draws from the dataloader."""
    return args.train_batch_size * (1 if args.accelerator_config.split_batches else args.world_size)


def samples_per_step(args: TrainingArguments) -> int:
    """Samples of one optimizer step over all processes."""
    return samples_per_batch(args) * args.gradient_accumulation_steps


def sampler_strategy(args: TrainingArguments) -> Strategy:
    """
    The Trainer's `train_sampling_strategy`, as the sampler follows it within the selection.

    Raises:
        ValueError: `"batch_rebalance"`, which composes batches of its own.
    """
    if args.train_sampling_strategy == "batch_rebalance":
        raise ValueError(
            '`train_sampling_strategy="batch_rebalance"` composes the batches of each process itself, from the lengths '
            "of the whole dataset, before a selection is known. Set "
            '`train_sampling_strategy="group_by_length"`, which puts selected samples of like length into one batch.'
        )
    return args.train_sampling_strategy


def check_batches(args: TrainingArguments, sampler: MIWVDataSampler) -> None:
    """
    Refuses dataloader options that the sampler does not follow, or that leave a process without a batch.

    Raises:
        ValueError: naming the option, and what to set instead.
    """
    if sampler.strategy != sampler_strategy(args):
        raise ValueError(
            f"The MIWVDataSampler was made with `strategy={sampler.strategy!r}`, but the Trainer has "
            f"`train_sampling_strategy={args.train_sampling_strategy!r}`; give both the same."
        )
    if args.accelerator_config.dispatch_batches:
        raise ValueError(
            "`dispatch_batches=True` joins the batches of all processes on rank 0, which fails as soon as they are "
            "padded to different lengths. Leave it out of `accelerator_config`: each process then reads its own part "
            "of each batch, of the same samples."
        )
    batch, count = samples_per_batch(args), len(sampler)
    if args.dataloader_drop_last:
        # The Trainer's own words for an empty dataloader speak of something else, a dataset without a length.
        if count < batch:
            raise ValueError(
                f"There is no batch to train on: {count} samples are selected, less than the {batch} of one batch "
                "over all processes, and `dataloader_drop_last` drops it. Raise `fraction`, lower "
                "`per_device_train_batch_size`, or set `dataloader_drop_last=False`."
            )
        return
    # Of the last batch each process takes a whole part, in the order of ranks, until none is left.
    part = batch // args.world_size
    rest = count % batch
    if not args.accelerator_config.even_batches and 0 < rest <= part * (args.world_size - 1):
        raise ValueError(
            f"`even_batches=False` leaves {args.world_size - -(-rest // part)} of {args.world_size} processes without "
            f"a last batch, for which the others would wait forever: {count} samples are selected, {rest} more than "
            f"fill batches of {batch}. Set `even_batches=True`, `dataloader_drop_last=True`, or a `fraction` that "
            f"selects a multiple of {batch}."
        )


def log_last_batch(args: TrainingArguments, sampler: MIWVDataSampler) -> None:
    """Says what happens to a last batch that the selection does not fill."""
    batch = samples_per_batch(args)
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
