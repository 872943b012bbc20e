"""Indices and (seed, epoch) to an order."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from torch.utils.data import Sampler

from miwv_trainer.config import MIWVConfig
from miwv_trainer.ordering import Strategy, group_by_length
from miwv_trainer.selection import number_selected

STATE_VERSION = 1


@dataclass(frozen=True)
class Switch:
    """A selection, as ascending pool indices, and the place in training from which on it is in force."""

    epoch: int
    position: int
    selection: np.ndarray


class MIWVDataSampler(Sampler[int]):
    """
    Yields the indices of the current selection, shuffled anew each epoch.

    Its length is fixed when it is made, because the Trainer counts its steps before the first score exists. The order
    of an epoch is a function of the seed, the epoch, and the selections in force in it, whatever the
    number of processes. [`MIWVCallback`] sets the selections and the epoch.

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

    Raises:
        ValueError:
            a pool of fewer than two samples, a fraction that is not in (0, 1], an unknown strategy, or
            `"group_by_length"` without lengths and batch size of the pool.
    """

    def __init__(
        self,
        pool_size: int,
        fraction: float = MIWVConfig.fraction,
        seed: int = 42,
        strategy: Strategy = "random",
        lengths: np.ndarray | None = None,
        batch_size: int | None = None,
    ) -> None:
        MIWVConfig(fraction=fraction)  # the same check, the same words
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ValueError(f"`seed` must be a whole number of at least 0, but got {seed!r}.")
        if pool_size < 2:
            raise ValueError(f"`pool_size` must be at least 2, but got {pool_size}.")
        _check_strategy(strategy, pool_size, lengths, batch_size)
        self.pool_size = pool_size
        self.fraction = fraction
        self.seed = seed
        self.strategy = strategy
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
            shuffled = self._shuffled(switch.selection, epoch)
            is_past = np.isin(shuffled, order[:position])
            fresh_first = np.concatenate([shuffled[~is_past], shuffled[is_past]])
            order[position:] = np.resize(fresh_first, self.num_samples - position)
        return order

    def _shuffled(self, selection: np.ndarray, epoch: int) -> np.ndarray:
        if self.strategy == "sequential":
            return selection
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(selection)
        if self.strategy == "random":
            return shuffled
        assert self.lengths is not None and self.batch_size is not None
        return group_by_length(shuffled, self.lengths, self.batch_size)

    def set_selection(self, indices: np.ndarray) -> None:
        """
        Replaces every selection from the next `iter()` on.

        Raises:
            ValueError: no indices, duplicate ones, more than `num_samples`, or some outside the pool.
        """
        self._switches = [Switch(0, 0, self._checked(indices))]
        self._drawn = (0, 0)

    def switch_selection(self, indices: np.ndarray, epoch: int, position: int) -> None:
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
        self._switches.append(Switch(epoch, position, self._checked(indices)))

    def is_drawn(self, epoch: int, position: int) -> bool:
        """Whether the index at a position of an epoch has been drawn from the `iter()` that was begun last."""
        return (epoch, position) < self._drawn

    def _checked(self, indices: np.ndarray) -> np.ndarray:
        selection = np.unique(np.asarray(indices, dtype=np.int64))
        if len(selection) != len(indices):
            raise ValueError(f"The selection names {len(indices) - len(selection)} samples twice.")
        if not 0 < len(selection) <= self.num_samples:
            raise ValueError(f"The selection must hold 1 to {self.num_samples} samples, but got {len(selection)}.")
        if selection[0] < 0 or selection[-1] >= self.pool_size:
            raise ValueError(
                f"The selection must lie in 0 to {self.pool_size - 1}, but spans {selection[0]} to {selection[-1]}."
            )
        return selection

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
            "epoch": self.epoch,
            "selections": [[switch.epoch, switch.position, switch.selection.tolist()] for switch in self._switches],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restores what `state_dict` gave.

        Raises:
            ValueError: the state is of another version, pool size, fraction, seed, strategy or batch size.
        """
        own = self.state_dict()
        for name in ("version", "pool_size", "fraction", "seed", "strategy", "batch_size"):
            if state.get(name) != own[name]:
                raise ValueError(
                    f"The sampler's state does not fit: its `{name}` is {state.get(name)!r}, this sampler's is "
                    f"{own[name]!r}. Make the sampler with the same values, or start afresh."
                )
        self.epoch = state["epoch"]
        self._drawn = (0, 0)
        self._switches = [
            Switch(epoch, position, np.asarray(selection, dtype=np.int64))
            for epoch, position, selection in state["selections"]
        ]


def _check_strategy(strategy: str, pool_size: int, lengths: np.ndarray | None, batch_size: int | None) -> None:
    if strategy not in get_args(Strategy):
        allowed = ", ".join(f'"{name}"' for name in get_args(Strategy))
        raise ValueError(f"`strategy` must be one of {allowed}, but got {strategy!r}.")
    if strategy != "group_by_length":
        return
    if lengths is None or len(lengths) != pool_size:
        given = "none" if lengths is None else len(lengths)
        raise ValueError(
            f'`strategy="group_by_length"` needs the length of each of the {pool_size} samples of the pool, but got '
            f"{given}: give them as `lengths`."
        )
    if batch_size is None or batch_size < 1:
        raise ValueError(
            '`strategy="group_by_length"` needs the number of samples of one optimizer step over all processes, at '
            f"least 1, but got {batch_size}: give it as `batch_size`."
        )
