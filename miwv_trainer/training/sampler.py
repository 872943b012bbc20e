"""The sampler that a Trainer draws from: the selections in force, and what has been drawn of them."""

from collections.abc import Iterator
from numbers import Integral

import numpy as np
from torch.utils.data import Sampler

from miwv_trainer.checks import check_argument
from miwv_trainer.choices import EpochOrder
from miwv_trainer.config import MIWVConfig
from miwv_trainer.selection.budget import count_selected
from miwv_trainer.training.ordering import Strategy, check_epoch_order, check_strategy
from miwv_trainer.training.selection_order import OrderRules, ScheduledSelection


# No RandomSampler, and no attribute `generator`: accelerate would replace the sampler by its SeedableRandomSampler and
# ignore `__iter__`, or seed the generator (huggingface/accelerate#2110).
class MIWVDataSampler(Sampler[int]):
    """
    Yields the indices of the current selection, shuffled anew each epoch, or from easy to hard or hard to easy.

    Its length is fixed when it is made, because the Trainer counts its steps before the first score exists. The order
    of an epoch is a function of the seed, the epoch, the selections in force in it and the epochs in which they took
    effect. It does not depend on the number of processes. [`MIWVCallback`] sets the selections and the epoch.

    A selection smaller than the length is repeated within an epoch. Of a larger one, each epoch trains the next part;
    after the last part it begins again. Over the epochs in which it is in force from beginning to end, the counts of
    two samples differ by at most one, and no epoch has a sample twice. The strategy and the order within an epoch apply
    to the part.

    A new selection may take effect in the middle of an epoch, at a position that no loader has drawn. From there on the
    epoch follows the new selection in its order for this epoch. Samples not yet seen in this epoch come first, so that
    one is trained twice only where the selection holds fewer samples than the length.

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
            selection; equally hard ones stay shuffled. With `"group_by_length"`, the groups of batches are sorted by
            difficulty, and within a group the longest samples come first; the longest sample of all does not come first
            in the epoch. `"sequential"` is an order itself and takes `"shuffled"` only.

    Raises:
        TypeError: the pool's size is no whole number.
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
        MIWVConfig(fraction=fraction)  # the configuration's own check of the fraction
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ValueError(f"`seed` must be a whole number of at least 0, but got {seed!r}.")
        check_argument("MIWVDataSampler(pool_size, fraction)", "pool_size", pool_size, Integral, "a number of samples")
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
        self._is_held = False
        self.num_samples = count_selected(fraction, pool_size)
        self._rules = OrderRules(self.num_samples, seed, strategy, epoch_order, self.lengths, self.batch_size)
        self._selections: list[ScheduledSelection] = []
        # Epoch, and positions of it. What is drawn is not trained yet: with 2 workers a loader of 4 batches was seen to
        # have drawn all of them after the first step.
        self._drawn = (0, 0)

    @property
    def selection(self) -> np.ndarray | None:
        """`(k,)` ascending indices of the latest selection, which may not be in force yet."""
        return self._selections[-1].selection if self._selections else None

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        # Counted here and not in the generator, which runs from the first `next()` on: a selection may come in between.
        return self._draw(self.order(self.epoch), self._selections, len(self._selections), self.epoch)

    def _draw(
        self, order: np.ndarray, selections: list[ScheduledSelection], composed: int, epoch: int
    ) -> Iterator[int]:
        """Yields `order`, composed of the first `composed` selections, and composes it anew where more have come."""
        for position in range(self.num_samples):
            if len(selections) > composed:
                order, composed = self._rules.compose(selections, epoch), len(selections)
            self._drawn = (epoch, position + 1)
            yield int(order[position])

    def order(self, epoch: int) -> np.ndarray:
        """
        `(num_samples,)` pool indices in the order of an epoch, as far as its selections are known.

        A selection of fewer samples is repeated until the length is reached.

        Raises:
            RuntimeError: nothing has been selected yet.
        """
        self._last_selection()
        return self._rules.compose(self._selections, epoch)

    def _last_selection(self) -> ScheduledSelection:
        if not self._selections:
            raise RuntimeError(
                "The MIWVDataSampler has no selection yet: it is set by MIWVCallback when training begins. Pass "
                "`callbacks=[MIWVCallback(config, sampler)]` to the Trainer, or use `attach(trainer, config)`."
            )
        return self._selections[-1]

    def set_selection(self, indices: np.ndarray, difficulty: np.ndarray | None = None) -> None:
        """
        Replaces every selection from the next `iter()` on.

        Args:
            indices: `(k,)` pool indices in any order, k from 1 to `pool_size`.
            difficulty: `(k,)` how hard each of them is, high for hard; unused if `epoch_order="shuffled"`.

        Raises:
            ValueError:
                no indices, duplicate ones, or some outside the pool; with an order by difficulty, no difficulty, one
                of another length, or one that is not finite.
        """
        # A new list: a loader that is drawing keeps to its own, and ends its epoch as it began.
        self._selections = [ScheduledSelection(0, 0, *self._check_selection(indices, difficulty))]
        self._drawn = (0, 0)

    def switch_selection(
        self, indices: np.ndarray, epoch: int, position: int, difficulty: np.ndarray | None = None
    ) -> None:
        """
        Puts another selection in force from a position of an epoch on, which may be the one that is being drawn.

        Raises:
            ValueError: as in `set_selection`, or the selection before takes effect at a later position.
            RuntimeError: nothing has been selected yet, or a loader has drawn beyond that position.
        """
        if self.is_drawn(epoch, position):
            raise RuntimeError(
                f"A selection cannot take effect at position {position} of epoch {epoch}: "
                f"{self._drawn[1]} positions of epoch {self._drawn[0]} have been drawn."
            )
        last = self._last_selection()
        if (epoch, position) < (last.epoch, last.position) or not 0 <= position < self.num_samples:
            raise ValueError(
                f"A selection must take effect at a position from 0 to {self.num_samples - 1}, and not before position "
                f"{last.position} of epoch {last.epoch}, where the one before does; but got position {position} of "
                f"epoch {epoch}."
            )
        self._selections.append(ScheduledSelection(epoch, position, *self._check_selection(indices, difficulty)))

    def is_drawn(self, epoch: int, position: int) -> bool:
        """Whether the latest `iter()` has yielded the index at a position of an epoch."""
        return (epoch, position) < self._drawn

    def _check_selection(
        self, indices: np.ndarray, difficulty: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The indices in ascending order, and the difficulty in the same order."""
        selection, first_at = np.unique(np.asarray(indices, dtype=np.int64), return_index=True)
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
        return selection, _check_difficulty(difficulty, len(selection), self.epoch_order)[first_at]

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next `iter()`, unless `hold_epoch` has chosen it."""
        if not self._is_held:
            self.epoch = epoch

    def hold_epoch(self, epoch: int) -> None:
        """
        Chooses the order of the next `iter()`, whatever `set_epoch` is told until `release_epoch`.

        A dataloader tells `set_epoch` how often it has been iterated. The one that accelerate makes to skip batches
        begins at 0 before accelerate 1.15 (huggingface/accelerate#4071), so that a resume in a later epoch would train
        in the order of the first.
        """
        self.epoch, self._is_held = epoch, True

    def release_epoch(self) -> None:
        """Lets `set_epoch` choose the order again."""
        self._is_held = False


def _check_difficulty(difficulty: np.ndarray | None, count: int, epoch_order: str) -> np.ndarray:
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
