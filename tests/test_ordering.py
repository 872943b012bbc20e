"""Length grouping, beside transformers' own on the same permutation."""

import numpy as np
import pytest
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from miwv_trainer.ordering import group_by_length

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
