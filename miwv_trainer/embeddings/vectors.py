"""Embeddings: dense or sparse, at unit length, and their products."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import scipy.sparse

# Dense, or for tf-idf sparse; `(N, d)`.
Embeddings: TypeAlias = np.ndarray | scipy.sparse.csr_matrix
# Below this, a difference of two cosines in float32 is rounding, which differs between machines.
TIE = 1e-6
# Of t0's 43,118 terms, the 128 commonest make 89 % of the products of two samples: those are cheaper as dense columns.
DENSE_TERMS = 128


def normalised(embeddings: Embeddings) -> Embeddings:
    """Rows at length 1; those of length 0 stay so. Sparse ones that are so already are returned as they are."""
    if isinstance(embeddings, np.ndarray):
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        return embeddings / np.maximum(norms, np.finfo(np.float32).tiny)
    row = rows_of_entries(embeddings)
    norms = np.sqrt(np.bincount(row, np.square(embeddings.data, dtype=np.float64), minlength=embeddings.shape[0]))
    if ((norms == 0) | (np.abs(norms - 1) <= TIE)).all():
        return embeddings  # TfidfVectorizer's lines have length 1
    data = (embeddings.data / norms.clip(np.finfo(np.float32).tiny)[row]).astype(np.float32)
    return scipy.sparse.csr_matrix((data, embeddings.indices, embeddings.indptr), shape=embeddings.shape)


def rows_of_entries(embeddings: scipy.sparse.csr_matrix) -> np.ndarray:
    """The row in which each stored number stands."""
    return np.repeat(np.arange(embeddings.shape[0]), np.diff(embeddings.indptr))


def products_with(unit: Embeddings, columns: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """
    From the indices of R rows to their `(R, C)` float32 products with the C rows `columns`.

    Of sparse rows, terms that many samples share are multiplied as dense columns, the others as a sparse matrix.
    """
    if isinstance(unit, np.ndarray):
        transposed = unit[columns].T
        return lambda rows: unit[rows] @ transposed
    by_frequency = np.argsort(-np.bincount(unit.indices, minlength=unit.shape[1]), kind="stable")
    common = unit[:, by_frequency[:DENSE_TERMS]].toarray()
    rare = unit[:, by_frequency[DENSE_TERMS:]].tocsr()
    common_columns = common[columns].T
    rare_columns = rare[columns].T.tocsr()  # otherwise converted anew for every chunk

    def products(rows: np.ndarray) -> np.ndarray:
        summed = common[rows] @ common_columns
        summed += (rare[rows] @ rare_columns).toarray()
        return summed

    return products
