"""When: score, restore, log.

Round 0 is scored in `on_train_begin`, where the DeepSpeed engine exists and a checkpoint's weights are loaded; later
rounds in `on_epoch_begin`, which runs before the epoch's iterator is made. On a resume that same hook fires in the
middle of an epoch with a half-trained model, so a round is scored there only where none was written at that step.
"""

import logging
import math
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from miwv_trainer.batches import check_batches, log_last_batch
from miwv_trainer.config import MIWVConfig, embeds_text
from miwv_trainer.distributed import World
from miwv_trainer.layout import check_layout, context_length
from miwv_trainer.pool import Pool
from miwv_trainer.rendering import pool_from_tokenized
from miwv_trainer.rounds import (
    Exemplars,
    Moment,
    check_model,
    find_exemplars,
    round_line,
    run_fingerprint,
    run_round,
)
from miwv_trainer.sampler import MIWVDataSampler
from miwv_trainer.scoring import preserved_rng
from miwv_trainer.store import Store, StoredRound

logger = logging.getLogger(__name__)


class MIWVCallback(TrainerCallback):
    """
    Scores the pool with the model in training and gives the sampler its selection.

    Args:
        config ([`MIWVConfig`]): What to select and how to score.
        sampler ([`MIWVDataSampler`]): The one that the Trainer's `_get_train_sampler` returns.
        pool ([`Pool`], *optional*):
            The training dataset as token ids. By default read from the Trainer's dataloader, whose dataset has lost
            the columns that the model does not take; a text embedder then sees decoded prompts.

    Attributes:
        rounds: The rounds of this run so far, as they lie on disk.
    """

    def __init__(self, config: MIWVConfig, sampler: MIWVDataSampler, pool: Pool | None = None) -> None:
        if sampler.fraction != config.fraction:
            raise ValueError(
                f"The sampler was made with `fraction` {sampler.fraction}, the configuration with {config.fraction}; "
                "give both the same."
            )
        self.config = config
        self.sampler = sampler
        self.pool = pool
        self.rounds: list[StoredRound] = []
        self._exemplars: Exemplars | None = None
        self._store: Store | None = None
        self._epoch = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, dataloader = kwargs["model"], kwargs["train_dataloader"]
        world = World.current(args.device)
        _check_dataloader(dataloader, self.sampler)
        with preserved_rng():
            if self.pool is None:
                with world.together("reading the pool"):
                    self.pool = pool_from_tokenized(
                        dataloader.dataset,
                        kwargs.get("processing_class"),
                        model.config,
                        with_texts=embeds_text(self.config.embedder),
                    )
            _check_pool_size(len(self.pool), self.sampler, dataloader)
            check_model(model, self.pool)
            check_layout(model, self.config)
            check_batches(args, self.sampler)
            if world.is_main:
                log_last_batch(args, self.sampler)
            self._store = Store(self.config.scores_dir or args.output_dir)
            steps_per_epoch = math.ceil(len(dataloader) / args.gradient_accumulation_steps)
            self._epoch = state.global_step // steps_per_epoch
            self._begin(model, world, state.global_step, steps_per_epoch)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # `set_epoch` of accelerate does not reach a sampler after a mid-epoch resume on several ranks.
        self.sampler.set_epoch(self._epoch)
        is_due = self.config.rescore_strategy == "epoch" and self._epoch > self.rounds[-1].summary["epoch"]
        if is_due:
            with preserved_rng():
                self._score(kwargs["model"], World.current(args.device), state.global_step)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._epoch += 1

    def _begin(self, model: nn.Module, world: World, global_step: int, steps_per_epoch: int) -> None:
        """Brings rounds and selection to where training stands: anew at step 0, from the store on a resume."""
        assert self._store is not None and self.pool is not None
        resuming = global_step > 0
        self._exemplars = find_exemplars(model, self.pool, self.config, self._store, world, reuse=resuming)
        stored: list[StoredRound] = []
        with world.together("reading the rounds"):
            if world.is_main:
                if resuming:
                    stored = self._stored_rounds(model, global_step, steps_per_epoch)
                aside = self._store.set_aside(len(stored))
                if aside is not None:
                    logger.warning("Rounds of an earlier run in %s were moved to %s.", self._store.folder, aside)
        self.rounds = world.share(stored)
        if self.rounds:
            self.sampler.set_selection(self.rounds[-1].selection)
            logger.info("Resumed with the selection of round %d.", self.rounds[-1].number)
        else:
            self._score(model, world, global_step)

    def _stored_rounds(self, model: nn.Module, global_step: int, steps_per_epoch: int) -> list[StoredRound]:
        """The rounds that had been scored when the checkpoint at `global_step` was written, or at that very step."""
        assert self._store is not None and self.pool is not None
        fingerprint = run_fingerprint(self.pool, self.config, context_length(model, self.config))
        found = [self._store.read_round(number, fingerprint) for number in self._store.rounds()]
        found = [stored for stored in found if stored.summary["global_step"] <= global_step]
        if not found:
            raise FileNotFoundError(
                f"Training resumes at step {global_step}, but {self._store.folder} holds no round scored by then, so "
                "the selection it was trained on is not known. Point `scores_dir` to the folder of the run that wrote "
                "the checkpoint, or start afresh."
            )
        due = global_step // steps_per_epoch
        mid_epoch = global_step % steps_per_epoch > 0
        if self.config.rescore_strategy == "epoch" and mid_epoch and found[-1].summary["epoch"] != due:
            raise FileNotFoundError(
                f"Training resumes in epoch {due} at step {global_step}, but {self._store.folder} holds no round of "
                "that epoch. Point `scores_dir` to the folder of the run that wrote the checkpoint, or start afresh."
            )
        return found

    def _score(self, model: nn.Module, world: World, global_step: int) -> None:
        assert self._store is not None and self.pool is not None and self._exemplars is not None
        moment = Moment(len(self.rounds), global_step, self._epoch)
        current = run_round(model, self.pool, self._exemplars, self.config, self._store, world, moment)
        if world.is_main:
            logger.info(round_line(current, self.rounds[-1] if self.rounds else None))
        self.rounds.append(current)
        self.sampler.set_selection(current.selection)
        missing = len(self.sampler) - len(current.selection)
        if missing:
            logger.warning(
                "Only %d samples could be scored and selected; %d of them are repeated in each epoch, because the "
                "length of an epoch is fixed before training.", len(current.selection), missing,
            )  # fmt: skip


