"""Rows of length 1 and their products."""

import numpy as np
import pytest
import scipy.sparse

from miwv_trainer.embeddings.nearest import find_nearest_exemplars
from miwv_trainer.embeddings.vectors import normalise_rows, prepare_products
from tests.helpers.exemplars import FAR, brute_force, distinct
from tests.helpers.pools import pool_of


@pytest.mark.parametrize("terms", [0, 3, 128])
def test_common_terms_as_dense_columns_leave_the_cosines_as_they_are(monkeypatch, terms):
    vectors = np.random.default_rng(3).random((60, 20)) * (np.random.default_rng(4).random((60, 20)) < 0.3)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    monkeypatch.setattr("miwv_trainer.embeddings.vectors.DENSE_TERMS", terms)
    found, similarities = find_nearest_exemplars(
        scipy.sparse.csr_matrix(unit.astype(np.float32)), pool_of(distinct(60)), FAR
    )
    assert found.tolist() == brute_force(unit.tolist(), distinct(60), FAR)
    np.testing.assert_allclose(similarities, (unit * unit[found]).sum(axis=1), atol=1e-6)


def test_sparse_rows_are_brought_to_length_1_unless_they_are():
    rows = scipy.sparse.csr_matrix(np.asarray([[3, 0, 4], [0, 0, 0], [0, 2, 0]], dtype=np.float32))
    unit = normalise_rows(rows)
    np.testing.assert_allclose(unit.toarray(), [[0.6, 0, 0.8], [0, 0, 0], [0, 1, 0]], atol=1e-7)
    assert rows[0, 0] == 3
    assert normalise_rows(unit) is unit


def test_rows_of_zeros_stay_zeros_and_other_dense_rows_get_length_1():
    unit = normalise_rows(np.asarray([[3, 0, 4], [0, 0, 0], [0, -2, 0]], dtype=np.float32))
    np.testing.assert_allclose(unit, [[0.6, 0, 0.8], [0, 0, 0], [0, -1, 0]], atol=1e-7)


@pytest.mark.parametrize("terms", [0, 3, 128])
def test_products_of_sparse_rows_are_those_of_dense_ones(monkeypatch, terms):
    generator = np.random.default_rng(0)
    rows = (generator.random((9, 12)) * (generator.random((9, 12)) < 0.4)).astype(np.float32)
    monkeypatch.setattr("miwv_trainer.embeddings.vectors.DENSE_TERMS", terms)
    chosen, columns = np.array([8, 0, 3]), np.array([1, 2, 8, 5])
    expected = rows[chosen].astype(np.float64) @ rows[columns].T.astype(np.float64)
    for embeddings in (rows, scipy.sparse.csr_matrix(rows)):
        products = prepare_products(embeddings, columns)(chosen)
        assert products.dtype == np.float32
        np.testing.assert_allclose(products, expected, atol=1e-6)
