"""Which samples may be whose exemplar, by hand."""

import numpy as np
import pytest

from miwv_trainer.embeddings.nearest import find_nearest_exemplars
from tests.helpers.exemplars import FAR, brute_force, distinct
from tests.helpers.pools import pool_of


def test_ties_go_to_the_lower_index():
    vectors = np.array([[1, 0], [0, 1], [0, 2], [0, 3], [1, 1]], dtype=np.float32)
    found, _ = find_nearest_exemplars(vectors, pool_of(distinct(5)), FAR)
    assert found.tolist() == [4, 2, 1, 1, 0]


def test_cosines_that_differ_by_rounding_alone_are_ties():
    direction = np.random.default_rng(0).standard_normal(384)
    scales = np.random.default_rng(1).uniform(0.01, 100, size=(50, 1))
    found, _ = find_nearest_exemplars((direction * scales).astype(np.float32), pool_of(distinct(50)), FAR)
    assert found.tolist() == [1] + [0] * 49


def test_a_sample_is_never_its_own_exemplar():
    vectors = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    for allow_identical in (False, True):
        found, _ = find_nearest_exemplars(vectors, pool_of(distinct(50)), FAR, allow_identical)
        assert not (found == np.arange(50)).any()


def test_an_identical_sample_is_skipped_unless_allowed():
    samples = [([1, 2], [3]), ([1, 2], [3]), ([9], [9])]
    vectors = np.array([[1, 0], [1, 0], [1, 5]], dtype=np.float32)
    assert find_nearest_exemplars(vectors, pool_of(samples), FAR)[0].tolist() == [2, 2, 0]
    assert find_nearest_exemplars(vectors, pool_of(samples), FAR, allow_identical=True)[0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("other", [([1, 2], [4]), ([1], [2, 3])], ids=["other response", "other border"])
def test_a_sample_that_differs_in_its_response_alone_is_not_identical(other):
    samples = [([1, 2], [3]), other, ([9], [9])]
    vectors = np.array([[1, 0], [1, 0], [1, 5]], dtype=np.float32)
    assert find_nearest_exemplars(vectors, pool_of(samples), FAR)[0].tolist() == [1, 0, 0]


def test_a_pool_of_copies_has_no_exemplars():
    found, similarities = find_nearest_exemplars(np.ones((3, 2), dtype=np.float32), pool_of([([1], [2])] * 3), FAR)
    assert found.tolist() == [-1, -1, -1]
    assert np.isnan(similarities).all()


def test_a_sample_without_prompt_or_response_is_never_an_exemplar():
    samples = [([1], [2]), ([], [3]), ([4], []), ([5], [6])]
    vectors = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], dtype=np.float32)
    assert find_nearest_exemplars(vectors, pool_of(samples), FAR)[0].tolist() == [3, 0, 0, 0]


def test_the_next_nearest_that_fits_the_context_is_taken():
    samples = [([1] * 4, [1] * 4), ([2] * 8, [2] * 4), ([3] * 6, [3] * 4), ([4], [4])]
    vectors = np.array([[4, 0], [4, 1], [4, 2], [4, 3]], dtype=np.float32)
    pool = pool_of(samples, preamble=3)
    nearest_for_first = {context: find_nearest_exemplars(vectors, pool, context)[0][0] for context in range(5, 25)}
    # Preamble 3 and sample 8, behind exemplars of 12, 10 and 2 tokens; below 13 none fits.
    assert nearest_for_first == {
        context: 1 if context >= 23 else 2 if context >= 21 else 3 if context >= 13 else 1 for context in range(5, 25)
    }


def test_a_sample_whose_only_fitting_exemplars_are_its_copies_takes_the_nearest_of_all():
    samples = [([1], [1]), ([1], [1]), ([2] * 9, [2]), ([3] * 9, [3])]
    vectors = np.array([[1, 0], [1, 0], [1, 3], [1, 2]], dtype=np.float32)
    found, _ = find_nearest_exemplars(vectors, pool_of(samples), context=5)
    assert found.tolist() == brute_force(vectors.tolist(), samples, 5) == [3, 3, 3, 2]
