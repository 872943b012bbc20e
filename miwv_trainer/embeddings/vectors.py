"""Embeddings as matrices: rows of length 1, and their dot products.

Everything that compares embeddings works on rows of length 1, whose dot product is their cosine. tf-idf vectors stay
sparse: as dense rows, the 43,118 terms of t0's 55,185 instructions would take 9.5 GB.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import scipy.sparse

# `(N, d)`, one row per sample. Sparse for tf-idf, dense for every other embedder.
Embeddings: TypeAlias = np.ndarray | scipy.sparse.csr_matrix
# From `(R,)` row numbers to `(R, C)` float32 dot products with C fixed rows.
RowProducts: TypeAlias = Callable[[np.ndarray], np.ndarray]
# Cosines closer than this are ties. The difference is float32 rounding, which differs between BLAS libraries, so that
# without it the same pool would get other exemplars on another machine.
TIE = 1e-6
# Number of terms that are multiplied as dense columns. On t0 (43,118 terms) the 128 most frequent ones cause 89 % of
# the multiplications of a sparse product. Splitting them off made the search 3 to 5 times as fast (docs/retrieval.md).
DENSE_TERMS = 128


def normalise_rows(embeddings: Embeddings) -> Embeddings:
    """
    Returns the rows divided by their lengths. Rows of zeros stay zeros.

    Sparse embeddings whose rows have length 1 already are returned as they are, not copied.
    """
    if isinstance(embeddings, np.ndarray):
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        # A row that contains infinity becomes NaN, which callers exclude. NumPy's warning of it would name no sample.
        with np.errstate(invalid="ignore"):
            return embeddings / np.maximum(norms, np.finfo(np.float32).tiny)
    row = find_entry_rows(embeddings)
    norms = np.sqrt(np.bincount(row, np.square(embeddings.data, dtype=np.float64), minlength=embeddings.shape[0]))
    # TfidfVectorizer gives rows of length 1. Dividing them again would round some entries, and cost a copy.
    if ((norms == 0) | (np.abs(norms - 1) <= TIE)).all():
        return embeddings
    data = (embeddings.data / norms.clip(np.finfo(np.float32).tiny)[row]).astype(np.float32)
    return scipy.sparse.csr_matrix((data, embeddings.indices, embeddings.indptr), shape=embeddings.shape)


def find_entry_rows(embeddings: scipy.sparse.csr_matrix) -> np.ndarray:
    """Returns the row number of each stored entry."""
    return np.repeat(np.arange(embeddings.shape[0]), np.diff(embeddings.indptr))


def prepare_products(unit: Embeddings, columns: np.ndarray) -> RowProducts:
    """
    Returns a function that multiplies rows of `unit` with its rows `columns`.

    For sparse embeddings, the most frequent terms are multiplied as dense columns and the others as a sparse matrix.

    Args:
        unit: `(N, d)` rows of length 1.
        columns: `(C,)` row numbers.
    """
    if isinstance(unit, np.ndarray):
        transposed = unit[columns].T
        return lambda rows: unit[rows] @ transposed
    by_frequency = np.argsort(-np.bincount(unit.indices, minlength=unit.shape[1]), kind="stable")
    common = unit[:, by_frequency[:DENSE_TERMS]].toarray()
    rare = unit[:, by_frequency[DENSE_TERMS:]].tocsr()
    common_columns = common[columns].T
    # A transposed CSR matrix is CSC, which scipy would convert to CSR again for every chunk of rows.
    rare_columns = rare[columns].T.tocsr()

    def multiply(rows: np.ndarray) -> np.ndarray:
        products = common[rows] @ common_columns
        products += (rare[rows] @ rare_columns).toarray()
        return products

    return multiply
