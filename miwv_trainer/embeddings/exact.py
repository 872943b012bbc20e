"""Exact search: every query is compared with every candidate.

Queries are searched in chunks, so that the N x N matrix of cosines never exists. For 52,002 samples it would take
10.8 GB.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from miwv_trainer.data.pool import NO_EXEMPLAR
from miwv_trainer.distributed.turns import gather_rows, run_in_turns
from miwv_trainer.distributed.world import World
from miwv_trainer.embeddings.rules import Rules
from miwv_trainer.embeddings.vectors import Embeddings, prepare_products

COSINES_AT_ONCE = 2**24  # 64 MiB of float32
# From `(Q,)` indices on the CPU to `(Q, M)` cosines with all candidates, on the device of the search.
QueryProducts: TypeAlias = Callable[[Tensor], Tensor]


class _MatmulSettings(Protocol):
    """torch's settings of matrix products on one kind of device."""

    fp32_precision: str


def search_exactly(unit: Embeddings, rules: Rules, queries: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """
    Finds the exemplars of each query among all candidates. All ranks call this together, with the same arguments.

    The chunks are those of one process, and one rank searches each, so that the cosines are the same on any number of
    ranks.

    Args:
        unit: `(N, d)` rows of length 1.
        queries: `(Q,)` int64 indices.
        world: The ranks, on whose devices dense rows are compared. Sparse rows are always compared on the CPU.

    Returns:
        `(Q, count)` indices and `(Q, count)` cosines as of `Rules.pick_nearest`, on the CPU.
    """
    if len(rules.candidates) == 0 or len(queries) == 0:
        shape = len(queries), rules.count
        return torch.full(shape, NO_EXEMPLAR), torch.full(shape, torch.nan)
    device = world.device if isinstance(unit, np.ndarray) else torch.device("cpu")
    with world.run_together("preparing the search for exemplars"):
        multiply = _prepare_products_on(unit, rules.candidates.numpy(), device)
        rules_there = rules.to(device)

    def search(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chunk = queries[torch.from_numpy(positions)]
        cosines, chunk = multiply(chunk), chunk.to(device)
        rules_there.exclude_own_group(cosines, chunk)
        indices, similarities = rules_there.pick_nearest(cosines, chunk, rules_there.candidates)
        return indices.cpu().numpy(), similarities.cpu().numpy()

    # One number for all: ranks may have more or less memory free.
    at_once = min(world.all_gather(_count_cosines_at_once(device)))
    size = max(1, at_once // len(rules.candidates))
    chunks = [np.arange(start, min(start + size, len(queries))) for start in range(0, len(queries), size)]
    found = run_in_turns(world, chunks, search, "finding exemplars")
    indices, similarities = (
        gather_rows(world, [(chunk, result[part]) for chunk, result in found], len(queries)) for part in (0, 1)
    )
    return torch.from_numpy(indices), torch.from_numpy(similarities)


@contextmanager
def use_full_float32() -> Iterator[None]:
    """
    Inside, products of float32 matrices use all 24 bits of their factors.

    A Trainer with `tf32=True`, or `torch.set_float32_matmul_precision`, lets CUDA round factors to 11 bits and oneDNN
    to 8. Cosines would then be off by 1e-3, more than what separates the two nearest samples.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    newer = cast(tuple[_MatmulSettings, ...], backends)
    precisions = [settings.fp32_precision for settings in newer]
    # torch has one older setting and a newer one for each backend. It refuses to read the older once a newer one
    # contradicts it. Setting the older sets the newer ones too.
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = "highest"
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older)
        for settings, precision in zip(newer, precisions, strict=True):
            settings.fp32_precision = precision


def _count_cosines_at_once(device: torch.device) -> int:
    """Returns how many cosines a chunk may have."""
    if device.type != "cuda":
        return COSINES_AT_ONCE
    free, _ = torch.cuda.mem_get_info(device)
    # A cosine takes up to 16 bytes with its masks, so that a chunk takes a quarter of the free memory.
    return min(free // 64, 2**30)


def _prepare_products_on(unit: Embeddings, candidates: np.ndarray, device: torch.device) -> QueryProducts:
    """Returns a function that multiplies rows of `unit` with those of the candidates, `(M,)` indices."""
    if device.type == "cpu":
        # NumPy's BLAS was 1.8 times as fast as torch's on AMD, and never rounds its factors.
        multiply = prepare_products(unit, candidates)
        return lambda queries: torch.from_numpy(multiply(queries.numpy()))
    columns = torch.from_numpy(unit[candidates].T).to(device)

    def multiply_on_device(queries: Tensor) -> Tensor:
        with use_full_float32():
            return torch.from_numpy(unit[queries.numpy()]).to(device) @ columns

    return multiply_on_device
