"""Embeddings, dense or sparse."""

from typing import TypeAlias

import numpy as np
import scipy.sparse

# `(N, d)`; sparse for tf-idf.
Embeddings: TypeAlias = np.ndarray | scipy.sparse.csr_matrix


def normalised(embeddings: Embeddings) -> Embeddings:
    """Lines of unit length; a line of zeros stays as it is. Sparse ones, which tf-idf made, have it already."""
    if not isinstance(embeddings, np.ndarray):
        return embeddings
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.maximum(norms, np.finfo(np.float32).tiny)
