"""Which samples of a pool show whether a model takes rows of trees: branches that could be confused, and windows."""

import numpy as np

from miwv_trainer.distributed.wrappers import get_inner_model
from miwv_trainer.scoring.attention import find_window
from miwv_trainer.scoring.context import get_text_config
from miwv_trainer.scoring.rows import find_scorable
from miwv_trainer.scoring.scorer import Scorer

MOST_BRANCHES = 4


def choose_samples(scorer: Scorer, exemplars: np.ndarray) -> list[np.ndarray]:
    """Groups of samples, each in one row of trees, that are scored in trees and in padded rows before the first row."""
    groups = _choose_related(scorer, exemplars)
    return groups + _choose_beyond_window(scorer, exemplars, groups)


def _choose_related(scorer: Scorer, exemplars: np.ndarray) -> list[np.ndarray]:
    """
    Groups of an exemplar of two samples or more and a few of these, which make a row with branches that could be
    confused: the shortest row, and the longest that a check may take, as a window hides nothing from short rows.
    """
    pool, context = scorer.pool, scorer.context
    can_score = np.flatnonzero(find_scorable(pool, exemplars, context))
    shared = np.bincount(exemplars[can_score], minlength=len(pool))
    crowded = np.flatnonzero(shared >= min(2, shared.max()))

    def take_branches(order: int) -> np.ndarray:
        """The first few branches of each trunk, the shortest ones if `order` is 1, the longest if it is -1."""
        by_trunk = can_score[np.lexsort((order * pool.lengths[can_score], exemplars[can_score]))]
        trunks = exemplars[by_trunk]
        return by_trunk[np.arange(len(trunks)) - np.searchsorted(trunks, trunks) < MOST_BRANCHES]

    def measure(branches: np.ndarray) -> np.ndarray:
        """Tokens of the row of each crowded trunk."""
        behind = np.bincount(exemplars[branches], weights=pool.lengths[branches], minlength=len(pool))
        return len(pool.preamble) + pool.lengths[crowded] + behind[crowded]

    def choose(trunk: int, branches: np.ndarray) -> np.ndarray:
        return np.union1d(branches[exemplars[branches] == trunk], np.intersect1d([trunk], can_score))

    short, long = take_branches(1), take_branches(-1)
    shortest = choose(int(crowded[np.argmin(measure(short))]), short)
    limit = min(scorer.limit_checked_row(exemplars), scorer.size_batches(exemplars).tokens_per_row)
    rows = np.where(measure(long) <= limit, measure(long), 0)
    longest = choose(int(crowded[np.argmax(rows)]), long)
    return [shortest, longest] if rows.any() and not np.array_equal(shortest, longest) else [shortest]


def _choose_beyond_window(scorer: Scorer, exemplars: np.ndarray, groups: list[np.ndarray]) -> list[np.ndarray]:
    """
    The sample with the longest sequence behind its exemplar, if only there a window hides something: a family that is
    given no window, or another one, has the right losses where all sequences are shorter.
    """
    pool = scorer.pool
    window = find_window(get_text_config(get_inner_model(scorer.model)))
    can_score = np.flatnonzero(find_scorable(pool, exemplars, scorer.context))
    lengths = np.zeros(len(pool), dtype=np.int64)
    lengths[can_score] = len(pool.preamble) + pool.lengths[can_score] + pool.lengths[exemplars[can_score]]
    if window is None or lengths.max() <= window or any(lengths[few].max() > window for few in groups):
        return []
    return [np.array([np.argmax(lengths)])]
