"""Approximate search with FAISS, for pools of more than a million samples."""

import logging
from dataclasses import replace
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from miwv_trainer.data.pool import NO_EXEMPLAR
from miwv_trainer.distributed.world import World
from miwv_trainer.embeddings.exact import search_exactly
from miwv_trainer.embeddings.rules import Rules
from miwv_trainer.embeddings.vectors import TIE

logger = logging.getLogger(__name__)
# Of so many neighbours of a query, the first that the rules allow are its exemplars: at least four times as many as
# each sample gets.
NEIGHBOURS = 32
RECALL = 0.99
RECALL_SAMPLE = 1000
FIRST_PROBES = 8
QUERIES_AT_ONCE = 8192
# Training vectors for each list of the index. With fewer than 39, FAISS warns that the lists will be poor.
TRAINED_ON = 64


class _Index(Protocol):
    """What is used of `faiss.IndexIVFFlat`, whose type is known only where FAISS is installed."""

    nlist: int
    nprobe: int

    def train(self, vectors: np.ndarray) -> None: ...

    def add(self, vectors: np.ndarray) -> None: ...

    def search(self, queries: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]: ...


def search_with_faiss(unit: np.ndarray, rules: Rules, queries: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """
    Finds the exemplars of each query among its 32 nearest neighbours in a FAISS index on the CPU.

    The index clusters the candidates into lists and looks only into the lists nearest to a query. Their number is
    doubled until, for 99 % of 1,000 queries, each exemplar is as near as the exact one. Queries with too few allowed
    candidates among the 32 are searched exactly. Arguments and return value are those of `search_exactly`, but one rank
    calls it alone.

    Raises:
        ImportError: FAISS is not installed.
    """
    if len(rules.candidates) == 0:
        return search_exactly(unit, rules, queries, world)
    index = _build_index(unit, rules.candidates.numpy())
    _choose_probes(index, unit, rules, queries, world)
    chunks = tqdm(queries.split(QUERIES_AT_ONCE), desc="Finding exemplars", disable=not world.shows_progress)
    found = [_search_index(index, unit, rules, chunk) for chunk in chunks]
    indices, cosines = (torch.cat(parts) for parts in zip(*found, strict=True))
    is_missing = (indices == NO_EXEMPLAR).any(dim=1)
    if is_missing.any():
        logger.info(
            "%d samples have no exemplar among %d neighbours: searched exactly.",
            is_missing.sum(), _count_neighbours(rules),
        )  # fmt: skip
        indices[is_missing], cosines[is_missing] = search_exactly(unit, rules, queries[is_missing], world)
    return indices, cosines


def _count_neighbours(rules: Rules) -> int:
    return max(NEIGHBOURS, 4 * rules.count)


def check_faiss(samples: int) -> None:
    """Raises `ImportError` where FAISS is not installed."""
    try:
        import faiss  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{samples:,} samples are searched with FAISS, which is not installed: `pip install 'miwv-trainer[faiss]'`."
        ) from error


def _build_index(unit: np.ndarray, candidates: np.ndarray) -> _Index:
    """Returns an index of whole vectors in about 4 * sqrt(M) lists, trained from a fixed seed."""
    import faiss

    size, dim = len(candidates), unit.shape[1]
    lists = max(1, min(round(4 * size**0.5), size // TRAINED_ON))
    # Declared to return faiss.Index, which knows nothing of lists.
    index = cast(_Index, faiss.index_factory(dim, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT))
    sample = np.random.default_rng(0).choice(size, min(size, lists * TRAINED_ON), replace=False)
    index.train(unit[candidates[np.sort(sample)]])
    # Added in parts, because `unit[candidates]` at once would copy all vectors beside the index's own copy.
    for part in np.array_split(candidates, -(-size // QUERIES_AT_ONCE)):
        index.add(unit[part])
    return index


def _choose_probes(index: _Index, unit: np.ndarray, rules: Rules, queries: Tensor, world: World) -> None:
    """Doubles the number of lists that are searched until the recall on a sample of the queries suffices."""
    spread = np.linspace(0, len(queries) - 1, min(len(queries), RECALL_SAMPLE)).astype(np.int64)
    sample = queries[torch.from_numpy(spread)]
    _, exact_cosines = search_exactly(unit, rules, sample, replace(world, quiet=True))
    index.nprobe = min(FIRST_PROBES, index.nlist)
    while True:
        _, cosines = _search_index(index, unit, rules, sample)
        # Queries without a candidate have NaN, which compares as false: they are no loss, because they are searched
        # exactly afterwards.
        recall = 1 - (cosines < exact_cosines - TIE).any(dim=1).double().mean().item()
        if recall >= RECALL or index.nprobe == index.nlist:
            break
        index.nprobe = min(2 * index.nprobe, index.nlist)
    logger.info(
        "FAISS looks into %d of %d lists: its exemplar is as near as the exact one for %.1f %% of %d samples.",
        index.nprobe, index.nlist, 100 * recall, len(sample),
    )  # fmt: skip


def _search_index(index: _Index, unit: np.ndarray, rules: Rules, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `(Q, count)` indices and cosines of the nearest allowed neighbours."""
    found, positions = index.search(unit[queries.numpy()], _count_neighbours(rules))
    # Ties go to the first candidate, so candidates must be in ascending order; FAISS gives them by cosine.
    order = np.argsort(positions, axis=1)
    cosines = torch.from_numpy(np.take_along_axis(found, order, axis=1))
    ascending = torch.from_numpy(np.take_along_axis(positions, order, axis=1))
    cosines[ascending < 0] = -torch.inf  # FAISS fills up with -1 where the lists hold fewer than 32 vectors
    candidates = rules.candidates[ascending.clamp(min=0)]
    cosines.masked_fill_(rules.group[candidates] == rules.group[queries, None], -torch.inf)
    return rules.pick_nearest(cosines, queries, candidates)
