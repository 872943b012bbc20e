"""The order of an epoch, composed from the selections that are in force in it. Pure: the same on every rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from miwv_trainer.choices import EpochOrder
from miwv_trainer.training.ordering import Strategy, epoch_window, group_by_length, sort_by_difficulty, split_by_length


@dataclass(frozen=True)
class ScheduledSelection:
    """
    A selection, and from where on it is in force.

    Args:
        epoch: The epoch in which it takes effect.
        position: The position of that epoch's order from which on it does.
        selection: `(k,)` ascending pool indices.
        difficulty: `(k,)` how hard each of them is, or None where the order does not depend on it.
    """

    epoch: int
    position: int
    selection: np.ndarray
    difficulty: np.ndarray | None = None


@dataclass(frozen=True)
class OrderRules:
    """
    What the order of an epoch follows.

    Args:
        num_samples: Positions in an epoch.
        seed: Seed of the order.
        strategy, epoch_order: As in `MIWVDataSampler`.
        lengths, batch_size: As in `MIWVDataSampler`, and not None where the strategy is `"group_by_length"`.
    """

    num_samples: int
    seed: int
    strategy: Strategy
    epoch_order: EpochOrder
    lengths: np.ndarray | None
    batch_size: int | None

    def compose(self, selections: Sequence[ScheduledSelection], epoch: int) -> np.ndarray:
        """
        `(num_samples,)` pool indices in the order of an epoch.

        Args:
            selections: At least one, the first in force from the beginning, each after the one before.
        """
        order = np.empty(self.num_samples, dtype=np.int64)
        at_start = [each for each in selections if (each.epoch, each.position) <= (epoch, 0)][-1]
        within = [each for each in selections if each.epoch == epoch and each.position > 0]
        positions = [0, *(each.position for each in within)]
        for position, current in zip(positions, (at_start, *within), strict=True):
            ordered = self._order_selection(current, epoch)
            # At most `position` samples have been seen. A selection that fills an epoch has that many others at least,
            # so that none of the seen is repeated.
            is_seen = np.isin(ordered, order[:position])
            unseen_first = np.concatenate([ordered[~is_seen], ordered[is_seen]])
            order[position:] = np.resize(unseen_first, self.num_samples - position)
        return order

    def _order_selection(self, current: ScheduledSelection, epoch: int) -> np.ndarray:
        """`(min(k, num_samples),)` the samples that an epoch takes of a selection, in the order of that epoch."""
        chosen = self._choose_for_epoch(current, epoch)
        if current.difficulty is not None:
            difficulty = current.difficulty[np.searchsorted(current.selection, chosen)]
            chosen = sort_by_difficulty(chosen, difficulty, self.epoch_order)
        if self.lengths is None or self.batch_size is None:
            return chosen
        if self.epoch_order == "shuffled":
            return group_by_length(chosen, self.lengths, self.batch_size)
        # The longest sample is not put first: it would break the order by difficulty.
        return np.concatenate(split_by_length(chosen, self.lengths, self.batch_size))

    def _choose_for_epoch(self, current: ScheduledSelection, epoch: int) -> np.ndarray:
        epochs_before = epoch - current.epoch
        if len(current.selection) <= self.num_samples:
            return self._permute(current, epochs_before)
        return epoch_window(lambda number: self._permute(current, number), self.num_samples, epochs_before)

    def _permute(self, current: ScheduledSelection, number: int) -> np.ndarray:
        """The whole selection in its order of the `number`-th pass, from 0. Small selections make one pass an epoch."""
        if self.strategy == "sequential":
            return current.selection
        # Seeded by both numbers: their sum would give seed 7 in epoch 1 the order of seed 8 in epoch 0.
        return np.random.default_rng([self.seed, current.epoch + number]).permutation(current.selection)
