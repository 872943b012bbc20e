"""The guards: which samples may be selected at all.

MIWV is a difference of two means over few or many response tokens. Short responses, unrelated exemplars and mislabelled
samples crowd its top. Every guard is off by default, but for the bound that belongs to a score.
"""

import math
from collections.abc import Iterator
from decimal import Decimal

import numpy as np

from miwv_trainer.config import MIWVConfig
from miwv_trainer.selection.measured import Measured
from miwv_trainer.selection.scores import get_score, name_bound


def apply_guards(scores: np.ndarray, measured: Measured, config: MIWVConfig) -> tuple[np.ndarray, dict[str, int]]:
    """
    Finds the samples that have a score and pass all guards.

    Args:
        scores: `(N,)`, NaN where a sample has none.

    Returns:
        An `(N,)` mask, and how many samples each guard excludes. A sample is counted at the first guard that excludes
        it.
    """
    is_left = ~np.isnan(scores)
    left_out: dict[str, int] = {}
    for guard, is_excluded in iterate_guards(scores, measured, config):
        left_out[guard] = int(is_excluded.sum())
        is_left = is_left & ~is_excluded
    return is_left, left_out


def iterate_guards(scores: np.ndarray, measured: Measured, config: MIWVConfig) -> Iterator[tuple[str, np.ndarray]]:
    """
    Yields the name of each guard that is on, and an `(N,)` mask of the samples that it is the first to exclude.

    Guards apply one after the other. The quantiles of `loss_band` and `quantile_band` are those of the samples that the
    earlier guards leave.
    """
    is_left = ~np.isnan(scores)
    # These come first, so that the quantiles below are those of samples that could be selected. Else short responses,
    # whose noisy losses lie at both ends, would fill the bands.
    least_values = (
        ("min_response_tokens", config.min_response_tokens, 0, measured.response_tokens),
        ("min_similarity", config.min_similarity, -1, measured.similarity),
    )
    for name, least, least_when_off, values in least_values:
        if least > least_when_off:
            is_kept = values >= least  # false for the similarity NaN of a sample without exemplar
            yield f"{name}={least}", is_left & ~is_kept
            is_left = is_left & is_kept
    score = get_score(config)
    bound = name_bound(score)
    if bound is not None:
        # On by itself: the method leaves these out, and the highest of them would else come first.
        is_kept = score.formula(measured) <= score.most
        yield bound, is_left & ~is_kept
        is_left = is_left & is_kept
    bands = (
        ("loss_band", config.loss_band, measured.zero_shot_loss),
        ("quantile_band", config.quantile_band, scores),
    )
    for name, band, values in bands:
        if band != [0.0, 1.0] and is_left.any():
            low, high = _find_band_ends(values[is_left], band)
            is_kept = (values >= low) & (values <= high)
            yield f"{name}={band}", is_left & ~is_kept
            is_left = is_left & is_kept


def _find_band_ends(values: np.ndarray, band: list[float]) -> tuple[float, float]:
    """Returns the lowest and the highest of the values between two quantiles, both included."""
    ascending = np.sort(values)
    # On the decimal digits: of 101 values, the 30th is the quantile 0.29. In floating point, 0.29 * 100 is below 29, so
    # that a band that ends at 0.29 would exclude it.
    low, high = (Decimal(repr(quantile)) * (len(values) - 1) for quantile in band)
    return ascending[math.ceil(low)], ascending[math.floor(high)]
