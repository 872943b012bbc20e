"""Which samples each step trains, and what that costs in tokens, as functions of selection and seed.

Every batch of every arm is full. So that an epoch ends with a full batch too, as many samples are selected as whole
batches hold. Orders are those of the library's own sampler: an arm that is scored again follows the same order until
its second selection takes effect.
"""

import math
from dataclasses import dataclass

import numpy as np

from miwv_trainer import MIWVDataSampler
from miwv_trainer.choices import EpochOrder

TRAINED = 3  # forwards that training on a token costs: the backward takes about two


@dataclass(frozen=True)
class BatchRule:
    """
    How samples make batches.

    Args:
        size: Samples of a batch, which make an optimizer step.
        seed: Seed of the order.
        forwarded: Samples of a forward, by which `size` can be divided.
    """

    size: int
    seed: int
    forwarded: int


def round_to_batches(count: float, size: int, batch_size: int) -> int:
    """The number of samples nearest to `count` that fills whole batches: at least one, no more than `size` samples."""
    return max(1, min(round(count / batch_size), size // batch_size)) * batch_size


def fraction_of(count: int, size: int) -> float:
    """A fraction of which the library selects exactly `count` of `size` samples, with as few digits as do."""
    for digits in range(2, 10):
        fraction = math.ceil(count / size * 10**digits) / 10**digits
        if len(MIWVDataSampler(size, min(1.0, fraction))) == count:
            return min(1.0, fraction)
    return count / size


def order_samples(
    selection: np.ndarray,
    epoch: int,
    count: int,
    lengths: np.ndarray,
    batch: BatchRule,
    epoch_order: EpochOrder = "shuffled",
    difficulty: np.ndarray | None = None,
) -> np.ndarray:
    """
    The samples of a training, in its order.

    Args:
        selection: `(k,)` pool indices.
        epoch: Samples of an epoch, whole batches. A larger selection is trained over several epochs, of a smaller one
            samples are repeated within an epoch.
        count: Samples of the whole training, whole batches.
        lengths: `(N,)` tokens of each sample of the pool.
        epoch_order: As in `MIWVConfig`.
        difficulty: `(k,)` how hard each sample of the selection is, for an order by that.

    Returns:
        `(count,)` pool indices.
    """
    fraction = fraction_of(epoch, len(lengths))
    sampler = MIWVDataSampler(len(lengths), fraction, batch.seed, "group_by_length", lengths, batch.size, epoch_order)
    sampler.set_selection(selection, difficulty)
    epochs = [sampler.order(number) for number in range(math.ceil(count / epoch))]
    return np.concatenate(epochs)[:count]


def count_tokens(order: np.ndarray, lengths: np.ndarray, forwarded: int) -> int:
    """Tokens of the forwards of an order, of so many samples each, padding to the longest of them included."""
    return int(lengths[order].reshape(-1, forwarded).max(axis=1).sum()) * forwarded


def fit_to_cost(draw: np.ndarray, target: int, passes: float, lengths: np.ndarray, batch: BatchRule) -> np.ndarray:
    """
    The order of random draws that cost as much as scoring and training of an arm: as many more samples, each seen as
    often as in the arm; if the pool does not hold so many, all of it, seen more often.

    Args:
        draw: `(N,)` the whole pool in the order in which samples are drawn.
        target: Tokens that the training may forward, a trained one counted three times.
        passes: How often a sample of the arm is seen.

    Returns:
        The longest such order that costs no more than `target`, of at least one batch.
    """
    best = np.empty(0, dtype=np.int64)
    # The first training that costs more ends the search, though a longer one, with other batches, may cost less.
    while True:
        count = len(best) + batch.size
        selected = round_to_batches(count / passes, len(draw), batch.size)
        order = order_samples(draw[:selected], selected, count, lengths, batch)
        if len(best) and TRAINED * count_tokens(order, lengths, batch.forwarded) > target:
            return best
        best = order
