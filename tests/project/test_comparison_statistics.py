"""The statistics of `examples/comparison/`, each with a worked example, scipy's own test or a simulation."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tests.helpers.launch import ROOT
from tests.helpers.simulated_comparisons import NOISE, SHIFTED, Noise, simulate, summarize

sys.path.insert(0, str(ROOT / "examples"))

from comparison.statistics import (
    Difference,
    Variance,
    add_variances,
    adjust,
    average,
    choose_rates,
    compute_difference,
    compute_half_width,
    count_effective,
    pool_variances,
    split_sample_variance,
)

NONE = Variance(0.0, 4.0)


def test_losses_are_averaged_over_response_tokens() -> None:
    # A response of 3 tokens at 1 nat and one of 1 token at 5 nats: 8 nats over 4 tokens.
    assert average(np.array([[1.0, 5.0]]), np.array([3.0, 1.0])) == pytest.approx([2.0])


def test_without_a_choice_of_samples_it_is_welchs_test() -> None:
    """All samples of a run have one loss, and each arm is a kind of its own."""
    ours, theirs = np.array([1.0, 1.4, 1.1]), np.array([2.0, 2.9, 1.6])
    variances = tuple(pool_variances([dict(enumerate(losses))])[0] for losses in (ours, theirs))
    found = compute_difference(
        np.repeat(ours[:, None], 7, axis=1), np.repeat(theirs[:, None], 7, axis=1), np.arange(1.0, 8), variances
    )
    expected = stats.ttest_ind(ours, theirs, equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue) and found.mean == pytest.approx(-1.0)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert found.half_of_seeds == pytest.approx(found.half) and found.half_of_samples == pytest.approx(0)


def test_without_a_spread_over_seeds_it_is_students_test_of_the_samples() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1, 30)
    ours = np.tile(differences, (3, 1))
    found = compute_difference(ours, np.zeros((3, 30)), np.ones(30), (NONE, NONE))
    expected = stats.ttest_1samp(differences, 0)
    assert found.p_value == pytest.approx(expected.pvalue) and found.variance.freedom == pytest.approx(29)
    low, high = expected.confidence_interval(0.95)
    assert found.half == pytest.approx((high - low) / 2) == found.half_of_samples and found.half_of_seeds == 0


def test_the_variance_over_samples_is_that_of_the_bootstrap() -> None:
    generator = np.random.default_rng(1)
    paired, weights = generator.normal(0.3, 1, (4, 80)), generator.integers(1, 50, 80).astype(float)
    paired[:, ::2] += 1.0

    def weighted_mean(d: np.ndarray, w: np.ndarray, axis: int = -1) -> np.ndarray:
        return (d * w).sum(axis=axis) / w.sum(axis=axis)

    expected = stats.bootstrap(
        (paired.mean(axis=0), weights), weighted_mean, paired=True, vectorized=True, method="percentile",
        n_resamples=20_000, random_state=generator,
    ).standard_error  # fmt: skip
    assert math.sqrt(sum(split_sample_variance(paired, weights))) == pytest.approx(expected, rel=0.03)


def test_what_passes_from_seed_to_seed_is_counted_once() -> None:
    """The variance of the mean of a table of independent numbers is 1 / (3 * 400), not twice as much."""
    generator = np.random.default_rng(2)
    found = []
    for _ in range(300):
        paired = generator.normal(size=(3, 400))
        spread = Variance(float(paired.mean(axis=1).var(ddof=1)), 2.0)
        found.append(compute_difference(paired, np.zeros((3, 400)), np.ones(400), (spread, NONE)).variance.value)
    assert 0.9 < np.mean(found) * 1200 < 1.6  # it is never less than the variance over samples, so somewhat more
    assert min(found) * 1200 > 0.8


def test_variances_are_pooled_over_arms_of_a_kind_or_the_own_where_it_is_larger() -> None:
    # Sums of squares 2 and 6, of two degrees of freedom each: pooled 8 / 4, and the second's own is 6 / 2.
    found = pool_variances([{0: 1.0, 1: 0.0, 2: -1.0}, {0: 1.0, 1: -2.0, 2: 1.0}])
    assert [one.value for one in found] == pytest.approx([2.0, 3.0])
    # The deviations are orthogonal: 2 * (2 + 6)^2 / (2^2 + 6^2).
    assert [one.freedom for one in found] == pytest.approx([3.2, 3.2])


def test_arms_that_deviate_alike_count_as_one() -> None:
    arm = {0: 1.0, 1: 0.3, 2: -1.0}
    assert pool_variances([arm] * 5)[0].freedom == pytest.approx(2.0)
    generator = np.random.default_rng(3)
    many = [dict(enumerate(generator.normal(size=20))) for _ in range(5)]
    assert 60 < pool_variances(many)[0].freedom <= 95  # independent: at most 5 * 19
    assert pool_variances([{0: 1.0, 1: 2.0}, {0: 5.0}])[1] == Variance(0.5, 1.0)
    assert all(math.isnan(one.value) for one in pool_variances([{0: 1.0}, {0: 2.0}])) and pool_variances([]) == []


def test_seeds_are_paired_by_number_in_what_is_pooled() -> None:
    """An arm without seed 1 deviates alike in the seeds that it has."""
    whole, part = {0: -1.0, 1: 0.0, 2: 1.0}, {0: -1.0, 2: 1.0}
    assert pool_variances([whole, part])[0].freedom == pytest.approx(2.0)
    assert pool_variances([part, whole]) == pool_variances([whole, part])[::-1]


def test_variances_add_up_by_welch_and_satterthwaite() -> None:
    # (2 + 1)^2 / (4 / 2 + 1 / 10)
    assert add_variances([Variance(2.0, 2.0), Variance(1.0, 10.0)]) == Variance(3.0, pytest.approx(9 / 2.1))
    assert count_effective(np.array([1.0, 1.0, 2.0])) == pytest.approx(16 / 6)


def make_difference(p_value: float, mean: float = -1.0) -> Difference:
    error = 1 / stats.t.isf(p_value / 2, 10)
    return Difference(mean, 3, (Variance(float(error**2), 10.0),))


def test_holms_correction_of_a_worked_example() -> None:
    # R: p.adjust(c(0.04, 0.01, 0.03, 0.02, 0.05), "holm") is 0.09 0.05 0.09 0.08 0.09.
    alone = Difference(0.1, 1, ())
    found = adjust([alone, *map(make_difference, (0.04, 0.01, 0.03, 0.02, 0.05))])
    assert [one.adjusted for one in found[1:]] == pytest.approx([0.09, 0.05, 0.09, 0.08, 0.09])
    assert {one.tried for one in found[1:]} == {5} and found[0] == alone  # a single seed is not tried
    # 0.001 * 5, then 0.011 * 4 for the second, and not less for those that follow.
    words = [one.word for one in adjust([make_difference(p) for p in (0.3, 0.001, 0.011, 0.012, 0.6)])]
    assert words == ["not shown", "lower", "lower", "lower", "not shown"]
    assert adjust([make_difference(0.001, 1.0)])[0].word == "higher" and adjust([]) == []


def test_one_seed_shows_nothing_and_no_spread_shows_any_difference() -> None:
    alone = compute_difference(np.ones((1, 4)), np.zeros((1, 4)), np.ones(4), (NONE, NONE))
    values = (alone.half, alone.smallest, alone.reliably_shown, alone.adjusted)
    assert all(map(math.isnan, values)) and alone.word == "not shown"
    certain = compute_difference(np.ones((2, 4)), np.zeros((2, 4)), np.ones(4), (NONE, NONE))
    assert adjust([certain])[0].word == "higher" and certain.half == certain.smallest == certain.reliably_shown == 0


def test_the_smallest_difference_is_what_the_strictest_level_shows() -> None:
    parts = (Variance(0.5, 4.0), Variance(0.3, 6.0), Variance(0.2, 50.0))
    smallest = Difference(0.0, 3, parts, tried=9).smallest
    words = [
        adjust([Difference(times * smallest, 3, parts), *[Difference(0.0, 3, parts)] * 8])[0].word
        for times in (0.999, 1.001)
    ]
    assert words == ["not shown", "higher"]


def test_a_difference_of_that_size_is_shown_in_four_of_five_comparisons() -> None:
    """By simulation of estimates of known variances, tested one by one."""
    generator = np.random.default_rng(4)
    true = (Variance(0.5, 4.0), Variance(0.3, 6.0), Variance(0.2, 50.0))
    # What half of the comparisons estimate at most.
    medians = tuple(replace(one, value=one.value * stats.chi2.median(one.freedom) / one.freedom) for one in true)
    expected = Difference(0.0, 3, medians, tried=9).reliably_shown
    shown = 0
    for mean in generator.normal(expected, 1.0, 1500):
        parts = tuple(Variance(one.value * generator.chisquare(one.freedom) / one.freedom, one.freedom) for one in true)
        shown += Difference(float(mean), 3, parts).p_value < 0.05 / 9
    assert 0.77 < shown / 1500 < 0.83


@pytest.mark.parametrize(("seeds", "is_equal"), [(3, True), (3, False), (5, False)])
def test_intervals_hold_what_they_say_and_chance_is_not_shown(seeds: int, is_equal: bool) -> None:
    """Nine arms that share their random draws. A true share of 5 % is 14 of 150 or less in 99 of 100 tests."""
    found = summarize(Noise(*NOISE["both alike"], is_equal), seeds, 150, seed=5)
    assert 0.93 < found["coverage"] < 0.985 and found["least"] > 0.89
    assert found["any"] <= 14 / 150 and 0.65 < found["power"] < 0.9


def test_one_baseline_by_chance_low_shows_no_arm_where_seeds_prevail() -> None:
    generator = np.random.default_rng(6)
    noise = Noise(*NOISE["seeds prevail"], is_equal=False)
    columns = [simulate(noise, 3, generator) for _ in range(150)]
    assert sum(any(one.word != "not shown" for one in column.values()) for column in columns) <= 14
    assert simulate(noise, 3, generator, shift=1000.0)[SHIFTED].word == "lower"


def test_a_rate_is_judged_on_samples_that_did_not_choose_it() -> None:
    # Even samples are best at rate 1, odd ones at rate 0. So even ones are judged at rate 0, and odd ones at rate 1.
    losses = np.array([[[2.0, 1, 2, 1], [2, 1, 2, 1]], [[1.0, 2, 1, 2], [1, 2, 1, 2]]])
    found, chosen = choose_rates(losses, np.ones(4))
    assert chosen == (0, 1) and found.tolist() == [[2, 2, 2, 2]] * 2
    alone, chosen = choose_rates(losses[:1], np.ones(4))
    assert chosen == (0, 0) and np.array_equal(alone, losses[0])


def test_tuning_is_not_rewarded_for_noise() -> None:
    """Rates that do not differ: taking the best by all samples would be lower than the mean; this is not."""
    generator = np.random.default_rng(3)
    losses = generator.normal(size=(2000, 3, 1, 40))
    found = np.mean([choose_rates(one, np.ones(40))[0].mean() for one in losses])
    greedy = np.mean([one.mean(axis=(1, 2)).min() for one in losses])
    assert abs(found) < 0.02 < 0.1 < -greedy


def test_a_part_of_the_noise_has_no_wider_interval_than_the_whole() -> None:
    """Two seeds alone have a wide interval; much sample noise beside them has more degrees of freedom."""
    parts = (Variance(1.0, 1.0), Variance(1.0, 1.0), Variance(4.0, 149.0))
    found = Difference(0.0, 2, parts)
    assert compute_half_width(parts[:2], 0.05) > found.half
    assert found.half_of_seeds == found.half > found.half_of_samples > 0
