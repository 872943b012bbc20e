"""Selections by sorting, as a reference for the package's own."""

from collections.abc import Callable

import numpy as np

from miwv_trainer.scoring.losses import Losses


def select_highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices of the `count` highest scores, ties by lower index; samples without a score are left out."""
    scored = [index for index, score in enumerate(scores.tolist()) if score == score]
    return np.asarray(sorted(sorted(scored, key=lambda index: (-scores[index], index))[:count]), dtype=np.int64)


def ranking_by_miwv(count: int) -> Callable[[Losses], tuple[np.ndarray, np.ndarray]]:
    """For `refine`: MIWV, and its distance from the `count`-th highest; NaN where all that have one are selected."""

    def rank(losses: Losses) -> tuple[np.ndarray, np.ndarray]:
        selected = select_highest(losses.miwv, count)
        if np.isfinite(losses.miwv).sum() <= count:
            return losses.miwv, np.full(len(losses.miwv), np.nan)
        return losses.miwv, np.abs(losses.miwv - losses.miwv[selected].min())

    return rank
