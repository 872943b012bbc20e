"""Which samples a later round scores again, where `rescore_budget` is less than the whole pool."""

import numpy as np

from miwv_trainer.selection.budget import count_selected

# Shares of the budget. The samples of highest last score are those whose losses decide the selection. Those unscored
# for longest and those drawn at random (the rest) let samples rise whose last score was low.
SHARE_HIGHEST = 0.6
SHARE_LONGEST_UNSCORED = 0.2
NEVER_SCORED = -1  # in the column `age` of scores.parquet


def choose_samples_to_score(
    ranked: np.ndarray, ages: np.ndarray, may_be_scored: np.ndarray, budget: float, draw: tuple[int, ...]
) -> np.ndarray:
    """
    Returns an `(N,)` mask of the samples that a round scores.

    Args:
        ranked: `(k,)` samples by their last score, best first. The other samples come after these.
        ages: `(N,)` rounds since each sample was scored. `NEVER_SCORED` counts as longest of all.
        may_be_scored: `(N,)` bool.
        budget: Share of the N samples, in (0, 1].
        draw: Seed of the random share.
    """
    count = min(count_selected(budget, len(ages)), int(may_be_scored.sum()))
    is_chosen = np.zeros(len(ages), dtype=bool)
    unranked = np.setdiff1d(np.arange(len(ages)), ranked)
    by_score = np.concatenate([ranked, unranked]).astype(np.int64)
    by_score = by_score[may_be_scored[by_score]]
    is_chosen[by_score[: round(SHARE_HIGHEST * count)]] = True

    left = by_score[~is_chosen[by_score]]
    unscored_for = np.where(ages[left] == NEVER_SCORED, np.inf, ages[left])
    by_age = left[np.argsort(-unscored_for, kind="stable")]  # equal ages by last score
    is_chosen[by_age[: round(SHARE_LONGEST_UNSCORED * count)]] = True

    # What rounding the two shares has left over goes to the random share, so that the whole budget is used.
    left = np.flatnonzero(may_be_scored & ~is_chosen)
    drawn = np.random.default_rng(draw).permutation(left)
    is_chosen[drawn[: count - is_chosen.sum()]] = True
    return is_chosen


def update_ages(is_scored: np.ndarray, ages_before: np.ndarray | None) -> np.ndarray:
    """
    Returns `(N,)` int32 rounds since each sample was scored, after a round: 0 where this round scored it.

    Args:
        is_scored: `(N,)` bool, the samples that this round scored.
        ages_before: `(N,)` ages after the round before. None for the first round.
    """
    if ages_before is None:
        return np.where(is_scored, 0, NEVER_SCORED).astype(np.int32)
    older = np.where(ages_before == NEVER_SCORED, NEVER_SCORED, ages_before + 1)
    return np.where(is_scored, 0, older).astype(np.int32)
