"""How much is selected: the size of a selection, its division over groups, and the samples that fit into a share."""

from collections.abc import Iterator
from decimal import Decimal

import numpy as np


def count_selected(fraction: float, pool_size: int) -> int:
    """Returns `floor(fraction * pool_size)`, at least 1."""
    return max(1, multiply_exactly(fraction, pool_size))


def multiply_exactly(factor: float, count: int) -> int:
    """
    Returns `floor(factor * count)`, computed on the decimal digits of the factor.

    In floating point, 0.29 * 100 is 28.999999999999996, and its floor 28.
    """
    return int(Decimal(repr(float(factor))) * count)


def apportion(weights: np.ndarray, total: int) -> np.ndarray:
    """
    Divides `total` in proportion to the weights, by Hamilton's method of largest remainders.

    Args:
        weights: `(g,)`, not negative.

    Returns:
        `(g,)` whole numbers that add up to `total`, each less than 1 away from its exact share. Equal remainders are
        rounded up at lower indices first.
    """
    # In a pool without response tokens all weights are 0.
    exact = weights / max(weights.sum(), 1) * total
    shares = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(shares - exact, kind="stable")
    shares[by_remainder[: total - shares.sum()]] += 1
    return shares


def take_within_budget(order: Iterator[int], costs: np.ndarray, budget: int) -> list[int]:
    """
    Takes samples in order until the next one would exceed the budget.

    The first sample that does not fit ends it, although a later and shorter one might fit. Otherwise the last places
    would go to short responses, whatever their rank.

    Args:
        order: Pool indices. No more are drawn than the budget could hold, because each may cost a pass over the pool.
        costs: `(N,)` whole numbers.
    """
    taken, left = [], budget
    while left > 0 and (sample := next(order, None)) is not None and costs[sample] <= left:
        taken.append(sample)
        left -= int(costs[sample])
    return taken
