"""The ranking within bands of length, worked by hand."""

import numpy as np
import pytest

from miwv_trainer.selection.ranking import assign_length_bands, rank_samples


def test_bands_of_length_by_hand():
    is_candidate = np.array([True, True, False, True, True, True, True, True])
    tokens = np.array([20, 19, 50, 21, 3, 80, 20, 40])
    # By length: 4 (3 tokens), 1 (19), 0 and 6 (20), 3 (21), 7 (40), 5 (80): seven in bands of 3, 2 and 2.
    assert assign_length_bands(is_candidate, tokens, 3).tolist() == [0, 0, -1, 1, 0, 2, 1, 2]
    assert assign_length_bands(is_candidate, tokens, 1).tolist() == [0, 0, -1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("bands", [1, 2, 5, 7, 30])
def test_bands_are_of_equal_size_and_ascend_with_length(bands):
    rng = np.random.default_rng(bands)
    is_candidate, tokens = rng.random(23) < 0.8, rng.integers(1, 12, size=23)
    band = assign_length_bands(is_candidate, tokens, bands)
    assert ((band >= 0) == is_candidate).all()
    sizes = np.bincount(band[is_candidate], minlength=bands)
    assert len(sizes) == bands and np.ptp(sizes) <= 1 and (np.diff(sizes) <= 0).all()
    for one, other in np.ndindex(23, 23):
        if is_candidate[one] and is_candidate[other] and (tokens[one], one) < (tokens[other], other):
            assert band[one] <= band[other]


def test_no_sample_is_in_no_band():
    nobody = np.zeros(4, dtype=bool)
    band = assign_length_bands(nobody, np.arange(4), 3)
    assert band.tolist() == [-1] * 4
    assert rank_samples(np.arange(4, dtype=np.float32), band).tolist() == []


def test_one_band_is_ranked_by_score_and_ties_by_lower_index():
    scores = np.array([0.5, 0.9, 0.5, 0.1, 0.9], dtype=np.float32)
    assert rank_samples(scores, np.zeros(5, dtype=np.int64)).tolist() == [1, 4, 0, 2, 3]


def test_the_highest_of_each_band_come_before_the_second_highest_of_each():
    bands = np.array([0, 0, 0, 1, 1, 1, -1])
    scores = np.array([9, 8, 7, 1, 3, 2, 99], dtype=np.float32)
    # The tops 0 and 4, then 1 and 5, then 2 and 3; of each pair the higher score is first.
    assert rank_samples(scores, bands).tolist() == [0, 4, 1, 5, 2, 3]


def test_of_the_highest_of_bands_of_unequal_size_the_higher_score_is_first():
    bands = np.array([0, 0, 0, 1, 1])
    scores = np.array([1, 2, 3, 8, 9], dtype=np.float32)
    # Nobody stands above 4 and 2. Above 1 a third of its band, above 3 a half; above 0 two thirds.
    assert rank_samples(scores, bands).tolist() == [4, 2, 1, 3, 0]


@pytest.mark.parametrize("seed", range(10))
def test_any_number_of_the_ranking_takes_the_same_share_of_every_band(seed):
    rng = np.random.default_rng(seed)
    count, bands = int(rng.integers(10, 60)), int(rng.integers(2, 8))
    scores, tokens = rng.integers(0, 9, size=count).astype(np.float32), rng.integers(1, 40, size=count)
    band = assign_length_bands(np.ones(count, dtype=bool), tokens, bands)
    order = rank_samples(scores, band)
    assert sorted(order) == list(range(count))
    sizes = np.bincount(band, minlength=bands)
    for taken in range(1, count + 1):
        of_band = np.bincount(band[order[:taken]], minlength=bands)
        assert (np.abs(of_band - sizes * taken / count) < 2).all() and np.ptp(of_band) <= 1 + np.ptp(sizes)
        for number in range(bands):  # and the best of each
            members = [i for i in order[:taken] if band[i] == number]
            best = sorted(np.flatnonzero(band == number), key=lambda i: (-scores[i], i))
            assert members == best[: len(members)]
