"""One training with its rounds: scores them, puts their selections in force, and knows where training stands.

Made when training begins. Model and optimizer belong to the Trainer, which hands them to every hook.
"""

import logging
from dataclasses import dataclass, field, replace

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, TrainerState

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.rounds.identity import Exemplars, TrainingPoint
from miwv_trainer.rounds.inputs import compute_difficulties
from miwv_trainer.rounds.messages import describe_round
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring.scorer import CheckedModel, prepare_scorer
from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import RoundNotes, StoredRound
from miwv_trainer.training.batch_check import BatchCheck
from miwv_trainer.training.console import Console
from miwv_trainer.training.proxy import prepare_proxy
from miwv_trainer.training.run_state import RoundEntry, RunState, hash_selection
from miwv_trainer.training.sampler import MIWVDataSampler
from miwv_trainer.training.schedule import EpochPosition

logger = logging.getLogger(__name__)


@dataclass
class TrainingRun:
    """
    What exists from the beginning of a training to its end.

    Args:
        trainer_state: The Trainer's own state, which counts the steps.
        state: What a checkpoint carries of the rounds.
        rounds: The rounds so far, as they lie on disk.
        proxy: A smaller model that scores in place of the one in training, if one was given.
        epoch: The epoch that training is in.
        is_mid_epoch: Whether training began within this epoch, as a resume may.
    """

    config: MIWVConfig
    sampler: MIWVDataSampler
    pool: Pool
    exemplars: Exemplars
    store: Store
    world: World
    console: Console
    trainer_state: TrainerState
    state: RunState
    rounds: list[StoredRound]
    proxy: PreTrainedModel | None = None
    epoch: int = field(init=False)
    is_mid_epoch: bool = field(init=False)
    _checked: dict[str, CheckedModel] = field(init=False, default_factory=dict)
    _hooks: list[RemovableHandle] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.epoch, steps_made = divmod(self.trainer_state.global_step, self.state.steps_per_epoch)
        self.is_mid_epoch = steps_made > 0

    def restore_selections(self) -> None:
        """Puts the selections of the rounds that a resumed run has read in force, where each of them took effect."""
        for entry, stored in zip(self.state.history, self.rounds, strict=True):
            self._put_in_force(stored, entry.epoch, entry.position)
        if self.world.is_main and self.rounds:
            logger.info("Resumed at step %d with %d round(s).", self.trainer_state.global_step, len(self.rounds))

    def describe_state(self) -> dict[str, object] | None:
        """The state for a checkpoint of this moment, as JSON can hold it; None before the first round."""
        if not self.rounds:
            return None
        return replace(self.state, global_step=self.trainer_state.global_step).to_dict()

    def watch_batches(self, model: nn.Module) -> None:
        """Compares training batches with the selection in force, until `stop_watching`."""
        check = BatchCheck(self.pool, lambda: self.epoch, self.sampler.order)
        self._hooks.append(check.watch(model))

    def stop_watching(self) -> None:
        """Removes the hooks from the model. A training that failed has left them there."""
        while self._hooks:
            self._hooks.pop().remove()

    def end_epoch(self) -> None:
        self.epoch += 1
        self.is_mid_epoch = False

    def end(self) -> None:
        """Moves rounds aside that training has not come to again, and lets other processes use the output folder."""
        self.stop_watching()
        # Such rounds remain if a resumed run trains fewer steps or rescores less often.
        self._move_aside(len(self.rounds))
        if self.world.is_main:
            self.store.release()
        # A script that ends now must not find gloo's threads alive; another training opens messages of its own.
        self.world.close()

    def find_due_position(self) -> EpochPosition | None:
        """
        Where a round takes effect if it is scored after the steps made so far.

        None where no round is due: it has been scored, or no step is left that would train on it, or training has just
        resumed within an epoch. There the Trainer begins the epoch again and skips what was trained of it; a new
        selection would make it skip other samples.
        """
        step, last_step = self.trainer_state.global_step, self.trainer_state.max_steps
        if not self.rounds:
            return EpochPosition(0, 0, 0)
        has_later_rounds = self.config.rescore_strategy != "no" or self.config.resample_each_epoch
        if not has_later_rounds or step <= self.state.history[-1].global_step:
            return None
        if self.config.rescore_strategy == "epoch" or self.config.resample_each_epoch:
            return EpochPosition(self.epoch, 0, step) if not self.is_mid_epoch and step < last_step else None
        interval = self.config.rescore_steps
        if interval is None or step % interval > 0:
            return None
        position = self.state.schedule.find_undrawn(step)
        return position if position.global_step < last_step else None

    def score_round(self, model: nn.Module, position: EpochPosition) -> dict[str, float]:
        """
        Scores a round with the model as it is, and puts its selection in force from a position on.

        Returns:
            The round's statistics, by the names under which the Trainer logs them.

        Raises:
            RuntimeError: a loader has drawn beyond that position.
        """
        # Together, because the ranks' loaders differ: if one rank alone raised, the others would wait for it in the
        # round's first collective until the launcher's timeout.
        with self.world.run_together("placing a round"):
            self._check_undrawn(position)
        step, previous = self.trainer_state.global_step, self.rounds[-1] if self.rounds else None
        is_drawn_again = self.config.resample_each_epoch and previous is not None
        point = TrainingPoint(len(self.rounds), step, step // self.state.steps_per_epoch, is_drawn_again)
        steps_after = position.global_step - step
        notes = RoundNotes(
            takes_effect={
                "epoch": position.epoch,
                "position": position.position,
                "global_step": position.global_step,
                "steps_after_scoring": steps_after,
            }
        )
        if self.pool.source is not None:
            notes["dataset"] = self.pool.source
        trained = prepare_scorer(model, self.pool, self.config, self.world, self._checked)
        scorer = prepare_proxy(self.proxy, trained)
        current = run_round(scorer, self.exemplars, self.store, point, notes, previous)
        if current.number == 0 and current.was_there:
            # A run with the same weights, such as one that died before its first checkpoint, has left round 0. Where
            # round 0 is written, `run_round` has moved all rounds of the earlier run to one folder.
            self._move_aside(1)
        if self.world.is_main:
            self.console.tell(describe_round(current, previous))
            logger.info(
                "Round %d takes effect at position %d of epoch %d, %d steps after scoring.",
                current.number, position.position, position.epoch, steps_after,
            )  # fmt: skip
        self.rounds.append(current)
        self.state.history.append(
            RoundEntry(current.number, step, position.epoch, position.position, hash_selection(current.selection))
        )
        self._put_in_force(current, position.epoch, position.position)
        return self._describe_statistics()

    def _move_aside(self, first: int) -> None:
        """Moves the rounds of an earlier run, from number `first` on, to another folder."""
        with self.world.run_together("moving rounds aside"):
            if self.world.is_main:
                self.store.archive_rounds(first)

    def _check_undrawn(self, position: EpochPosition) -> None:
        """
        Checks that a round's selection can take effect where it is to, before hours are spent on the round.

        Raises:
            RuntimeError: a loader has drawn beyond that position.
        """
        if self.rounds and self.sampler.is_drawn(position.epoch, position.position):
            raise RuntimeError(
                f"The selection of round {len(self.rounds)} was to take effect at position {position.position} of "
                f"epoch {position.epoch}, but the training dataloader has drawn beyond that: it draws further ahead "
                f"than its workers and prefetch factor tell ({self.state.look_ahead} steps), or a callback ended "
                'an epoch early. Use the Trainer\'s own dataloader, or `rescore_strategy="epoch"`.'
            )

    def _put_in_force(self, current: StoredRound, epoch: int, position: int) -> None:
        difficulty = None if self.config.epoch_order == "shuffled" else compute_difficulties(current, self.config)
        if current.number == 0:
            self.sampler.set_selection(current.selection, difficulty)
        else:
            self.sampler.switch_selection(current.selection, epoch, position, difficulty)
        # The Trainer counted its steps before the first score existed. When epochs became shorter, it was seen to end
        # after 8 of 12 steps without an error, with a learning rate above 0. So the length stays.
        missing = len(self.sampler) - len(current.selection)
        if missing > 0:
            logger.warning(
                "Only %d samples could be scored and selected; the other %d places of an epoch repeat some of them, "
                "because the length of an epoch is fixed before training.", len(current.selection), missing,
            )  # fmt: skip

    def _describe_statistics(self) -> dict[str, float]:
        """Those of the last round, and the cost of all rounds as a share of the training's."""
        current = self.rounds[-1]
        epochs = self.trainer_state.max_steps / self.state.steps_per_epoch
        share = sum(each.summary["epochs"] for each in self.rounds) / epochs
        statistics = {"round": current.number, **current.summary["statistics"], "share_of_training": share}
        return {f"miwv/{name}": value for name, value in statistics.items()}
