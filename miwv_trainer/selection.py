"""Scores to indices."""

from decimal import Decimal

import numpy as np


def number_selected(fraction: float, pool_size: int) -> int:
    """
    `floor(fraction * N)`, at least 1.

    Computed on the decimal digits of `fraction`: 0.29 of 100 is 29, where floating point would give 28.
    """
    return max(1, int(Decimal(repr(float(fraction))) * pool_size))


def select_top(miwv: np.ndarray, count: int) -> np.ndarray:
    """
    The samples of highest MIWV, ties by lower index.

    Args:
        miwv: `(N,)` scores; NaN where a sample could not be scored. Those are never selected.
        count: How many to select.

    Returns:
        Ascending indices, `count` of them, or fewer where fewer have a score.
    """
    order = np.argsort(-miwv, kind="stable")  # NaN sorts last
    scored = int(np.count_nonzero(~np.isnan(miwv)))
    return np.sort(order[: min(count, scored)]).astype(np.int64)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the first selection that is in the second too."""
    return len(np.intersect1d(first, second)) / len(first)
