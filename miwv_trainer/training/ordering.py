"""Orders of samples, as pure functions: by difficulty, in groups of like length, and over epochs."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from miwv_trainer.choices import EpochOrder

Strategy = Literal["random", "sequential", "group_by_length"]
# As in transformers' LengthGroupedSampler.
MAX_BATCHES_PER_GROUP = 50
MIN_GROUPS = 4


def epoch_window(pass_order: Callable[[int], np.ndarray], length: int, number: int) -> np.ndarray:
    """
    The samples that an epoch trains of a selection larger than itself.

    The selection is gone through in passes, each of which holds every sample once, and each epoch takes the next
    `length` samples. So the counts of two samples differ by at most one, over all epochs. Where one pass ends within an
    epoch, the next pass puts the samples that this epoch has had already at its end, so that no epoch has one twice.

    Args:
        pass_order: Maps the number of a pass, from 0, to the `(k,)` samples in its order; k > `length`.
        length: Samples in an epoch.
        number: Epochs before this one in which the selection was in force.

    Returns:
        `(length,)` distinct samples.
    """
    passes = [pass_order(0)]
    count = len(passes[0])
    while (end := len(passes) * count) < (number + 1) * length:
        seen = passes[-1][count - end % length :]  # in the epoch in which this pass ends
        following = pass_order(len(passes))
        is_seen = np.isin(following, seen)
        passes.append(np.concatenate([following[~is_seen], following[is_seen]]))
    return np.concatenate(passes)[number * length : (number + 1) * length]


def sort_by_difficulty(indices: np.ndarray, difficulty: np.ndarray, epoch_order: EpochOrder) -> np.ndarray:
    """
    Sorts `(k,)` indices by their `(k,)` difficulty. Equally hard ones keep their order; with `"shuffled"` all do.
    """
    if epoch_order == "shuffled":
        return indices
    # A stable sort keeps equally hard samples shuffled.
    ascending = difficulty if epoch_order == "easy_to_hard" else -difficulty
    return indices[np.argsort(ascending, kind="stable")]


def split_by_length(indices: np.ndarray, lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """
    Splits indices into groups of consecutive batches, and sorts each group by descending length.

    A group holds up to 50 batches, and fewer where there would be less than 4 groups.

    Args:
        indices: `(k,)` pool indices.
        lengths: `(N,)` tokens of each sample of the pool.
        batch_size: Samples of one optimizer step over all processes.
    """
    # transformers counts the samples of one process here. Those of all make the order the same on any number of them.
    batches_per_group = max(1, min(len(indices) // (batch_size * MIN_GROUPS), MAX_BATCHES_PER_GROUP))
    starts = np.arange(0, len(indices), batches_per_group * batch_size)
    return [group[np.argsort(-lengths[group], kind="stable")] for group in np.split(indices, starts[1:])]


def group_by_length(indices: np.ndarray, lengths: np.ndarray, batch_size: int) -> np.ndarray:
    """
    Puts samples of like length next to each other and keeps the rest of the randomness, as transformers'
    `LengthGroupedSampler` does.

    The groups of `split_by_length` follow each other. The longest sample of all comes first, so that memory runs out in
    the first step or not at all.

    Args:
        indices, lengths, batch_size: As in `split_by_length`, the indices shuffled.

    Returns:
        `(k,)` the same indices in another order.
    """
    groups = split_by_length(indices, lengths, batch_size)
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
