"""How much is selected, and how it is divided: worked by hand, and what holds for any numbers."""

import numpy as np
import pytest

from miwv_trainer.selection.budget import apportion, count_selected, take_within_budget


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
    assert count_selected(fraction, pool_size) == expected


@pytest.mark.parametrize(("fraction", "pool_size"), [(0.01, 2), (0.05, 19), (1e-9, 52_002)])
def test_at_least_one_sample_is_selected(fraction, pool_size):
    assert count_selected(fraction, pool_size) == 1


def test_every_percentage_of_every_small_pool_is_the_floor_in_whole_numbers():
    for percent in range(1, 101):
        for pool_size in (2, 3, 64, 100, 999, 55_185):
            assert count_selected(percent / 100, pool_size) == max(1, percent * pool_size // 100)


def test_filling_stops_at_the_first_that_does_not_fit():
    costs = np.asarray([3, 4, 1, 2, 9])
    assert take_within_budget(iter([1, 0, 2]), costs, 8) == [1, 0, 2]
    assert take_within_budget(iter([1, 0, 3, 2]), costs, 8) == [1, 0]
    assert take_within_budget(iter([4, 0]), costs, 8) == []
    assert take_within_budget(iter([1, 0]), costs, 0) == []
    assert take_within_budget(iter([]), costs, 8) == []
    order = iter([1, 1, 3, 0])
    assert take_within_budget(order, costs, 8) == [1, 1] and list(order) == [3, 0]  # no more is drawn than can fit


@pytest.mark.parametrize(
    "weights, total, shares",
    [
        ([47000, 16000, 15900, 12000, 6000, 3100], 10, [5, 2, 1, 1, 1, 0]),  # 4.7, 1.6, 1.59, 1.2, 0.6, 0.31
        ([1, 1, 1], 1, [1, 0, 0]),
        ([1, 1, 1], 2, [1, 1, 0]),
        ([29, 71], 100, [29, 71]),
        ([0, 5, 0], 7, [0, 7, 0]),
        ([0, 0], 1, [1, 0]),
        ([3], 2, [2]),
    ],
)
def test_largest_remainders_by_hand(weights, total, shares):
    assert apportion(np.asarray(weights, dtype=float), total).tolist() == shares


@pytest.mark.parametrize("seed", range(30))
def test_shares_add_up_and_are_less_than_one_off(seed):
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 1000, size=rng.integers(1, 40)).astype(float)
    weights[0] += 1
    total = int(rng.integers(1, weights.sum() + 1))
    shares = apportion(weights, total)
    assert shares.sum() == total and (shares >= 0).all()
    assert (np.abs(shares - weights * total / weights.sum()) < 1).all()
    assert (shares[weights == 0] == 0).all()
