"""Which exemplar each sample gets: k(i) = argmax over j != i of cosine(h_i, h_j), equation 1 of the paper."""

import logging

import numpy as np
import torch

from miwv_trainer.data.pool import NO_EXEMPLAR, Pool
from miwv_trainer.embeddings.exact import Rules, search_exactly
from miwv_trainer.embeddings.faiss import check_faiss, search_with_faiss
from miwv_trainer.embeddings.vectors import Embeddings, normalised

logger = logging.getLogger(__name__)
APPROXIMATE_ABOVE = 1_000_000
SPARSE_SECONDS_PER_PAIR = 1e-8  # measured; see docs/retrieval.md


def nearest_exemplars(
    embeddings: Embeddings,
    pool: Pool,
    context: int,
    allow_identical: bool = False,
    show_progress: bool = False,
    device: torch.device | str = "cpu",
    approximate_above: int = APPROXIMATE_ABOVE,
) -> tuple[np.ndarray, np.ndarray]:
    """
    The nearest sample of each sample, ties by lower index.

    A sample is never its own exemplar, nor is one with the same tokens unless `allow_identical`, nor one without
    prompt or response. Of those that fit the context together with the sample, the nearest is taken; where none fits,
    the nearest of all. An embedding that is not finite has and is no exemplar.

    Args:
        embeddings: `(N, d)`, in pool order.
        context: Most tokens of an exemplar and its sample together, preamble included.
        device: Where dense embeddings are compared; sparse ones always are on the CPU.
        approximate_above: In larger pools, dense embeddings are searched with FAISS, on the CPU.

    Returns:
        `(N,)` int64 indices, -1 where there is none, and `(N,)` float32 cosines, NaN where there is none.

    Raises:
        ImportError: the pool is larger than `approximate_above`, and FAISS is not installed.
    """
    size = len(pool)
    is_large, is_dense = size > approximate_above, isinstance(embeddings, np.ndarray)
    if is_large and is_dense:
        check_faiss(size)
    elif is_large:
        logger.warning(_long_sparse_search(size))
    unit = normalised(embeddings)
    finite = _is_finite(unit)
    rules = Rules.of(pool, context, pool.has_prompt_and_response & finite, allow_identical)
    queries = torch.from_numpy(np.flatnonzero(finite))
    exemplars = np.full(size, NO_EXEMPLAR, dtype=np.int64)
    similarities = np.full(size, np.nan, dtype=np.float32)
    search = search_with_faiss if is_large and is_dense and len(rules.candidates) else search_exactly
    found = search(unit, rules, queries, torch.device(device), show_progress)
    exemplars[finite], similarities[finite] = (part.numpy() for part in found)
    return exemplars, similarities


def _long_sparse_search(size: int) -> str:
    hours = SPARSE_SECONDS_PER_PAIR * size**2 / 3600
    return (
        f"The tf-idf vectors of {size:,} samples are compared pair by pair, because FAISS takes dense ones only: about "
        f'{hours:,.1f} hours on two cores. Faster: a sentence-transformers `embedder`, `embedder="model"`, or an array '
        "of shape (N, d)."
    )


def _is_finite(unit: Embeddings) -> np.ndarray:
    """`(N,)` whether an embedding can be compared; a model may overflow on a prompt."""
    if isinstance(unit, np.ndarray):
        return np.asarray(np.isfinite(unit).all(axis=1))
    return np.ones(unit.shape[0], dtype=bool)
