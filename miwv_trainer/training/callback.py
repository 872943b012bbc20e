"""When: score, restore, log.

Round 0 is scored in `on_train_begin`, where the DeepSpeed engine exists and a checkpoint's weights are loaded; later
rounds in `on_epoch_begin`, which runs before the epoch's iterator is made, or in `on_step_end`, which runs before that
step's checkpoint is saved. A checkpoint carries what was scored and from where on it is in force; on a resume that is
read in `on_train_begin`, and only a round that is due at that very step is scored.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.build import pool_from_tokenized
from miwv_trainer.data.groups import add_groups
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.distributed.wrappers import check_parallelism, use_evaluation_weights
from miwv_trainer.rounds.exemplars import embeds_text, find_exemplars
from miwv_trainer.rounds.identity import Exemplars, TrainingPoint, exemplar_fingerprint, run_fingerprint
from miwv_trainer.rounds.messages import round_line
from miwv_trainer.rounds.round import check_model, difficulties_of, run_round
from miwv_trainer.scoring.isolation import preserved_rng
from miwv_trainer.scoring.layout import check_layout, context_length
from miwv_trainer.selection.scores import needs_exemplars
from miwv_trainer.storage.store import Store, StoredRound
from miwv_trainer.training.console import Console
from miwv_trainer.training.dataloader import check_batches, log_last_batch
from miwv_trainer.training.resume import checkpoint_state, keep_exemplars, pace_of, read_history
from miwv_trainer.training.sampler import MIWVDataSampler
from miwv_trainer.training.schedule import Pace, Place, RoundEntry, RunState, selection_checksum

logger = logging.getLogger(__name__)
NOT_REBUILT = (
    "`restore_callback_states_from_checkpoint=True` lets the Trainer build callbacks anew from a checkpoint's JSON, "
    "which cannot hold the pool and the sampler of a MIWVCallback. Set it to False: the MIWVCallback reads its state "
    "without it."
)


class MIWVCallback(TrainerCallback, ExportableState):
    """
    Scores the pool with the model in training and gives the sampler its selection.

    A round sees the weights that the Trainer would evaluate: those of the moment, or the averages of a schedule-free
    optimizer. Its state travels in the trainer_state.json of every checkpoint, and a resumed run goes on from there by
    itself.

    Args:
        config ([`MIWVConfig`]): What to select and how to score.
        sampler ([`MIWVDataSampler`]): The one that the Trainer's `_get_train_sampler` returns.
        pool ([`Pool`], *optional*):
            The training dataset as token ids. By default read from the Trainer's dataloader, whose dataset has lost
            the columns that the model does not take; a text embedder then sees decoded prompts.

    Attributes:
        rounds: The rounds of this run so far, as they lie on disk.
        log: Gets the statistics of each round; `attach` sets it to the `log` of [`~transformers.Trainer`].
    """

    def __init__(self, config: MIWVConfig, sampler: MIWVDataSampler, pool: Pool | None = None) -> None:
        if config is None or sampler is None:
            raise TypeError(f"A MIWVCallback needs a configuration and a sampler. {NOT_REBUILT}")
        for name in ("fraction", "epoch_order"):
            if getattr(sampler, name) != getattr(config, name):
                raise ValueError(
                    f"The sampler was made with `{name}` {getattr(sampler, name)!r}, the configuration with "
                    f"{getattr(config, name)!r}; give both the same."
                )
        self.config = replace(config, sampler_seed=sampler.seed)
        self.sampler = sampler
        self.pool = pool
        self.rounds: list[StoredRound] = []
        self.log: Callable[[dict[str, float]], None] | None = None
        self._console = Console(shows=False)
        self._exemplars: Exemplars | None = None
        self._store: Store | None = None
        self._epoch = 0
        self._is_mid_epoch = False
        self._run_state: RunState | None = None
        self._trainer_state: TrainerState | None = None

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into a checkpoint's trainer_state.json, under this class's name."""
        current = None
        if self._run_state is not None and self._trainer_state is not None:
            current = replace(self._run_state, global_step=self._trainer_state.global_step).to_dict()
        return {"args": {"config": None, "sampler": None}, "attributes": {"run_state": current}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.restore_callback_states_from_checkpoint:
            raise ValueError(NOT_REBUILT)
        model, dataloader = kwargs["model"], kwargs["train_dataloader"]
        check_parallelism(args, model)
        world = World.current(args.device, model, args.disable_tqdm)
        self._console = Console.of(args)
        _check_dataloader(dataloader, self.sampler)
        with preserved_rng():
            if self.pool is None:
                with world.run_together("reading the pool"):
                    self.pool = pool_from_tokenized(
                        dataloader.dataset,
                        kwargs.get("processing_class"),
                        model.config,
                        with_texts=embeds_text(self.config),
                    )
                    self.pool = add_groups(self.pool, dataloader.dataset, self.config.group_column)
            _check_pool_size(len(self.pool), self.sampler, dataloader)
            check_model(model, self.pool)
            check_layout(model, self.config)
            check_batches(args, self.sampler)
            if world.is_main:
                log_last_batch(args, self.sampler)
            before = checkpoint_state(state, args, type(self).__name__, was_begun=bool(self.rounds))
            self._store = Store(self.config.scores_dir or args.output_dir)
            with world.run_together("claiming the output folder"):
                if world.is_main:
                    self._store.claim()
            self._trainer_state = state
            self._run_state = self._new_run_state(model, world, pace_of(dataloader, args))
            self._epoch, made = divmod(state.global_step, self._run_state.steps_per_epoch)
            self._is_mid_epoch = made > 0
            with use_evaluation_weights(kwargs["optimizer"]):
                if before is None:
                    self._begin(model, world)
                else:
                    self._resume(model, world, before)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # `set_epoch` of accelerate does not reach a sampler after a mid-epoch resume on several ranks.
        self.sampler.set_epoch(self._epoch)
        if self.config.rescore_strategy == "epoch" and self._is_due(state):
            self._rescore(args, kwargs, Place(self._epoch, 0, state.global_step))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self._store is not None:
            self._store.set_aside(len(self.rounds))
            self._store.release()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._epoch += 1
        self._is_mid_epoch = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Where training is told to stop, a checkpoint may have been saved and a grace period be running.
        if self.config.rescore_strategy == "steps" and self._is_due(state) and not control.should_training_stop:
            should_log = control.should_log
            self._rescore(args, kwargs, self._pace.first_free(state.global_step))
            control.should_log = should_log  # the statistics were logged, the step's loss not yet

    def _rescore(self, args: TrainingArguments, parts: Mapping[str, Any], place: Place) -> None:
        model = parts["model"]
        with preserved_rng(), use_evaluation_weights(parts["optimizer"]):
            self._score(model, World.current(args.device, model, args.disable_tqdm), place)

    @property
    def _pace(self) -> Pace:
        assert self._run_state is not None
        return Pace(self._run_state.steps_per_epoch, self._run_state.effective_batch, self._run_state.look_ahead)

    def _is_due(self, state: TrainerState) -> bool:
        """Whether a round is to be scored after this step, if steps are left that could train on it."""
        assert self._run_state is not None
        step, strategy = state.global_step, self.config.rescore_strategy
        if strategy == "no" or step <= self._run_state.history[-1].global_step:
            return False
        if strategy == "epoch":
            return not self._is_mid_epoch and step < state.max_steps
        assert self.config.rescore_steps is not None
        return step % self.config.rescore_steps == 0 and self._pace.first_free(step).global_step < state.max_steps

    def _new_run_state(self, model: nn.Module, world: World, pace: Pace) -> RunState:
        assert self.pool is not None
        return RunState(
            global_step=0,
            sampler_seed=self.sampler.seed,
            train_sampling_strategy=self.sampler.strategy,
            epoch_order=self.sampler.epoch_order,
            world_size=world.size,
            fingerprint=run_fingerprint(self.pool, self.config, context_length(model, self.config)),
            history=[],
            **asdict(pace),
        )

    def _begin(self, model: nn.Module, world: World) -> None:
        """Training starts: what another run left is moved aside and round 0 scored."""
        assert self._store is not None and self.pool is not None
        self._exemplars = find_exemplars(model, self.pool, self.config, self._store, world, reuse=False)
        self.rounds = []
        # Round 0 may have been scored by a run that died before its first checkpoint.
        self._set_aside(world, 1)
        self._score(model, world, Place(0, 0, 0))

    def _resume(self, model: nn.Module, world: World, before: RunState) -> None:
        """Brings rounds, selections and order to where the checkpoint stood; scores a round that is due just there."""
        assert self._run_state is not None and self._store is not None and self.pool is not None
        assert self._trainer_state is not None
        step, fingerprint = self._trainer_state.global_step, self._run_state.fingerprint
        before.check_fits(self._run_state)
        found: list[StoredRound] = []
        with world.run_together("reading the rounds"):
            if world.is_main:
                found = read_history(self._store, before.history, fingerprint, step)
                if needs_exemplars(self.config):
                    context = context_length(model, self.config)
                    keep_exemplars(self._store, found[0], exemplar_fingerprint(self.pool, self.config, context))
        self.rounds = world.broadcast_from_main(found)
        self._exemplars = find_exemplars(model, self.pool, self.config, self._store, world, reuse=True)
        ahead = max(before.look_ahead, self._run_state.look_ahead)
        self._run_state = replace(self._run_state, look_ahead=ahead, history=list(before.history))
        for entry, stored in zip(before.history, self.rounds, strict=True):
            self._put_in_force(stored, Place(entry.epoch, entry.position, step))
        if world.is_main:
            logger.info("Resumed at step %d with %d round(s).", step, len(self.rounds))
        # Rounds that were scored after the checkpoint stay: where the same weights come to the same step, the round of
        # that step is read; else they are moved aside.
        if self._is_due(self._trainer_state):
            self._score(model, world, self._pace.first_free(step))

    def _set_aside(self, world: World, first: int) -> None:
        with world.run_together("moving rounds aside"):
            if world.is_main and self._store is not None:
                self._store.set_aside(first)

    def _score(self, model: nn.Module, world: World, place: Place) -> None:
        """Adds a round, scored with the model as it is, in force from a place on."""
        assert self._store is not None and self.pool is not None and self._exemplars is not None
        assert self._trainer_state is not None and self._run_state is not None
        with world.run_together("placing a round"):
            if self.rounds and self.sampler.is_drawn(place.epoch, place.position):
                raise RuntimeError(
                    f"The selection of round {len(self.rounds)} was to take effect at position {place.position} of "
                    f"epoch {place.epoch}, but the training dataloader has drawn beyond that: it draws further ahead "
                    f"than its workers and prefetch factor tell ({self._pace.look_ahead} steps), or a callback ended "
                    'an epoch early. Use the Trainer\'s own dataloader, or `rescore_strategy="epoch"`.'
                )
        step = self._trainer_state.global_step
        moment = TrainingPoint(len(self.rounds), step, step // self._run_state.steps_per_epoch)
        notes = {"takes_effect": {**asdict(place), "steps_after_scoring": place.global_step - step}}
        previous = self.rounds[-1] if self.rounds else None
        current = run_round(model, self.pool, self._exemplars, self.config, self._store, world, moment, notes, previous)
        if world.is_main:
            self._console.tell(round_line(current, previous))
            logger.info(
                "Round %d takes effect at position %d of epoch %d, %d steps after scoring.",
                current.number, place.position, place.epoch, place.global_step - step,
            )  # fmt: skip
        self.rounds.append(current)
        checksum = selection_checksum(current.selection)
        self._run_state.history.append(RoundEntry(current.number, step, place.epoch, place.position, checksum))
        self._put_in_force(current, place)
        self._log_statistics(current)

    def _log_statistics(self, current: StoredRound) -> None:
        """Through the Trainer's own log, which every rank calls; the cost of all rounds as a share of training's."""
        assert self._trainer_state is not None and self._run_state is not None
        if self.log is None:
            return
        epochs = self._trainer_state.max_steps / self._run_state.steps_per_epoch
        share = sum(each.summary["epochs"] for each in self.rounds) / epochs
        found = {"round": current.number, **current.summary["statistics"], "share_of_training": share}
        self.log({f"miwv/{name}": value for name, value in found.items()})

    def _put_in_force(self, current: StoredRound, place: Place) -> None:
        difficulty = None if self.config.epoch_order == "shuffled" else difficulties_of(current, self.config)
        if current.number == 0:
            self.sampler.set_selection(current.selection, difficulty)
        else:
            self.sampler.switch_selection(current.selection, place.epoch, place.position, difficulty)
        missing = len(self.sampler) - len(current.selection)
        if missing > 0:
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
