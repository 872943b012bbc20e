"""The approximate search of exemplars, with FAISS, for pools of more than a million samples."""

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from miwv_trainer.data.pool import NO_EXEMPLAR
from miwv_trainer.embeddings.exact import Rules, search_exactly
from miwv_trainer.embeddings.vectors import TIE

logger = logging.getLogger(__name__)
NEIGHBOURS = 32
RECALL = 0.99
RECALL_SAMPLE = 1000
FIRST_PROBES = 8
QUERIES_AT_ONCE = 8192
TRAINED_ON = 64  # vectors for each list of the index; FAISS asks for 39 or more


def search_with_faiss(
    unit: np.ndarray, rules: Rules, queries: Tensor, device: torch.device, show_progress: bool = False
) -> tuple[Tensor, Tensor]:
    """
    The exemplar of each query among its 32 nearest of a FAISS index on the CPU, which clusters the candidates into
    lists and looks into the lists nearest to the query. How many is doubled until, for 99 % of 1,000 queries, the
    exemplar is as near as the exact one. Queries with no allowed and fitting sample among the 32 are searched exactly,
    on `device`. Arguments and return value are those of `search_exactly`.

    Raises:
        ImportError: FAISS is not installed.
    """
    index = _index(unit, rules.candidates.numpy())
    _probe_enough(index, unit, rules, queries, device)
    chunks = tqdm(queries.split(QUERIES_AT_ONCE), desc="Finding exemplars", disable=not show_progress)
    found = [_nearest_in_index(index, unit, rules, chunk) for chunk in chunks]
    indices, cosines = (torch.cat(parts) for parts in zip(*found, strict=True))
    left = indices == NO_EXEMPLAR
    if left.any():
        logger.info("%d samples have no exemplar among %d neighbours: searched exactly.", left.sum(), NEIGHBOURS)
        indices[left], cosines[left] = search_exactly(unit, rules, queries[left], device, show_progress)
    return indices, cosines


def check_faiss(samples: int) -> None:
    """Raises `ImportError` where FAISS is not installed."""
    try:
        import faiss  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{samples:,} samples are searched with FAISS, which is not installed: `pip install 'miwv-trainer[faiss]'`."
        ) from error


def _index(unit: np.ndarray, candidates: np.ndarray) -> Any:
    """An inverted file of whole vectors, trained from a fixed seed."""
    import faiss

    size, dim = len(candidates), unit.shape[1]
    lists = max(1, min(round(4 * size**0.5), size // TRAINED_ON))
    index = faiss.index_factory(dim, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    sample = np.random.default_rng(0).choice(size, min(size, lists * TRAINED_ON), replace=False)
    index.train(unit[candidates[np.sort(sample)]])
    for part in np.array_split(candidates, -(-size // QUERIES_AT_ONCE)):
        index.add(unit[part])
    return index


def _probe_enough(index: Any, unit: np.ndarray, rules: Rules, queries: Tensor, device: torch.device) -> None:
    spread = np.linspace(0, len(queries) - 1, min(len(queries), RECALL_SAMPLE)).astype(np.int64)
    sample = queries[torch.from_numpy(spread)]
    _, exact = search_exactly(unit, rules, sample, device)
    index.nprobe = min(FIRST_PROBES, index.nlist)
    while True:
        _, found = _nearest_in_index(index, unit, rules, sample)
        recall = 1 - (found < exact - TIE).double().mean().item()  # NaN: not found, so searched exactly
        if recall >= RECALL or index.nprobe == index.nlist:
            break
        index.nprobe = min(2 * index.nprobe, index.nlist)
    logger.info(
        "FAISS looks into %d of %d lists: its exemplar is as near as the exact one for %.1f %% of %d samples.",
        index.nprobe, index.nlist, 100 * recall, len(sample),
    )  # fmt: skip


def _nearest_in_index(index: Any, unit: np.ndarray, rules: Rules, queries: Tensor) -> tuple[Tensor, Tensor]:
    found, positions = index.search(unit[queries.numpy()], NEIGHBOURS)
    order = np.argsort(positions, axis=1)
    cosines = torch.from_numpy(np.take_along_axis(found, order, axis=1))
    positions = torch.from_numpy(np.take_along_axis(positions, order, axis=1))
    cosines[positions < 0] = -torch.inf  # the lists held fewer
    candidates = rules.candidates[positions.clamp(min=0)]
    cosines.masked_fill_(rules.group[candidates] == rules.group[queries, None], -torch.inf)
    return rules.nearest(cosines, queries, candidates)