def _check_dataloader(dataloader: Any, sampler: MIWVDataSampler) -> None:
    if not isinstance(dataloader, torch.utils.data.DataLoader):
        logger.warning(
            "The training dataloader is a %s, in which the sampler cannot be seen: make sure that it draws from the "
            "MIWVDataSampler, as a wrapper around `super().get_train_dataloader()` does.", type(dataloader).__name__,
        )  # fmt: skip
        return
    if _sampler_of(dataloader) is not sampler:
        raise ValueError(
            "The Trainer does not use this MIWVDataSampler: its training dataloader has a "
            f"{type(_sampler_of(dataloader)).__name__}. Return the sampler from `_get_train_sampler`, or use "
            "`attach(trainer, config)`; a Trainer whose `get_train_dataloader` builds a loader of its own must pass "
            "the sampler to it."
        )


def _sampler_of(dataloader: Any) -> Any:
    """The index sampler at the bottom of accelerate's wrappers around a dataloader."""
    batch_sampler = dataloader.batch_sampler
    while isinstance(batch_sampler, torch.utils.data.BatchSampler):
        # BatchSamplerShard and SkipBatchSampler hold the next one as `batch_sampler`, torch's own a `sampler`.
        inner = vars(batch_sampler).get("batch_sampler")
        if inner is None:
            return vars(batch_sampler).get("sampler")
        batch_sampler = inner
    return batch_sampler


def _check_pool_size(size: int, sampler: MIWVDataSampler, dataloader: Any) -> None:
    dataset: Any = dataloader.dataset if isinstance(dataloader, torch.utils.data.DataLoader) else range(size)
    in_trainer = len(dataset)
    if not size == sampler.pool_size == in_trainer:
        raise ValueError(
            f"The pool has {size} samples, the sampler was made for {sampler.pool_size}, and the Trainer trains on "
            f"{in_trainer}; they must be the same dataset. If `train_dataset` was replaced, attach again."
        )
