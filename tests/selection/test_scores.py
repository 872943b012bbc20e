"""What samples are ranked by: a table worked by hand, and fits by scikit-learn."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from miwv_trainer.choices import ForwardFreeScore, ScoreName, UnorderedScore
from miwv_trainer.config import MIWVConfig
from miwv_trainer.selection.measured import Measured, compute_miwv, compute_residual_miwv
from miwv_trainer.selection.scores import (
    SCORES,
    compute_difficulty,
    get_score,
    score_samples,
)
from miwv_trainer.storage import stored_round
from tests.helpers.comparisons import find_comparisons, find_in
from tests.helpers.measured import INF, NAN, measured

#                     0     1     2    3    4    5    6     7
ZERO_SHOT = np.array([2.0, 1.00, 3.0, 0.5, NAN, 1.5, 2.5, 1.00], dtype=np.float32)
ONE_SHOT = np.array([1.5, 1.25, 3.5, 0.5, 1.0, INF, 1.0, 9.00], dtype=np.float32)
MIWV = [-0.5, 0.25, 0.5, 0.0, NAN, NAN, -1.5, 8.00]
TOKENS = np.array([10, 4, 7, 30, 5, 9, 7, 99])
GIVEN = np.array([1, NAN, 4, 3, 3, -2, 0, 9], dtype=np.float32)
BEHIND = np.array([2, 0, 1, 1, 0, 0, 1, -1])
ALONE = np.array([2.0, 2.0, 1.0, INF, 1.0, 2.5, NAN, 1.0], dtype=np.float32)
TABLE = Measured(ZERO_SHOT, ONE_SHOT, np.full(8, 0.5, dtype=np.float32), TOKENS, (7, 2), ALONE, BEHIND, GIVEN)
HAS_BOTH = np.array([True] * 7 + [False])


def named(name: str) -> MIWVConfig:
    return MIWVConfig(score=name, score_column="quality" if name == "column" else None)


def in_order(scores: np.ndarray) -> list[int]:
    """Best first, ties by lower index, as a reader would sort them."""
    return sorted((i for i in range(len(scores)) if scores[i] == scores[i]), key=lambda i: (-scores[i], i))


def test_miwv_is_one_shot_minus_zero_shot_where_both_are_finite():
    found = compute_miwv(ONE_SHOT, ZERO_SHOT)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, MIWV)
    np.testing.assert_array_equal(TABLE.miwv, MIWV)


@pytest.mark.parametrize("one_shot, zero_shot", [(INF, INF), (INF, 1), (1, -INF), (NAN, 1), (1, NAN)])
def test_no_weakness_comes_of_losses_that_are_not_finite(recwarn, one_shot, zero_shot):
    assert np.isnan(compute_miwv(np.float32([one_shot]), np.float32([zero_shot]))).all()
    assert not recwarn.list


@pytest.mark.parametrize(
    "name, best_first",
    [
        ("miwv", [2, 1, 3, 0, 6]),
        ("low_miwv", [6, 0, 3, 1, 2]),
        ("zero_shot_loss", [2, 6, 0, 5, 1, 3]),  # 5 has no one-shot loss, and needs none
        ("one_shot_loss", [2, 0, 1, 4, 6, 3]),  # 4 and 6 tie at 1.0
        ("longest", [3, 0, 5, 2, 6, 4, 1]),  # 2 and 6 tie at 7 tokens
        ("influence", [2, 1, 0]),  # 0.5 by 0; a third by 2, 3 and 6; -0.25 by 1, as 4 and 5 have no MIWV
        ("ifd", [2, 0, 1, 5, 3]),  # exp(2), 1, exp(-1) twice, and 0
        ("column", [2, 3, 4, 0, 6, 5]),  # 3 and 4 tie at 3; 1 has no number
    ],
)
def test_the_order_of_each_score_by_hand(name, best_first):
    scores = score_samples(TABLE, SCORES[name], HAS_BOTH)
    assert scores.dtype == np.float32
    assert in_order(scores) == best_first


def test_every_score_that_can_be_named_has_a_record_and_no_other_does():
    assert set(SCORES) == set(get_args(ScoreName))
    assert all(get_score(named(name)).name == name for name in get_args(ScoreName))


def test_what_the_configuration_knows_of_scores_is_what_their_records_say():
    assert {name for name, score in SCORES.items() if not score.needs_forwards} == set(get_args(ForwardFreeScore))
    assert {name for name, score in SCORES.items() if score.difficulty is None} == set(get_args(UnorderedScore))


def test_no_score_is_known_by_its_name_elsewhere_in_the_package():
    assert list(find_comparisons(set(get_args(ScoreName)), at_home="selection/scores.py")) == []
    lines = ['if score == "miwv": pass', 'x = name in ("a", "random")', 'match name:\n case "longest":\n  pass']
    assert [bool(list(find_in(line, set(get_args(ScoreName))))) for line in lines] == [True] * 3
    assert list(find_in('column("miwv")', set(get_args(ScoreName)))) == []


@pytest.mark.parametrize(
    "name, losses",
    [
        ("miwv", {"zero_shot", "one_shot"}),
        ("low_miwv", {"zero_shot", "one_shot"}),
        ("residual_miwv", {"zero_shot", "one_shot"}),
        ("zero_shot_loss", {"zero_shot"}),
        ("one_shot_loss", {"one_shot"}),
        ("random", set()),
        ("influence", {"zero_shot", "one_shot"}),
        ("ifd", {"zero_shot", "response"}),
        ("longest", set()),
        ("column", set()),
    ],
)
def test_a_score_needs_the_losses_without_which_it_is_not_known(name, losses):
    """Nothing else: each is taken away in turn."""
    lost = {
        "zero_shot": replace(TABLE, zero_shot_loss=np.full(8, NAN)),
        "one_shot": replace(TABLE, one_shot_loss=np.full(8, NAN)),
        "response": replace(TABLE, response_loss=None),
    }
    for loss, without in lost.items():
        is_known = ~np.isnan(score_samples(without, SCORES[name], HAS_BOTH))
        assert is_known.any() == (loss not in losses)
    assert losses <= SCORES[name].losses


@pytest.mark.parametrize("name", get_args(ScoreName))
def test_the_column_of_a_score_holds_what_is_ranked(name):
    score = SCORES[name]
    columns = {
        "zero_shot_loss": ZERO_SHOT,
        "one_shot_loss": np.where(np.isfinite(ONE_SHOT), ONE_SHOT, NAN),
        "miwv": MIWV,
        "response_tokens": TOKENS,
    }
    found = [column for column, values in columns.items()
             if np.array_equal(score.formula(TABLE), values, equal_nan=True)]  # fmt: skip
    assert found == [column for column in [score.column] if column is not None]
    assert score.column is None or score.column in stored_round.SCORES.names


@pytest.mark.parametrize("name", get_args(ScoreName))
def test_a_score_is_random_where_its_values_change_with_the_draw(name):
    table = measured([0.1, 0.9, 0.4], tokens=[3, 5, 7], draw=(0,))
    again = measured([0.1, 0.9, 0.4], tokens=[3, 5, 7], draw=(1,))
    is_same = np.array_equal(SCORES[name].formula(table), SCORES[name].formula(again))
    assert SCORES[name].is_random == (not is_same)


def test_a_ranking_of_the_lowest_is_called_so():
    assert SCORES["miwv"].ranking_label == "MIWV"
    assert SCORES["low_miwv"].ranking_label == "lowest MIWV"
    assert [name for name, score in SCORES.items() if score.ranks_miwv] == ["miwv", "low_miwv"]
    assert SCORES["zero_shot_loss"].ranking_label == "zero_shot_loss"


@pytest.mark.parametrize("name", get_args(ScoreName))
def test_a_sample_without_prompt_or_response_has_no_score(name):
    whole = measured([0.1, 0.9, 0.4, 0.8, 0.2, 0.5, 0.3], tokens=[3, 5, 7, 9, 2, 4, 8], similarity=np.arange(7) / 7)
    lacks = np.array([True, False, True, True, False, True, True])
    scores = score_samples(whole, SCORES[name], lacks)
    assert np.isnan(scores).tolist() == (~lacks).tolist()


def test_random_scores_are_a_draw_from_the_seed_and_the_round():
    scores = score_samples(TABLE, SCORES["random"], HAS_BOTH)
    by_numpy = np.random.default_rng((7, 2)).random(8).astype(np.float32)
    np.testing.assert_array_equal(scores[:7], by_numpy[:7])
    others = [score_samples(Measured(ZERO_SHOT, ONE_SHOT, TABLE.similarity, TOKENS, draw), SCORES["random"], HAS_BOTH)
              for draw in [(7, 3), (8, 2)]]  # fmt: skip
    assert all((other[:7] != scores[:7]).all() for other in others)


def test_random_scores_favour_nobody():
    nothing = np.full(10, np.nan, dtype=np.float32)
    highest = np.zeros(10)
    for seed in range(2000):
        drawn = Measured(nothing, nothing, nothing, np.full(10, 3), (seed, 0))
        highest[score_samples(drawn, SCORES["random"], np.ones(10, dtype=bool)).argmax()] += 1
    # Each is highest 200 times in the mean, with a standard deviation of 13.4.
    assert np.abs(highest - 200).max() < 5 * 13.4


@pytest.mark.parametrize("name", ["zero_shot_loss", "one_shot_loss"])
@pytest.mark.parametrize("loss", [INF, -INF, NAN])
def test_a_loss_that_is_not_finite_is_no_score(name, loss):
    bad = np.array([1, loss], dtype=np.float32)
    scores = score_samples(Measured(bad, bad, bad, np.array([2, 2])), SCORES[name], np.ones(2, dtype=bool))
    assert np.isnan(scores).tolist() == [False, True]


def test_what_a_fit_explains_is_taken_away_and_what_it_cannot_stays():
    # Two samples at each length and similarity, the same distance above and below what both explain: by symmetry the
    # fit runs through the middle, and the residuals are those distances.
    rng = np.random.default_rng(0)
    tokens, similarity = rng.integers(5, 400, size=12).repeat(2), rng.random(12).astype(np.float32).repeat(2)
    apart = np.stack([np.arange(1, 13) / 8, -np.arange(1, 13) / 8], axis=1).ravel()
    explained = 2 + 3 * np.log(tokens) - 0.5 * np.log(tokens) ** 2 - similarity + 4 * similarity**2
    found = compute_residual_miwv(measured(explained + apart, tokens, similarity))
    np.testing.assert_allclose(found, apart, atol=2e-5)
    assert found.argmax() == 22  # apart by 12/8


@pytest.mark.parametrize("seed", range(5))
def test_residuals_are_those_of_scikit_learn_and_uncorrelated_with_what_explains(seed):
    rng = np.random.default_rng(seed)
    tokens, similarity = rng.integers(1, 2000, size=300), rng.uniform(-0.2, 1, size=300).astype(np.float32)
    miwv = (3 / np.sqrt(tokens) + np.sin(4 * similarity) + rng.normal(size=300)).astype(np.float32)
    sample = measured(miwv, tokens, similarity)
    x = np.column_stack([np.log(tokens), np.log(tokens) ** 2, similarity, similarity.astype(float) ** 2])
    y = sample.miwv.astype(np.float64)
    found = compute_residual_miwv(sample)
    np.testing.assert_allclose(found, y - LinearRegression().fit(x, y).predict(x), atol=1e-5)
    assert abs(found.mean()) < 1e-6
    for column in x.T:
        assert abs(np.corrcoef(found, column)[0, 1]) < 1e-5
    assert max(abs(np.corrcoef(y, column)[0, 1]) for column in x.T) > 0.05  # there was something to take away


def test_a_sample_of_which_something_is_unknown_neither_has_a_residual_nor_bends_the_fit():
    rng = np.random.default_rng(3)
    tokens, similarity, miwv = rng.integers(1, 90, size=40), rng.random(40), rng.normal(size=40)
    alone = compute_residual_miwv(measured(miwv, tokens, similarity))
    with_others = measured([*miwv, NAN, 50, 60], [*tokens, 9, 9, 9], [*similarity, 0.5, NAN, INF])
    found = compute_residual_miwv(with_others)
    np.testing.assert_allclose(found[:40], alone, atol=1e-6)
    assert np.isnan(found[40:]).all()


def test_where_nothing_explains_the_residual_is_what_is_above_the_mean():
    found = compute_residual_miwv(measured([1, 2, 6], tokens=[8, 8, 8], similarity=[0.3, 0.3, 0.3]))
    np.testing.assert_allclose(found, [-2, -1, 3], atol=1e-6)


def test_no_residual_where_nothing_is_known():
    assert np.isnan(compute_residual_miwv(measured([NAN, NAN]))).all()
    assert compute_residual_miwv(measured([])).shape == (0,)


def test_random_scores_tell_nothing_about_how_hard_samples_are():
    assert np.isnan(compute_difficulty(TABLE, SCORES["random"])).all()


@pytest.mark.parametrize(
    "name, as_hard_as",
    [
        ("miwv", MIWV),
        ("low_miwv", MIWV),  # the lowest are selected, and are the easy ones
        ("residual_miwv", MIWV),
        ("zero_shot_loss", [2.0, 1.0, 3.0, 0.5, NAN, 1.5, 2.5, 1.0]),
        ("one_shot_loss", [1.5, 1.25, 3.5, 0.5, 1.0, NAN, 1.0, 9.0]),
        ("longest", TOKENS),
        ("influence", MIWV),
        ("ifd", [1.0, np.exp(-1.0), np.exp(2.0), 0.0, NAN, np.exp(-1.0), NAN, 1.0]),
        ("column", GIVEN),
    ],
)
def test_how_hard_samples_are_is_told_by_miwv_unless_a_loss_or_length_ranks(name, as_hard_as):
    np.testing.assert_array_equal(compute_difficulty(TABLE, SCORES[name]), np.float32(as_hard_as))
