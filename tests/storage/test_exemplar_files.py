"""Exemplars and embeddings are read as they were written, and refused if they are of something else."""

import numpy as np
import pytest
import scipy.sparse

from miwv_trainer.storage.store import Store
from tests.helpers.stored import FINGERPRINT


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


@pytest.mark.parametrize("per_sample", [1, 3])
def test_exemplars_are_read_as_they_were_written(store, per_sample):
    assert store.read_exemplars(FINGERPRINT) is None
    exemplars = np.array([[2, 1, -1], [0, 2, -1], [-1, -1, -1]])[:, :per_sample]
    similarities = np.where(exemplars < 0, np.nan, 1 / (2 + exemplars)).astype(np.float32)
    store.write_exemplars(exemplars, similarities, FINGERPRINT)
    read_exemplars, read_similarities = store.read_exemplars(FINGERPRINT)
    assert read_exemplars.dtype == np.int64
    assert read_exemplars.tolist() == exemplars.tolist()
    assert read_similarities.dtype == np.float32
    assert np.array_equal(read_similarities, similarities, equal_nan=True)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_embeddings_are_read_as_they_were_written(store, kind):
    assert store.read_embeddings(FINGERPRINT) is None
    dense = np.array([[0, 1, 0, 2], [0, 0, 0, 0], [3, 0, 0.5, 0]], dtype=np.float32)
    store.write_embeddings(dense if kind == "dense" else scipy.sparse.csr_matrix(dense), FINGERPRINT)
    read = store.read_embeddings(FINGERPRINT)
    assert isinstance(read, np.ndarray) == (kind == "dense")
    assert read.dtype == np.float32
    assert (read if kind == "dense" else read.toarray()).tolist() == dense.tolist()


def test_an_array_that_is_a_view_is_stored_by_its_values(store):
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    store.write_embeddings(matrix.T, FINGERPRINT)
    assert store.read_embeddings(FINGERPRINT).tolist() == matrix.T.tolist()


@pytest.mark.parametrize("kind", ["exemplars", "embeddings"])
def test_exemplars_and_embeddings_of_something_else_are_refused_by_the_name_of_both_values(store, kind):
    store.write_exemplars(np.array([1, 0]), np.array([0.5, 0.5], dtype=np.float32), FINGERPRINT)
    store.write_embeddings(np.ones((2, 3), dtype=np.float32), FINGERPRINT)
    words = rf"{kind}\.\w+ was made with pool = 'abc', but this run has pool = 'xyz'\. Use a fresh output folder"
    with pytest.raises(ValueError, match=words):
        getattr(store, f"read_{kind}")({**FINGERPRINT, "pool": "xyz"})
