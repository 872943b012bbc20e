"""Tick positions and shades of cells: the same numbers for the SVG and the PNG of a chart."""

import math

import numpy as np

from miwv_trainer.report.layers import Axis

SHADES = 5
TICKS = 6
# A logarithmic axis over a wider range than this has ticks at powers of ten alone: 2 and 5 between them would overlap.
WIDEST_WITH_2_AND_5 = 300


def place_ticks(axis: Axis) -> list[tuple[float, str]]:
    """Positions of about six round numbers on an axis, with their labels; the axis's own ticks where it has some."""
    if axis.ticks:
        return list(axis.ticks)
    return _place_log_ticks(axis) if axis.is_log else _place_linear_ticks(axis)


def _place_log_ticks(axis: Axis) -> list[tuple[float, str]]:
    lowest_power, highest_power = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
    steps = (1, 2, 5) if axis.high / axis.low <= WIDEST_WITH_2_AND_5 else (1,)
    values = [step * 10**power for power in range(lowest_power, highest_power + 1) for step in steps]
    return [(value, f"{value:,}") for value in values if axis.low <= value <= axis.high]


def _place_linear_ticks(axis: Axis) -> list[tuple[float, str]]:
    """Multiples of the smallest of 1, 2, 5 and 10 times a power of ten that gives at most about `TICKS` of them."""
    exact_step = max((axis.high - axis.low) / TICKS, 1.0 if axis.is_whole else 0.0)
    power = 10.0 ** math.floor(math.log10(exact_step))
    # The tolerances keep 0.1 + 0.2 and its like from moving a tick off the axis or adding a digit to its label.
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= exact_step * 0.999)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
    # Adding 0.0 turns -0.0 into 0.0, which would else be labelled "-0".
    return [(number * step, f"{number * step + 0.0:,.{digits}f}") for number in range(first, last + 1)]


def grade_counts(counts: np.ndarray) -> np.ndarray:
    """Shades from 1 to `SHADES` by the logarithm of each count, and 0 where the count is 0; of the counts' shape."""
    share = np.log1p(counts) / max(np.log1p(counts.max(initial=0)), 1e-9)
    return np.where(counts > 0, np.clip(np.ceil(share * SHADES), 1, SHADES), 0).astype(np.int64)
