"""Indices and (seed, epoch) to an order."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from miwv_trainer.config import MIWVConfig
from miwv_trainer.selection import number_selected

STATE_VERSION = 1


class MIWVDataSampler(Sampler[int]):
    """
    Yields the indices of the current selection, shuffled anew each epoch.

    Its length is fixed when it is made, because the Trainer counts its steps before the first score exists. The order
    is a function of the selection, the seed and the epoch alone. [`MIWVCallback`] sets the selection and the epoch.

    Args:
        pool_size (`int`): Number of samples in the training dataset.
        fraction (`float`, defaults to `0.05`): Share of the pool that is selected.
        seed (`int`, defaults to `42`): Seed of the order.

    Raises:
        ValueError: a pool of fewer than two samples, or a fraction that is not in (0, 1].
    """

    def __init__(self, pool_size: int, fraction: float = MIWVConfig.fraction, seed: int = 42) -> None:
        MIWVConfig(fraction=fraction)  # the same check, the same words
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ValueError(f"`seed` must be a whole number of at least 0, but got {seed!r}.")
        if pool_size < 2:
            raise ValueError(f"`pool_size` must be at least 2, but got {pool_size}.")
        self.pool_size = pool_size
        self.fraction = fraction
        self.seed = seed
        self.epoch = 0
        self.num_samples = number_selected(fraction, pool_size)
        self.selection: np.ndarray | None = None

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.epoch).tolist())

    def order(self, epoch: int) -> np.ndarray:
        """
        `(num_samples,)` pool indices in the order of an epoch.

        Where fewer samples than `num_samples` could be scored, the selection is repeated until the length is reached.

        Raises:
            RuntimeError: nothing has been selected yet.
        """
        if self.selection is None:
            raise RuntimeError(
                "The MIWVDataSampler has no selection yet: it is set by MIWVCallback when training begins. Pass "
                "`callbacks=[MIWVCallback(config, sampler)]` to the Trainer, or use `attach(trainer, config)`."
            )
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(self.selection)
        return np.resize(shuffled, self.num_samples)

    def set_selection(self, indices: np.ndarray) -> None:
        """
        Replaces the selection from the next `iter()` on.

        Raises:
            ValueError: no indices, duplicate ones, more than `num_samples`, or some outside the pool.
        """
        selection = np.unique(np.asarray(indices, dtype=np.int64))
        if len(selection) != len(indices):
            raise ValueError(f"The selection names {len(indices) - len(selection)} samples twice.")
        if not 0 < len(selection) <= self.num_samples:
            raise ValueError(f"The selection must hold 1 to {self.num_samples} samples, but got {len(selection)}.")
        if selection[0] < 0 or selection[-1] >= self.pool_size:
            raise ValueError(
                f"The selection must lie in 0 to {self.pool_size - 1}, but spans {selection[0]} to {selection[-1]}."
            )
        self.selection = selection

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
            "epoch": self.epoch,
            "selection": None if self.selection is None else self.selection.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restores what `state_dict` gave.

        Raises:
            ValueError: the state is of another version, pool size, fraction or seed.
        """
        own = self.state_dict()
        for name in ("version", "pool_size", "fraction", "seed"):
            if state.get(name) != own[name]:
                raise ValueError(
                    f"The sampler's state does not fit: its `{name}` is {state.get(name)!r}, this sampler's is "
                    f"{own[name]!r}. Make the sampler with the same values, or start afresh."
                )
        self.epoch = state["epoch"]
        self.selection = None if state["selection"] is None else np.asarray(state["selection"], dtype=np.int64)
