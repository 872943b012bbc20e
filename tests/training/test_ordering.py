"""Groups of like length, beside transformers' own of the same permutation; windows and difficulty, by hand."""

import numpy as np
import pytest
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from miwv_trainer.training.ordering import epoch_window, group_by_length, sort_by_difficulty, split_by_length

LENGTHS = np.random.default_rng(3).integers(1, 90, 2_000)


@pytest.mark.parametrize(
    ("count", "batch"),
    # One sample, less than a batch, less than four batches, a last group of one, and groups of 50 batches.
    [(1, 4), (3, 4), (15, 4), (97, 4), (240, 12), (2_000, 4)],
)
def test_the_order_is_transformers_own_for_the_same_permutation(count: int, batch: int) -> None:
    lengths = LENGTHS[:count]
    expected = get_length_grouped_indices(lengths.tolist(), batch, generator=torch.Generator().manual_seed(5))
    permutation = torch.randperm(count, generator=torch.Generator().manual_seed(5)).numpy()
    assert group_by_length(permutation, lengths, batch).tolist() == expected


def test_pool_indices_are_ordered_by_the_lengths_of_the_pool() -> None:
    chosen = np.random.default_rng(0).permutation(2_000)[:480]
    order = group_by_length(chosen, LENGTHS, 12)
    assert sorted(order) == sorted(chosen)
    assert LENGTHS[order[0]] == LENGTHS[chosen].max()
    spread = [np.ptp(LENGTHS[batch]) for batch in order.reshape(-1, 12)]
    shuffled = [np.ptp(LENGTHS[batch]) for batch in chosen.reshape(-1, 12)]
    assert np.mean(spread) < np.mean(shuffled) / 4


def test_what_was_given_is_not_changed() -> None:
    given = np.arange(40)
    group_by_length(given, LENGTHS, 4)
    assert given.tolist() == list(range(40))


def test_the_windows_of_epochs_by_hand() -> None:
    passes = [np.array(list("abcde")), np.array(list("edcba")), np.array(list("badce"))]
    # The second epoch ends the first pass with d and e, so the second pass c b a e d ends with these, in its own order;
    # the fourth ends it with d, so the third pass is b a c e d.
    expected = ["abc", "dec", "bae", "dba", "ced"]
    assert ["".join(epoch_window(passes.__getitem__, 3, number)) for number in range(5)] == expected


@pytest.mark.parametrize("seed", range(3))
def test_over_epochs_counts_differ_by_at_most_one_and_no_epoch_has_a_sample_twice(seed: int) -> None:
    for count in range(2, 20):
        for length in range(1, count):
            times = np.zeros(count, dtype=int)
            for number in range(12):
                taken = epoch_window(
                    lambda each, count=count: np.random.default_rng([seed, each]).permutation(count), length, number
                )
                assert len(np.unique(taken)) == len(taken) == length
                times[taken] += 1
                assert np.ptp(times) <= 1


def test_equally_hard_samples_keep_their_order() -> None:
    indices, difficulty = np.array([7, 3, 9, 1, 4]), np.array([2.0, -1.0, 2.0, 0.5, -1.0])
    assert sort_by_difficulty(indices, difficulty, "easy_to_hard").tolist() == [3, 4, 1, 7, 9]
    assert sort_by_difficulty(indices, difficulty, "hard_to_easy").tolist() == [7, 9, 1, 3, 4]
    assert sort_by_difficulty(indices, difficulty, "shuffled").tolist() == [7, 3, 9, 1, 4]


def test_groups_keep_to_their_place_and_hold_the_longest_first() -> None:
    lengths = np.array([5, 9, 9, 1, 7, 2, 8, 3, 6])
    groups = split_by_length(np.arange(9), lengths, 2)
    assert [group.tolist() for group in groups] == [[1, 0], [2, 3], [4, 5], [6, 7], [8]]
