"""Finds the exemplar of each sample: k(i) = argmax over j != i of cosine(h_i, h_j), equation 1 of the paper."""

import logging
from collections.abc import Callable
from typing import TypeAlias, cast

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import NO_EXEMPLAR, Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.embeddings.exact import search_exactly
from miwv_trainer.embeddings.faiss import check_faiss, search_with_faiss
from miwv_trainer.embeddings.rules import Rules
from miwv_trainer.embeddings.vectors import Embeddings, normalise_rows

logger = logging.getLogger(__name__)
# The cost of exact search grows with the square of the pool.
APPROXIMATE_ABOVE = 1_000_000
SPARSE_SECONDS_PER_PAIR = 1e-8  # measured; see docs/retrieval.md
# From rows of length 1, rules and `(Q,)` queries to `(Q,)` indices and cosines.
Search: TypeAlias = Callable[[Embeddings, Rules, Tensor, World], tuple[Tensor, Tensor]]


def find_nearest_exemplars(
    embeddings: Embeddings | None,
    pool: Pool,
    context: int,
    allow_identical: bool = False,
    world: World | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Finds the nearest allowed sample of each sample: the first column of what [`find_ranked_exemplars`] finds.

    Args:
        allow_identical: Whether a copy of a sample may be its exemplar.

    Returns:
        `(N,)` int64 indices, -1 where there is none, and `(N,)` float32 cosines, NaN where there is none.
    """
    config = MIWVConfig(allow_identical_exemplars=allow_identical)
    exemplars, similarities = find_ranked_exemplars(embeddings, pool, context, config, world)
    return exemplars[:, 0], similarities[:, 0]


def find_ranked_exemplars(
    embeddings: Embeddings | None,
    pool: Pool,
    context: int,
    config: MIWVConfig,
    world: World | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Finds the nearest allowed samples of each sample, `exemplars_per_sample` of them, ties by lower index. They are
    the same on any number of ranks.

    Excluded as exemplars are the sample itself, its copies (unless `allow_identical_exemplars`), and samples without
    prompt or response. The nearest samples that fit the context together with the sample are taken, or the nearest of
    all where none fits. Samples whose embedding contains NaN or infinity get no exemplar and serve as none.

    Each rank searches a share of the samples. Dense embeddings of more than a million samples are searched with FAISS,
    on the CPU of rank 0.

    Args:
        embeddings: `(N, d)`, in pool order, of any length. Those of rank 0 count; other ranks may give None.
        context: Most tokens of an exemplar and its sample together, preamble included.
        world: The ranks, which call this together. Dense embeddings are compared on their devices, sparse ones always
            on the CPU. By default this process alone, on the CPU.

    Returns:
        `(N, m)` int64 indices, the nearest first, -1 where there is none, and `(N, m)` float32 cosines, NaN where there
        is none.

    Raises:
        ImportError: the pool is so large that FAISS is needed, and FAISS is not installed.
        RuntimeError: another rank failed; the message says which, and why.
    """
    world = world or World(0, 1, torch.device("cpu"), quiet=True)
    is_dense = world.broadcast_from_main(isinstance(embeddings, np.ndarray))
    is_large = len(pool) > APPROXIMATE_ABOVE
    if is_large and is_dense:
        return _search_on_main(embeddings, pool, context, config, world)
    if is_large and world.is_main:
        logger.warning(_describe_long_search(len(pool)))
    unit: Embeddings | None = None
    with world.run_together("preparing the embeddings"):
        if world.is_main:
            unit = normalise_rows(embeddings)
    return _search(search_exactly, _share_rows(unit, world), pool, context, config, world)


def _search_on_main(
    embeddings: Embeddings | None, pool: Pool, context: int, config: MIWVConfig, world: World
) -> tuple[np.ndarray, np.ndarray]:
    """The search with FAISS, which has threads of its own, by rank 0 alone; the result is on every rank."""
    found: tuple[np.ndarray, np.ndarray] | None = None
    # Minutes: `run_together` keeps the waiting ranks from timing out.
    with world.run_together("finding exemplars"):
        check_faiss(len(pool))
        if world.is_main:
            unit, alone = normalise_rows(embeddings), world.restrict_to_this_rank()
            found = _search(search_with_faiss, unit, pool, context, config, alone)
    return cast(tuple[np.ndarray, np.ndarray], world.broadcast_from_main(found))


def _search(
    search: Search, unit: Embeddings, pool: Pool, context: int, config: MIWVConfig, world: World
) -> tuple[np.ndarray, np.ndarray]:
    is_finite = _find_finite_rows(unit)
    may_be_exemplar, count = pool.has_prompt_and_response & is_finite, config.exemplars_per_sample
    rules = Rules.from_pool(pool, context, may_be_exemplar, config.allow_identical_exemplars, count)
    queries = torch.from_numpy(np.flatnonzero(is_finite))
    exemplars = np.full((len(pool), count), NO_EXEMPLAR, dtype=np.int64)
    similarities = np.full((len(pool), count), np.nan, dtype=np.float32)
    found = search(unit, rules, queries, world)
    exemplars[is_finite], similarities[is_finite] = (part.numpy() for part in found)
    return exemplars, similarities


def _share_rows(rows: Embeddings | None, world: World) -> Embeddings:
    """Rank 0's rows on every rank."""
    if world.size == 1:
        return rows
    sparse = None if rows is None or isinstance(rows, np.ndarray) else rows
    shape = world.broadcast_from_main(None if sparse is None else sparse.shape)
    if shape is None:
        return world.broadcast_array(rows)
    arrays = (None, None, None) if sparse is None else (sparse.data, sparse.indices, sparse.indptr)
    return scipy.sparse.csr_matrix(tuple(map(world.broadcast_array, arrays)), shape=shape)


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
