"""Which samples guards leave, worked by hand."""

import numpy as np
import pytest

from miwv_trainer.config import MIWVConfig
from miwv_trainer.selection.guards import apply_guards
from tests.helpers.measured import NAN, measured

#                 0    1    2    3    4    5    6    7
SCORES = np.array([5.0, 1.0, NAN, 3.0, 4.0, 2.0, 9.0, 0.0], dtype=np.float32)
TABLE = measured(SCORES, tokens=[20, 19, 50, 21, 3, 80, 20, 40], similarity=[0.9, 0.4, 0.9, NAN, 0.5, 0.3, 0.2, 0.31])


def left(config: MIWVConfig, scores: np.ndarray = SCORES, table=TABLE) -> tuple[list[int], dict[str, int]]:
    may, left_out = apply_guards(scores, table, config)
    return np.flatnonzero(may).tolist(), left_out


def test_without_guards_every_sample_that_has_a_score_is_allowed():
    assert left(MIWVConfig()) == ([0, 1, 3, 4, 5, 6, 7], {})


def test_short_responses_are_left_out_and_those_of_just_enough_tokens_are_not():
    config = MIWVConfig(min_response_tokens=20)
    assert left(config) == ([0, 3, 5, 6, 7], {"min_response_tokens=20": 2})


def test_unrelated_exemplars_are_left_out_and_so_are_samples_without():
    # 0.3 is just enough, in the float32 of the similarities too; 3 has no similarity.
    assert left(MIWVConfig(min_similarity=0.3)) == ([0, 1, 4, 5, 7], {"min_similarity=0.3": 2})


def test_a_similarity_of_just_enough_is_allowed_whatever_the_digits():
    for percent in range(1, 100):
        for least in (percent / 100, np.float64(percent / 100)):
            config = MIWVConfig(min_similarity=least)
            assert left(config, np.zeros(1, dtype=np.float32), measured([0], similarity=[least]))[0] == [0], least


def test_the_quantile_band_is_of_the_scores_by_hand():
    # Seven scores 0, 1, 2, 3, 4, 5, 9 at the quantiles 0, 1/6, ..., 1: the band keeps 1, 2, 3, 4 and 5.
    assert left(MIWVConfig(quantile_band=[0.1, 0.9])) == ([0, 1, 3, 4, 5], {"quantile_band=[0.1, 0.9]": 2})
    assert left(MIWVConfig(quantile_band=[0, 0.95]))[0] == [0, 1, 3, 4, 5, 7]
    assert left(MIWVConfig(quantile_band=[0.5, 1]))[0] == [0, 3, 4, 6]  # 3 is the median


def test_guards_apply_in_turn_and_a_sample_counts_once():
    config = MIWVConfig(min_response_tokens=20, min_similarity=0.3, quantile_band=[0.0, 0.95])
    # Tokens leave 0, 3, 5, 6, 7; similarity 0, 5, 7, whose scores are 5, 2, 0; the highest of these goes.
    assert left(config) == (
        [5, 7],
        {"min_response_tokens=20": 2, "min_similarity=0.3": 2, "quantile_band=[0.0, 0.95]": 1},
    )


def test_a_score_that_is_the_quantile_itself_is_in_the_band():
    # Of 101 distinct scores the k-th lowest, counted from 0, is the quantile k / 100.
    scores = np.random.default_rng(0).permutation(np.linspace(-1, 1, 101) ** 3 / 3).astype(np.float32)
    place = scores.argsort().argsort()
    for percent in range(1, 100):
        below, _ = left(MIWVConfig(quantile_band=[0, percent / 100]), scores, measured(scores))
        above, _ = left(MIWVConfig(quantile_band=[percent / 100, 1]), scores, measured(scores))
        assert below == np.flatnonzero(place <= percent).tolist()
        assert above == np.flatnonzero(place >= percent).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_a_band_between_scores_is_that_of_interpolated_quantiles(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-9, 9, size=rng.integers(1, 80)).astype(np.float32)
    band = np.sort(rng.random(2)).tolist()
    low, high = np.quantile(scores.astype(np.float64), band)
    expected = np.flatnonzero((scores >= low - 1e-9) & (scores <= high + 1e-9)).tolist()
    assert left(MIWVConfig(quantile_band=band), scores, measured(scores))[0] == expected


def test_one_sample_is_in_every_band_that_reaches_an_end_and_equal_scores_stay_together():
    assert left(MIWVConfig(quantile_band=[0, 0.5]), SCORES[:1], measured(SCORES[:1]))[0] == [0]
    same = np.full(5, 3, dtype=np.float32)
    assert left(MIWVConfig(quantile_band=[0.4, 0.6]), same, measured(same))[0] == [0, 1, 2, 3, 4]


def test_where_no_sample_is_left_the_band_has_nothing_to_say():
    config = MIWVConfig(min_response_tokens=1000, quantile_band=[0.2, 0.8])
    assert left(config) == ([], {"min_response_tokens=1000": 7})
    assert left(MIWVConfig(quantile_band=[0.2, 0.8]), np.full(8, np.nan, dtype=np.float32)) == ([], {})
