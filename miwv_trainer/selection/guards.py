"""Which samples may be selected at all, and how they are ranked within bands of length.

MIWV is a difference of two means over few or many response tokens: short responses, unrelated exemplars and mislabelled
samples crowd its top. Each guard is off by default.
"""

import math
from collections.abc import Iterator
from decimal import Decimal

import numpy as np

from miwv_trainer.config import MIWVConfig
from miwv_trainer.selection.scores import Measured


def apply_guards(scores: np.ndarray, measured: Measured, config: MIWVConfig) -> tuple[np.ndarray, dict[str, int]]:
    """
    `(N,)` which samples have a score and pass the guards, and how many of those with a score each guard leaves out.

    A sample counts under the first guard that leaves it out.
    """
    may = ~np.isnan(scores)
    left_out: dict[str, int] = {}
    for guard, those in iterate_guards(scores, measured, config):
        left_out[guard] = int(those.sum())
        may = may & ~those
    return may, left_out


def iterate_guards(scores: np.ndarray, measured: Measured, config: MIWVConfig) -> Iterator[tuple[str, np.ndarray]]:
    """
    Each guard's name, and `(N,)` which samples it is the first to leave out.

    Guards apply one after the other; the quantiles of `loss_band` and `quantile_band` are of the samples that are left
    by then.
    """
    may = ~np.isnan(scores)
    for name, values in (("min_response_tokens", measured.response_tokens), ("min_similarity", measured.similarity)):
        least = getattr(config, name)
        if least > (0 if name == "min_response_tokens" else -1):
            keep = values >= least
            yield f"{name}={least}", may & ~keep
            may = may & keep
    for name, values in (("loss_band", measured.zero_shot_loss), ("quantile_band", scores)):
        band = getattr(config, name)
        if band != [0.0, 1.0] and may.any():
            low, high = _ends_of_band(values[may], band)
            keep = (values >= low) & (values <= high)
            yield f"{name}={band}", may & ~keep
            may = may & keep


def _ends_of_band(scores: np.ndarray, band: list[float]) -> tuple[float, float]:
    """
    The lowest and the highest score between two quantiles, both included.

    Which these are is computed on the decimal digits: of 101 scores, the 30th is the quantile 0.29, where floating
    point would leave it out.
    """
    ascending = np.sort(scores)
    low, high = (Decimal(repr(quantile)) * (len(scores) - 1) for quantile in band)
    return ascending[math.ceil(low)], ascending[math.floor(high)]


def length_bands(may: np.ndarray, response_tokens: np.ndarray, bands: int) -> np.ndarray:
    """
    `(N,)` the band of each allowed sample, from 0 for the shortest responses, -1 elsewhere.

    Bands are of equal size, the first ones larger by one where it does not divide; equal lengths by lower index.
    """
    band = np.full(len(may), -1, dtype=np.int64)
    candidates = np.flatnonzero(may)
    by_length = candidates[np.argsort(response_tokens[candidates], kind="stable")]
    for number, members in enumerate(np.array_split(by_length, bands)):
        band[members] = number
    return band


def ranking(scores: np.ndarray, bands: np.ndarray) -> np.ndarray:
    """
    `(k,)` the samples that are in a band, best first.

    The highest of each band come before the second highest of each: by the share of its own band that stands above a
    sample, then by score, then by lower index. With one band that is the order of the scores.
    """
    place = np.full(len(scores), np.inf)
    for number in range(bands.max(initial=-1) + 1):
        members = np.flatnonzero(bands == number)
        members = members[np.argsort(-scores[members], kind="stable")]
        place[members] = np.arange(len(members)) / max(len(members), 1)
    candidates = np.flatnonzero(bands >= 0)
    return candidates[np.lexsort((candidates, -scores[candidates], place[candidates]))]
