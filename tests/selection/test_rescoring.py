"""Which samples a later round scores again, worked by hand, and how old scores become."""

import numpy as np
import pytest

from miwv_trainer.selection.rescoring import NEVER_SCORED, choose_samples_to_score, update_ages

ALL = np.ones(20, dtype=bool)


def choose(ranked, ages, may_be_scored=ALL, budget=0.5, draw=(0,)) -> list[int]:
    found = choose_samples_to_score(np.asarray(ranked), np.asarray(ages), may_be_scored, budget, draw)
    return np.flatnonzero(found).tolist()


def test_the_highest_the_longest_unscored_and_a_draw_share_the_budget():
    ages = [1] * 20
    ages[3], ages[17] = 5, NEVER_SCORED
    found = choose(list(range(19, -1, -1)), ages)
    # Ten: 19 to 14 by score; of the others the two unscored for longest are 17 (already chosen) and 3, then 13.
    assert set(range(14, 20)) | {3, 13} <= set(found) and len(found) == 10


def test_a_sample_that_was_never_scored_has_waited_longest():
    ages = [9] * 20
    ages[2] = NEVER_SCORED
    found = choose(list(range(20)), ages, budget=0.25)
    # Five: three by score, which 2 is among; one by age: the best of equal ages.
    assert {0, 1, 2, 3} <= set(found)
    found = choose(list(range(19, -1, -1)), ages, budget=0.25)
    assert {19, 18, 17, 2} <= set(found) and len(found) == 5


def test_unranked_samples_come_after_the_ranked_ones():
    found = choose([7, 5], [0] * 20, budget=0.15)
    # Three: two by score (0.6 of three), one by age among the rest, which is the lowest index.
    assert found == [0, 5, 7]


def test_samples_that_may_not_be_scored_are_not():
    may = np.arange(20) % 2 == 0
    assert choose(list(range(20)), [1] * 20, may, budget=1.0) == list(range(0, 20, 2))
    assert set(choose(list(range(20)), [1] * 20, may, budget=0.3)) <= set(range(0, 20, 2))


@pytest.mark.parametrize("budget, count", [(0.05, 1), (0.29, 5), (0.3, 6), (1.0, 20)])
def test_as_many_are_scored_as_the_budget_says(budget, count):
    assert len(choose(np.arange(20), [1] * 20, budget=budget)) == count


def test_the_draw_decides_the_random_share_alone():
    draws = [set(choose(list(range(20)), [1] * 20, draw=(0, number))) for number in range(30)]
    assert set.intersection(*draws) == set(range(8))  # six by score and, ages being equal, the next two by score
    assert set.union(*draws) == set(range(20))


def test_ages_by_hand():
    is_scored = np.array([True, False, True, False])
    first = update_ages(is_scored, None)
    assert first.dtype == np.int32 and first.tolist() == [0, NEVER_SCORED, 0, NEVER_SCORED]
    assert update_ages(~is_scored, first).tolist() == [1, 0, 1, 0]
    assert update_ages(np.array([True, False, False, False]), first).tolist() == [0, NEVER_SCORED, 1, NEVER_SCORED]
