"""Indices and (seed, epoch) to an order."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from miwv_trainer.config import EpochOrder, MIWVConfig
from miwv_trainer.selection.choose import number_selected
from miwv_trainer.training.ordering import (
    Strategy,
    by_difficulty,
    check_epoch_order,
    check_strategy,
    epoch_window,
    group_by_length,
    length_groups,
)

STATE_VERSION = 2


@dataclass(frozen=True)
class Switch:
    """
    A selection, as ascending pool indices, and the place in training from which on it is in force.

    `difficulty` is `(k,)` beside the selection, or None where the order does not ask for it.
    """

    epoch: int
    position: int
    selection: np.ndarray
    difficulty: np.ndarray | None = None


class MIWVDataSampler(Sampler[int]):
    """
    Yields the indices of the current selection, shuffled anew each epoch, or from easy to hard or hard to easy.

    Its length is fixed when it is made, because the Trainer counts its steps before the first score exists. The order
    of an epoch is a function of the seed, the epoch, the selections in force in it and the epochs they took effect in,
    whatever the number of processes. [`MIWVCallback`] sets the selections and the epoch.

    A selection smaller than the length is repeated within an epoch. Of a larger one each epoch trains the next part,
    until all of it has been trained and it begins anew: over the whole epochs that it is in force in, no sample is
    trained more than once oftener than another, and none twice within an epoch. The strategy and the order within an
    epoch apply to that part.

    Indices are composed as they are drawn, so that a selection may take over in the middle of an epoch, at a position
    that no loader has reached. From there on come its own indices in their order for this epoch, those first that the
    epoch has not had: a sample is trained twice in an epoch only where fewer could be scored than its length.

    Args:
        pool_size (`int`): Number of samples in the training dataset.
        fraction (`float`, defaults to `0.05`): Share of the pool that is selected.
        seed (`int`, defaults to `42`): Seed of the order.
        strategy (`str`, defaults to `"random"`):
            As `train_sampling_strategy` of `TrainingArguments`, within the selection: `"random"`, `"sequential"` (in
            pool order), or `"group_by_length"` (samples of like length share a batch).
        lengths (`np.ndarray`, *optional*): `(pool_size,)` tokens of each sample, for `"group_by_length"`.
        batch_size (`int`, *optional*):
            Samples of one optimizer step over all processes, for `"group_by_length"`.
        epoch_order (`str`, defaults to `"shuffled"`):
            `"easy_to_hard"` and `"hard_to_easy"` sort the samples of an epoch by the difficulty given with the
            selection; equally hard ones stay shuffled. With `"group_by_length"`, each group of batches is at least
            (at most) as hard as the one before, and within a group the longest come first. The longest sample of all is
            then not put first of the epoch, which would break that order. `"sequential"` takes `"shuffled"` only,
            as it is an order itself.

    Raises:
        ValueError:
            a pool of fewer than two samples, a fraction that is not in (0, 1], an unknown strategy or epoch order,
            `"group_by_length"` without lengths and batch size of the pool, or `"sequential"` with an order by
            difficulty.
    """

    def __init__(
        self,
        pool_size: int,
        fraction: float = MIWVConfig.fraction,
        seed: int = 42,
        strategy: Strategy = "random",
        lengths: np.ndarray | None = None,
        batch_size: int | None = None,
        epoch_order: EpochOrder = "shuffled",
    ) -> None:
        MIWVConfig(fraction=fraction)  # the same check, the same words
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ValueError(f"`seed` must be a whole number of at least 0, but got {seed!r}.")
        if pool_size < 2:
            raise ValueError(f"`pool_size` must be at least 2, but got {pool_size}.")
        check_strategy(strategy, pool_size, lengths, batch_size)
        check_epoch_order(epoch_order, strategy)
        self.pool_size = pool_size
        self.fraction = fraction
        self.seed = seed
        self.strategy = strategy
        self.epoch_order = epoch_order
        is_grouped = strategy == "group_by_length"
        self.lengths = lengths if is_grouped else None
        self.batch_size = batch_size if is_grouped else None
        self.epoch = 0
        self.num_samples = number_selected(fraction, pool_size)
        self._switches: list[Switch] = []
        self._drawn = (0, 0)

    @property
    def selection(self) -> np.ndarray | None:
        """`(k,)` ascending indices of the latest selection, which may not be in force yet."""
        return self._switches[-1].selection if self._switches else None

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        return self._draw(self.order(self.epoch), self._switches, len(self._switches), self.epoch)

    def _draw(self, order: np.ndarray, switches: list[Switch], known: int, epoch: int) -> Iterator[int]:
        """`order` is that of the first `known` switches; more may come while it is drawn from."""
        for position in range(self.num_samples):
            if len(switches) > known:
                order, known = self._order(switches, epoch), len(switches)
            self._drawn = (epoch, position + 1)
            yield int(order[position])

    def order(self, epoch: int) -> np.ndarray:
        """
        `(num_samples,)` pool indices in the order of an epoch, as far as its selections are known.

        Where fewer samples than `num_samples` could be scored, the selection is repeated until the length is reached.

        Raises:
            RuntimeError: nothing has been selected yet.
        """
        self._latest()
        return self._order(self._switches, epoch)

    def _latest(self) -> Switch:
        if not self._switches:
            raise RuntimeError(
                "The MIWVDataSampler has no selection yet: it is set by MIWVCallback when training begins. Pass "
                "`callbacks=[MIWVCallback(config, sampler)]` to the Trainer, or use `attach(trainer, config)`."
            )
        return self._switches[-1]

    def _order(self, switches: list[Switch], epoch: int) -> np.ndarray:
        order = np.empty(self.num_samples, dtype=np.int64)
        at_start = [switch for switch in switches if (switch.epoch, switch.position) <= (epoch, 0)][-1]
        within = [switch for switch in switches if switch.epoch == epoch and switch.position > 0]
        positions = [0, *(switch.position for switch in within)]
        for position, switch in zip(positions, (at_start, *within), strict=True):
            ordered = self._ordered(switch, epoch)
            # Of a selection that fills an epoch, at most `position` are past, so fresh ones fill the rest.
            is_past = np.isin(ordered, order[:position])
            fresh_first = np.concatenate([ordered[~is_past], ordered[is_past]])
            order[position:] = np.resize(fresh_first, self.num_samples - position)
        return order

    def _ordered(self, switch: Switch, epoch: int) -> np.ndarray:
        """`(min(k, num_samples),)` what an epoch takes of a selection, in the order of that epoch."""
        chosen = self._chosen(switch, epoch)
        if switch.difficulty is not None:
            difficulty = switch.difficulty[np.searchsorted(switch.selection, chosen)]
            chosen = by_difficulty(chosen, difficulty, self.epoch_order)
        if self.strategy != "group_by_length":
            return chosen
        assert self.lengths is not None and self.batch_size is not None
        if self.epoch_order == "shuffled":
            return group_by_length(chosen, self.lengths, self.batch_size)
        return np.concatenate(length_groups(chosen, self.lengths, self.batch_size))

    def _chosen(self, switch: Switch, epoch: int) -> np.ndarray:
        number = epoch - switch.epoch
        if len(switch.selection) <= self.num_samples:
            return self._pass(switch, number)
        return epoch_window(lambda each: self._pass(switch, each), self.num_samples, number)

    def _pass(self, switch: Switch, number: int) -> np.ndarray:
        """The whole selection for the `number`-th time, from 0 on; of one no larger than an epoch, once an epoch."""
        if self.strategy == "sequential":
            return switch.selection
        return np.random.default_rng([self.seed, switch.epoch + number]).permutation(switch.selection)

    def set_selection(self, indices: np.ndarray, difficulty: np.ndarray | None = None) -> None:
        """
        Replaces every selection from the next `iter()` on.

        Args:
            indices: `(k,)` pool indices in any order, k from 1 to `pool_size`.
            difficulty: `(k,)` how hard each of them is, high for hard; not looked at if `epoch_order="shuffled"`.

        Raises:
            ValueError:
                no indices, duplicate ones, or some outside the pool; with an order by difficulty, no difficulty, one
                of another length, or one that is not finite.
        """
        self._switches = [Switch(0, 0, *self._checked(indices, difficulty))]
        self._drawn = (0, 0)

    def switch_selection(
        self, indices: np.ndarray, epoch: int, position: int, difficulty: np.ndarray | None = None
    ) -> None:
        """
        Puts another selection in force from a position of an epoch on, which may be the one that is being drawn.

        Raises:
            ValueError: as in `set_selection`, or the place lies before that of the selection before.
            RuntimeError: nothing has been selected yet, or a loader has drawn beyond that place.
        """
        if self.is_drawn(epoch, position):
            raise RuntimeError(
                f"A selection cannot take effect at position {position} of epoch {epoch}: "
                f"{self._drawn[1]} positions of epoch {self._drawn[0]} have been drawn."
            )
        last = self._latest()
        if (epoch, position) < (last.epoch, last.position) or not 0 <= position < self.num_samples:
            raise ValueError(
                f"A selection must take effect at a position from 0 to {self.num_samples - 1}, and not before position "
                f"{last.position} of epoch {last.epoch}, where the one before does; but got position {position} of "
                f"epoch {epoch}."
            )
        self._switches.append(Switch(epoch, position, *self._checked(indices, difficulty)))

    def is_drawn(self, epoch: int, position: int) -> bool:
        """Whether the index at a position of an epoch has been drawn from the `iter()` that was begun last."""
        return (epoch, position) < self._drawn

    def _checked(self, indices: np.ndarray, difficulty: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """The indices in ascending order, and the difficulty beside them."""
        selection, places = np.unique(np.asarray(indices, dtype=np.int64), return_index=True)
        if len(selection) != len(indices):
            raise ValueError(f"The selection names {len(indices) - len(selection)} samples twice.")
        if len(selection) == 0:
            raise ValueError(f"The selection must hold 1 to {self.pool_size} samples, but got 0.")
        if selection[0] < 0 or selection[-1] >= self.pool_size:
            raise ValueError(
                f"The selection must lie in 0 to {self.pool_size - 1}, but spans {selection[0]} to {selection[-1]}."
            )
        if self.epoch_order == "shuffled":
            return selection, None
        return selection, _checked_difficulty(difficulty, len(selection), self.epoch_order)[places]

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next `iter()`."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Everything the order depends on, as JSON can hold it."""
        return {
            "version": STATE_VERSION,
            "pool_size": self.pool_size,
            "fraction": self.fraction,
            "seed": self.seed,
            "strategy": self.strategy,
            "batch_size": self.batch_size,
            "epoch_order": self.epoch_order,
            "epoch": self.epoch,
            "selections": [
                [
                    switch.epoch,
                    switch.position,
                    switch.selection.tolist(),
                    None if switch.difficulty is None else switch.difficulty.tolist(),
                ]
                for switch in self._switches
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restores what `state_dict` gave.

        Raises:
            ValueError: the state is of another version, pool size, fraction, seed, strategy, batch size or epoch order.
        """
        own = self.state_dict()
        for name in ("version", "pool_size", "fraction", "seed", "strategy", "batch_size", "epoch_order"):
            if state.get(name) != own[name]:
                raise ValueError(
                    f"The sampler's state does not fit: its `{name}` is {state.get(name)!r}, this sampler's is "
                    f"{own[name]!r}. Make the sampler with the same values, or start afresh."
                )
        self.epoch = state["epoch"]
        self._drawn = (0, 0)
        self._switches = [
            Switch(
                epoch,
                position,
                np.asarray(selection, dtype=np.int64),
                None if difficulty is None else np.asarray(difficulty, dtype=np.float64),
            )
            for epoch, position, selection, difficulty in state["selections"]
        ]


def _checked_difficulty(difficulty: np.ndarray | None, count: int, epoch_order: str) -> np.ndarray:
    if difficulty is None:
        raise ValueError(
            f'`epoch_order="{epoch_order}"` needs to know how hard each selected sample is, but got no difficulty: '
            'give one number for each index as `difficulty`, high for hard, or set `epoch_order="shuffled"`.'
        )
    difficulty = np.asarray(difficulty, dtype=np.float64)
    if difficulty.shape != (count,):
        raise ValueError(
            f"`difficulty` must hold one number for each of the {count} indices, but is of shape {difficulty.shape}."
        )
    unfit = int((~np.isfinite(difficulty)).sum())
    if unfit:
        raise ValueError(
            f"`difficulty` must be finite, but is NaN or infinite for {unfit} of {count} samples: leave these out of "
            "the selection."
        )
    return difficulty
