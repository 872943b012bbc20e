"""How many samples are selected, and that without guards they are those of highest score."""

import numpy as np
import pytest

from miwv_trainer.config import MIWVConfig
from miwv_trainer.selection.choose import choose, number_selected, overlap
from tests.helpers.measured import NAN, measured
from tests.helpers.selecting import select_highest


@pytest.mark.parametrize(
    ("fraction", "pool_size", "expected"),
    [
        (0.01, 52_002, 520),  # the paper's Alpaca
        (0.01, 63_655, 636),  # the paper's WizardLM
        (0.05, 52_002, 2_600),
        (0.29, 100, 29),  # 0.29 * 100 is 28.999999999999996 in floating point
        (0.57, 100, 57),
        (1.0, 7, 7),
        (1, 7, 7),
        (0.999, 1_000, 999),
        (1e-05, 1_000_000, 10),
        (np.float64(0.01), 52_002, 520),
    ],
)
def test_number_selected_is_the_floor_of_fraction_times_pool_size(fraction, pool_size, expected):
    assert number_selected(fraction, pool_size) == expected


@pytest.mark.parametrize(("fraction", "pool_size"), [(0.01, 2), (0.05, 19), (1e-9, 52_002)])
def test_at_least_one_sample_is_selected(fraction, pool_size):
    assert number_selected(fraction, pool_size) == 1


def test_every_percentage_of_every_small_pool_is_the_floor_in_whole_numbers():
    for percent in range(1, 101):
        for pool_size in (2, 3, 64, 100, 999, 55_185):
            assert number_selected(percent / 100, pool_size) == max(1, percent * pool_size // 100)


def select(miwv, count: int) -> list[int]:
    """What is chosen of samples with these values of MIWV, no guard being set."""
    table = measured(miwv, [1] * len(miwv))
    fraction = min(1.0, (count + 0.5) / len(miwv))  # the floor is taken of so many
    return choose(table, np.ones(len(miwv), dtype=bool), MIWVConfig(fraction=fraction)).selection.tolist()


def test_the_highest_scores_are_selected_in_ascending_index_order():
    miwv = [0.1, -0.5, 0.9, 0.3, 0.8]
    assert select(miwv, 3) == [2, 3, 4]
    assert select(miwv, 1) == [2]


def test_equal_scores_are_selected_by_lower_index():
    miwv = [0.5, 0.7, 0.5, 0.7, 0.5, 0.7]
    assert select(miwv, 2) == [1, 3]
    assert select(miwv, 4) == [0, 1, 3, 5]
    assert select([0.0] * 100, 7) == list(range(7))


def test_a_selection_equals_sorting_by_score_and_index():
    generator = np.random.default_rng(0)
    miwv = generator.integers(-5, 5, size=200).astype(np.float32)  # many ties
    for count in (1, 2, 50, 199, 200):
        assert select(miwv, count) == select_highest(miwv, count).tolist()


def test_a_sample_without_a_score_is_never_selected():
    miwv = [NAN, -3.0, NAN, -4.0]
    assert select(miwv, 1) == [1]
    assert select(miwv, 2) == [1, 3]


def test_fewer_scored_samples_than_asked_are_all_selected():
    assert select([NAN, 0.2, NAN, 0.1], 4) == [1, 3]
    assert select([NAN] * 3, 2) == []


def test_overlap_is_the_share_of_the_first_selection_that_the_second_holds():
    assert overlap(np.array([1, 2, 3, 4]), np.array([4, 3, 8, 9, 10])) == 0.5
    assert overlap(np.array([1, 2]), np.array([1, 2])) == 1.0
    assert overlap(np.array([1, 2]), np.array([3])) == 0.0
