"""Nearest neighbours under the rules of an exemplar: exact on any device, or approximate with FAISS.

Queries go in chunks, and an N x N matrix is never held (52,002 samples would take 10.8 GB).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from miwv_trainer.data.pool import NO_EXEMPLAR, Pool
from miwv_trainer.embeddings.vectors import TIE, Embeddings, products_with

SIMILARITIES_AT_ONCE = 2**24  # 64 MiB of float32
UNLIMITED = np.iinfo(np.int32).max
Products = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rules:
    """
    Which sample may be whose exemplar.

    Args:
        candidates: `(M,)` ascending int64 indices of the samples that may be an exemplar.
        group: `(N,)` int32. A sample is never the exemplar of one of its own group, so never of itself.
        length: `(N,)` int32 tokens of each sample.
        room: `(N,)` int32 tokens that an exemplar may have; unlimited where not one of another group fits.
    """

    candidates: Tensor
    group: Tensor
    length: Tensor
    room: Tensor

    @classmethod
    def of(cls, pool: Pool, context: int, may_be_exemplar: np.ndarray, allow_identical: bool) -> "Rules":
        """`may_be_exemplar` is `(N,)` bool."""
        candidates = np.flatnonzero(may_be_exemplar)
        group = np.arange(len(pool)) if allow_identical else pool.duplicate_groups
        room = context - len(pool.preamble) - pool.lengths
        room = np.where(room < _shortest_of_others(pool.lengths, group, candidates), UNLIMITED, room)
        as_int32 = (torch.from_numpy(array.astype(np.int32)) for array in (group, pool.lengths, room))
        return cls(torch.from_numpy(candidates), *as_int32)

    def on(self, device: torch.device) -> "Rules":
        return Rules(*(each.to(device) for each in (self.candidates, self.group, self.length, self.room)))

    def rule_out_own_group(self, cosines: Tensor, queries: Tensor) -> None:
        """`(Q, M)` cosines with all candidates; the passes over all of them are spared where a group is one sample."""
        column = torch.searchsorted(self.candidates, queries).clamp(max=len(self.candidates) - 1)
        (own,) = (self.candidates[column] == queries).nonzero(as_tuple=True)
        cosines[own, column[own]] = -torch.inf
        (row,) = (torch.bincount(self.group)[self.group[queries]] > 1).nonzero(as_tuple=True)
        copies = self.group[self.candidates] == self.group[queries[row], None]
        cosines[row] = cosines[row].masked_fill(copies, -torch.inf)

    def nearest(self, cosines: Tensor, queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """
        Of each query's candidates the nearest that leaves room for the query, ties by lower index.

        Args:
            cosines: `(Q, K)` float32, -inf for those that are ruled out. Overwritten.
            queries: `(Q,)` indices.
            candidates: `(K,)` or `(Q, K)` ascending indices.

        Returns:
            `(Q,)` indices, -1 where there is none, and `(Q,)` cosines, NaN where there is none.
        """
        length, room = self.length[candidates], self.room[queries, None]
        if (room < length.max()).any():
            cosines.masked_fill_(length > room, -torch.inf)
        best = cosines.amax(dim=1, keepdim=True)
        first_of_ties = (cosines >= best - TIE).view(torch.uint8).argmax(dim=1, keepdim=True)
        found = best[:, 0] > -torch.inf
        indices = candidates.expand(len(queries), -1).gather(1, first_of_ties)[:, 0]
        similarities = cosines.gather(1, first_of_ties)[:, 0]
        return indices.where(found, NO_EXEMPLAR), similarities.where(found, torch.nan)


def _shortest_of_others(length: np.ndarray, group: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """`(N,)` tokens of the shortest candidate that is not of a sample's own group."""
    if len(candidates) == 0:
        return np.full(len(length), UNLIMITED)
    shortest = candidates[length[candidates].argmin()]
    others = candidates[group[candidates] != group[shortest]]
    return np.where(group == group[shortest], length[others].min(initial=UNLIMITED), length[shortest])


def search_exactly(
    unit: Embeddings, rules: Rules, queries: Tensor, device: torch.device, show_progress: bool = False
) -> tuple[Tensor, Tensor]:
    """
    The exemplar of each query, compared with every candidate.

    Args:
        unit: `(N, d)` vectors of length 1. Sparse ones are searched on the CPU, whatever the device.
        queries: `(Q,)` int64 indices.

    Returns:
        `(Q,)` indices and `(Q,)` cosines as of `Rules.nearest`, on the CPU.
    """
    if len(rules.candidates) == 0:
        return torch.full_like(queries, NO_EXEMPLAR), torch.full(queries.shape, torch.nan)
    if not isinstance(unit, np.ndarray):
        device = torch.device("cpu")
    products = _products(unit, rules.candidates.numpy(), device)
    rules = rules.on(device)
    chunks = queries.split(max(1, _similarities_at_once(device) // len(rules.candidates)))
    found = []
    for chunk in tqdm(chunks, desc="Finding exemplars", disable=not show_progress):
        cosines, chunk = products(chunk), chunk.to(device)
        rules.rule_out_own_group(cosines, chunk)
        found.append(rules.nearest(cosines, chunk, rules.candidates))
    return torch.cat([indices for indices, _ in found]).cpu(), torch.cat([cosines for _, cosines in found]).cpu()


@contextmanager
def full_float32() -> Iterator[None]:
    """
    Inside, products of float32 keep float32's 24 bits.

    A Trainer with `tf32=True` and `torch.set_float32_matmul_precision` let CUDA round factors to 11 bits and oneDNN to
    8: cosines would be off by 1e-3, more than what separates the nearest two. torch has an older setting and newer
    ones, and refuses to tell the older once a newer one contradicts it; setting the older sets both.
    """
    newer: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    precisions = [backend.fp32_precision for backend in newer]
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = "highest"
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older)
        for backend, precision in zip(newer, precisions, strict=True):
            backend.fp32_precision = precision


def _similarities_at_once(device: torch.device) -> int:
    """On CUDA a quarter of the free memory: a similarity and its masks take up to 16 bytes."""
    if device.type != "cuda":
        return SIMILARITIES_AT_ONCE
    free, _ = torch.cuda.mem_get_info(device)
    return min(free // 64, 2**30)


def _products(unit: Embeddings, candidates: np.ndarray, device: torch.device) -> Products:
    """On the CPU by NumPy, whose BLAS was 1.8 times as fast as torch's on AMD, and never rounds its factors."""
    if device.type == "cpu":
        on_cpu = products_with(unit, candidates)
        return lambda queries: torch.from_numpy(on_cpu(queries.numpy()))
    columns = unit[candidates].T
    on_device = torch.from_numpy(columns).to(device)

    def products(queries: Tensor) -> Tensor:
        with full_float32():
            return torch.from_numpy(unit[queries.numpy()]).to(device) @ on_device

    return products
