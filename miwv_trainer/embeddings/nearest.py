"""Finds the exemplar of each sample: k(i) = argmax over j != i of cosine(h_i, h_j), equation 1 of the paper."""

import logging

import numpy as np
import torch

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import NO_EXEMPLAR, Pool
from miwv_trainer.embeddings.exact import search_exactly
from miwv_trainer.embeddings.faiss import check_faiss, search_with_faiss
from miwv_trainer.embeddings.rules import Rules
from miwv_trainer.embeddings.vectors import Embeddings, normalise_rows

logger = logging.getLogger(__name__)
# The cost of exact search grows with the square of the pool.
APPROXIMATE_ABOVE = 1_000_000
SPARSE_SECONDS_PER_PAIR = 1e-8  # measured; see docs/retrieval.md


def find_nearest_exemplars(
    embeddings: Embeddings,
    pool: Pool,
    context: int,
    allow_identical: bool = False,
    show_progress: bool = False,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """
    Finds the nearest allowed sample of each sample: the first column of what [`find_ranked_exemplars`] finds.

    Args:
        allow_identical: Whether a copy of a sample may be its exemplar.

    Returns:
        `(N,)` int64 indices, -1 where there is none, and `(N,)` float32 cosines, NaN where there is none.
    """
    config = MIWVConfig(allow_identical_exemplars=allow_identical)
    exemplars, similarities = find_ranked_exemplars(embeddings, pool, context, config, show_progress, device)
    return exemplars[:, 0], similarities[:, 0]


def find_ranked_exemplars(
    embeddings: Embeddings,
    pool: Pool,
    context: int,
    config: MIWVConfig,
    show_progress: bool = False,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """
    Finds the nearest allowed samples of each sample, `exemplars_per_sample` of them, ties by lower index.

    Excluded as exemplars are the sample itself, its copies (unless `allow_identical_exemplars`), and samples without
    prompt or response. The nearest samples that fit the context together with the sample are taken, or the nearest of
    all where none fits. Samples whose embedding contains NaN or infinity get no exemplar and serve as none.

    Dense embeddings of more than a million samples are searched with FAISS, on the CPU.

    Args:
        embeddings: `(N, d)`, in pool order, of any length.
        context: Most tokens of an exemplar and its sample together, preamble included.
        device: Where dense embeddings are compared. Sparse ones are always compared on the CPU.

    Returns:
        `(N, m)` int64 indices, the nearest first, -1 where there is none, and `(N, m)` float32 cosines, NaN where there
        is none.

    Raises:
        ImportError: the pool is so large that FAISS is needed, and FAISS is not installed.
    """
    size = len(pool)
    is_large, is_dense = size > APPROXIMATE_ABOVE, isinstance(embeddings, np.ndarray)
    if is_large and is_dense:
        check_faiss(size)
    elif is_large:
        logger.warning(_describe_long_search(size))
    unit = normalise_rows(embeddings)
    is_finite = _find_finite_rows(unit)
    may_be_exemplar, count = pool.has_prompt_and_response & is_finite, config.exemplars_per_sample
    rules = Rules.from_pool(pool, context, may_be_exemplar, config.allow_identical_exemplars, count)
    queries = torch.from_numpy(np.flatnonzero(is_finite))
    exemplars = np.full((size, count), NO_EXEMPLAR, dtype=np.int64)
    similarities = np.full((size, count), np.nan, dtype=np.float32)
    search = search_with_faiss if is_large and is_dense and len(rules.candidates) else search_exactly
    found = search(unit, rules, queries, torch.device(device), show_progress)
    exemplars[is_finite], similarities[is_finite] = (part.numpy() for part in found)
    return exemplars, similarities


def _describe_long_search(size: int) -> str:
    hours = SPARSE_SECONDS_PER_PAIR * size**2 / 3600
    return (
        f"The tf-idf vectors of {size:,} samples are compared pair by pair, because FAISS takes dense ones only: about "
        f'{hours:,.1f} hours on two cores. Faster: a sentence-transformers `embedder`, `embedder="model"`, or an array '
        "of shape (N, d)."
    )


def _find_finite_rows(unit: Embeddings) -> np.ndarray:
    """Returns an `(N,)` mask. A model in float16 may overflow on single prompts; tf-idf is always finite."""
    if isinstance(unit, np.ndarray):
        return np.asarray(np.isfinite(unit).all(axis=1))
    return np.ones(unit.shape[0], dtype=bool)
