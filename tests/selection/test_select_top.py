import numpy as np
import pytest

from miwv_trainer.selection.choose import number_selected, overlap, select_top


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


def test_the_highest_scores_are_selected_in_ascending_index_order():
    miwv = np.array([0.1, -0.5, 0.9, 0.3, 0.8], dtype=np.float32)
    assert select_top(miwv, 3).tolist() == [2, 3, 4]
    assert select_top(miwv, 1).tolist() == [2]


def test_equal_scores_are_selected_by_lower_index():
    miwv = np.array([0.5, 0.7, 0.5, 0.7, 0.5, 0.7], dtype=np.float32)
    assert select_top(miwv, 2).tolist() == [1, 3]
    assert select_top(miwv, 4).tolist() == [0, 1, 3, 5]
    assert select_top(np.zeros(100, dtype=np.float32), 7).tolist() == list(range(7))


def test_a_selection_equals_sorting_by_score_and_index():
    generator = np.random.default_rng(0)
    miwv = generator.integers(-5, 5, size=200).astype(np.float32)  # many ties
    by_hand = sorted(range(200), key=lambda index: (-miwv[index], index))
    for count in (1, 2, 50, 199, 200):
        assert select_top(miwv, count).tolist() == sorted(by_hand[:count])


def test_a_sample_without_a_score_is_never_selected():
    miwv = np.array([np.nan, -3.0, np.nan, -4.0], dtype=np.float32)
    assert select_top(miwv, 1).tolist() == [1]
    assert select_top(miwv, 2).tolist() == [1, 3]


def test_fewer_scored_samples_than_asked_are_all_selected():
    miwv = np.array([np.nan, 0.2, np.nan, 0.1], dtype=np.float32)
    assert select_top(miwv, 4).tolist() == [1, 3]
    assert select_top(np.full(3, np.nan, dtype=np.float32), 2).tolist() == []


def test_selecting_leaves_the_scores_as_they_were():
    miwv = np.array([0.3, np.nan, 0.1], dtype=np.float32)
    before = miwv.copy()
    select_top(miwv, 2)
    assert np.array_equal(miwv, before, equal_nan=True)


def test_overlap_is_the_share_of_the_first_selection_that_the_second_holds():
    assert overlap(np.array([1, 2, 3, 4]), np.array([4, 3, 8, 9, 10])) == 0.5
    assert overlap(np.array([1, 2]), np.array([1, 2])) == 1.0
    assert overlap(np.array([1, 2]), np.array([3])) == 0.0
