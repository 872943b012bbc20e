"""Which samples a later round scores again, where `rescore_budget` is a part of the pool."""

import numpy as np

from miwv_trainer.selection.choose import number_selected

# Of the budget: the samples of highest last score, and those unscored for longest; the rest is drawn at random.
SHARE_HIGHEST = 0.6
SHARE_LONGEST_UNSCORED = 0.2
NEVER = -1


def samples_to_score(
    ranked: np.ndarray, ages: np.ndarray, may_be_scored: np.ndarray, budget: float, draw: tuple[int, ...]
) -> np.ndarray:
    """
    `(N,)` which samples are scored.

    Args:
        ranked: `(k,)` samples by their last score, best first; the others come after these.
        ages: `(N,)` rounds since each sample was scored, `NEVER` for never, which is longest of all.
        may_be_scored: `(N,)`.
        budget: Share of the N samples, in (0, 1].
        draw: Seed of the random share.
    """
    count = min(number_selected(budget, len(ages)), int(may_be_scored.sum()))
    chosen = np.zeros(len(ages), dtype=bool)
    others = np.setdiff1d(np.arange(len(ages)), ranked)
    by_score = np.concatenate([ranked, others]).astype(np.int64)
    by_score = by_score[may_be_scored[by_score]]
    chosen[by_score[: round(SHARE_HIGHEST * count)]] = True

    left = by_score[~chosen[by_score]]
    unscored_for = np.where(ages[left] == NEVER, np.inf, ages[left])
    longest = left[np.argsort(-unscored_for, kind="stable")]  # equal ages by last score
    chosen[longest[: round(SHARE_LONGEST_UNSCORED * count)]] = True

    left = np.flatnonzero(may_be_scored & ~chosen)
    drawn = np.random.default_rng(draw).permutation(left)
    chosen[drawn[: count - chosen.sum()]] = True
    return chosen


def ages_after(is_scored: np.ndarray, ages_before: np.ndarray | None) -> np.ndarray:
    """`(N,)` int32 rounds since each sample was scored: 0 where it is in this one, `NEVER` where it never was."""
    if ages_before is None:
        return np.where(is_scored, 0, NEVER).astype(np.int32)
    older = np.where(ages_before == NEVER, NEVER, ages_before + 1)
    return np.where(is_scored, 0, older).astype(np.int32)
