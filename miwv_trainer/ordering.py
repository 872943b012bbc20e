"""A selection to the order of an epoch."""

from typing import Literal

import numpy as np

Strategy = Literal["random", "sequential", "group_by_length"]

MOST_BATCHES_A_GROUP = 50
FEWEST_GROUPS = 4


def group_by_length(indices: np.ndarray, lengths: np.ndarray, batch_size: int) -> np.ndarray:
    """
    Puts samples of like length together and keeps the rest of the randomness, as transformers' `LengthGroupedSampler`.

    Groups of up to 50 batches, but at least 4 groups where there are so many batches, are sorted by descending length;
    the longest sample of all comes first, so that memory runs out at once or not at all.

    Args:
        indices: `(k,)` pool indices, shuffled.
        lengths: `(N,)` tokens of each sample of the pool.
        batch_size: Samples of one optimizer step over all processes, so that the order does not depend on their number.

    Returns:
        `(k,)` the same indices in another order.
    """
    batches_a_group = max(1, min(len(indices) // (batch_size * FEWEST_GROUPS), MOST_BATCHES_A_GROUP))
    starts = np.arange(0, len(indices), batches_a_group * batch_size)
    groups = [group[np.argsort(-lengths[group], kind="stable")] for group in np.split(indices, starts[1:])]
    order = np.concatenate(groups)
    longest = starts[np.argmax(lengths[order[starts]])]
    order[[0, longest]] = order[[longest, 0]]
    return order
