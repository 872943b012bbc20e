"""A selection to the order of an epoch."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from miwv_trainer.config import EpochOrder

Strategy = Literal["random", "sequential", "group_by_length"]
MOST_BATCHES_A_GROUP = 50
FEWEST_GROUPS = 4


def epoch_window(pass_order: Callable[[int], np.ndarray], length: int, number: int) -> np.ndarray:
    """
    What an epoch takes of a selection larger than itself: the next `length` samples of one pass after another.

    A pass holds every sample once, so that over epochs none is trained more than once oftener than another. Where an
    epoch goes from one pass to the next, the samples that it had from the end of the one are put at the end of the
    other, so that it has none twice.

    Args:
        pass_order: Number of a pass, from 0, to the `(k,)` samples of the selection in its order; k > `length`.
        length: Samples of an epoch.
        number: Epochs before this one in which the selection was in force.

    Returns:
        `(length,)` distinct samples.
    """
    passes = [pass_order(0)]
    count = len(passes[0])
    while (end := len(passes) * count) < (number + 1) * length:
        had = passes[-1][count - end % length :]  # by the epoch in which this pass ends
        following = pass_order(len(passes))
        is_had = np.isin(following, had)
        passes.append(np.concatenate([following[~is_had], following[is_had]]))
    return np.concatenate(passes)[number * length : (number + 1) * length]


def by_difficulty(indices: np.ndarray, difficulty: np.ndarray, epoch_order: EpochOrder) -> np.ndarray:
    """
    `(k,)` indices sorted by their `(k,)` difficulty; equally hard ones keep their order, and all do if `"shuffled"`.
    """
    if epoch_order == "shuffled":
        return indices
    ascending = difficulty if epoch_order == "easy_to_hard" else -difficulty
    return indices[np.argsort(ascending, kind="stable")]


def length_groups(indices: np.ndarray, lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """
    Groups of up to 50 batches, but at least 4 groups where there are so many batches, each by descending length.

    Args:
        indices: `(k,)` pool indices; each group takes the next of them.
        lengths: `(N,)` tokens of each sample of the pool.
        batch_size: Samples of one optimizer step over all processes, so that the order does not depend on their number.
    """
    batches_a_group = max(1, min(len(indices) // (batch_size * FEWEST_GROUPS), MOST_BATCHES_A_GROUP))
    starts = np.arange(0, len(indices), batches_a_group * batch_size)
    return [group[np.argsort(-lengths[group], kind="stable")] for group in np.split(indices, starts[1:])]


def group_by_length(indices: np.ndarray, lengths: np.ndarray, batch_size: int) -> np.ndarray:
    """
    Puts samples of like length together and keeps the rest of the randomness, as transformers' `LengthGroupedSampler`.

    The `length_groups` of shuffled indices, one after the other; the longest sample of all comes first, so that memory
    runs out at once or not at all.

    Args:
        indices, lengths, batch_size: As in `length_groups`, the indices shuffled.

    Returns:
        `(k,)` the same indices in another order.
    """
    groups = length_groups(indices, lengths, batch_size)
    order = np.concatenate(groups)
    starts = np.cumsum([0, *(len(group) for group in groups[:-1])])
    longest = starts[np.argmax(lengths[order[starts]])]
    order[[0, longest]] = order[[longest, 0]]
    return order


def check_strategy(strategy: str, pool_size: int, lengths: np.ndarray | None, batch_size: int | None) -> None:
    """
    Raises:
        ValueError: an unknown strategy, or `"group_by_length"` without lengths of the pool or without a batch size.
    """
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


def check_epoch_order(epoch_order: str, strategy: str) -> None:
    """
    Raises:
        ValueError: an unknown order, or one by difficulty beside `"sequential"`.
    """
    if epoch_order not in get_args(EpochOrder):
        allowed = ", ".join(f'"{name}"' for name in get_args(EpochOrder))
        raise ValueError(f"`epoch_order` must be one of {allowed}, but got {epoch_order!r}.")
    if strategy == "sequential" and epoch_order != "shuffled":
        raise ValueError(
            f'`strategy="sequential"` is the order of the pool and `epoch_order="{epoch_order}"` is another: an epoch '
            'has one. Set `strategy="random"`, or leave `epoch_order` at "shuffled".'
        )
