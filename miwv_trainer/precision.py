"""Scoring again, in float32 arithmetic, the samples that lower precision leaves in doubt.

In bfloat16 single losses move by a hundredth and more, so that samples near the selection's threshold change sides. The
weights stay what they are, and each module's are widened while it runs: what differs is the arithmetic alone. Only
samples near the threshold are worth it, for float32 is slower, and on a GPU much.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from miwv_trainer.config import MIWVConfig
from miwv_trainer.distributed import World
from miwv_trainer.head import PADDING_ID, forward_one_position, inner_model
from miwv_trainer.layout import score_pool
from miwv_trainer.packing import NO_EXEMPLAR
from miwv_trainer.pool import Pool
from miwv_trainer.scoring import Losses

logger = logging.getLogger(__name__)

# Samples nearest to the threshold that are scored first, to see how far lower precision is off.
FIRST = 16
# Root mean square differences on either side of the threshold within which samples are scored again.
WIDTH = 3.0
# At most this share of the pool is scored again.
MOST = 0.25


@dataclass(frozen=True)
class Refinement:
    """What was scored again in float32, and what it cost."""

    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0


def refine_near_threshold(
    model: nn.Module,
    pool: Pool,
    exemplars: np.ndarray,
    config: MIWVConfig,
    layout: str,
    world: World,
    losses: Losses,
    number: int,
) -> tuple[Losses, Refinement]:
    """
    Losses in which the samples near the selection's threshold were computed in float32 arithmetic.

    First those nearest to the threshold. Their root mean square difference to lower precision says how wide the band of
    doubt is; then those in it, until all are scored again or a quarter of the pool is. Nothing happens where the model
    computes in float32 already, where it is quantised, and where its parameters are sharded.

    Args:
        losses: Of the whole pool, in the model's own precision.
        number: Samples that will be selected.
    """
    if (obstacle := _obstacle(model, world)) is not None:
        logger.info("No sample is scored again in float32: %s.", obstacle)
        return losses, Refinement()
    started = time.perf_counter()

    def score(chosen: np.ndarray) -> Losses:
        of_chosen = np.full_like(exemplars, NO_EXEMPLAR)
        of_chosen[chosen] = exemplars[chosen]
        return score_pool(model, pool, of_chosen, config, layout, world)

    with float32_arithmetic(model):
        refined, again = rescored(losses, number, score)
    tokens = refined.tokens_forwarded - losses.tokens_forwarded
    refined = replace(refined, tokens_forwarded=losses.tokens_forwarded)
    return refined, Refinement(int(again.sum()), tokens, time.perf_counter() - started)


def rescored(
    losses: Losses, number: int, score: Callable[[np.ndarray], Losses], width: float = WIDTH
) -> tuple[Losses, np.ndarray]:
    """
    Losses in which the samples in doubt are those that `score` gives for their indices; and `(N,)` which these are.

    Args:
        width: Half of the band of doubt, in root mean square differences between the two.
    """
    zero_shot, one_shot, tokens = losses.zero_shot.copy(), losses.one_shot.copy(), losses.tokens_forwarded
    before = losses.miwv
    again = np.zeros(len(before), dtype=bool)
    most = int(MOST * np.isfinite(before).sum())
    chosen = nearest_to_threshold(before, number)[: min(FIRST, most)]
    while len(chosen):
        found = score(chosen)
        zero_shot[chosen], one_shot[chosen] = found.zero_shot[chosen], found.one_shot[chosen]
        tokens += found.tokens_forwarded
        again[chosen] = True
        miwv = Losses(zero_shot, one_shot, tokens).miwv
        difference = float(np.sqrt(np.nanmean((miwv - before)[again] ** 2)))
        doubtful = nearest_to_threshold(miwv, number, within=width * difference)
        chosen = doubtful[~again[doubtful]][: most - int(again.sum())]
    return Losses(zero_shot, one_shot, tokens), again


def nearest_to_threshold(miwv: np.ndarray, number: int, within: float = np.inf) -> np.ndarray:
    """
    Samples whose MIWV is at most `within` from the threshold, the nearest first, ties by lower index.

    Args:
        miwv: `(N,)`, NaN where a sample was not scored.
        number: Samples that will be selected. The threshold is halfway between the last of them and the next.
    """
    finite = np.flatnonzero(np.isfinite(miwv))
    if len(finite) <= number:
        return finite[:0]
    descending = np.sort(miwv[finite].astype(np.float64))[::-1]
    distance = np.abs(miwv[finite] - descending[number - 1 : number + 1].mean())
    order = np.argsort(distance, kind="stable")
    return finite[order[distance[order] <= within]]


@contextmanager
def float32_arithmetic(model: nn.Module) -> Iterator[None]:
    """
    Inside, forwards compute in float32 with the model's own weights, and outside nothing has happened.

    The parameters and buffers of each module are widened while it runs, so that only one module's are held twice; those
    of the output embeddings stay wide, since a fused head uses them outside of their module. An autocast inside the
    model's forward, where the Trainer puts it, is switched off from the backbone on.
    """
    inner = inner_model(model)
    device = next(model.parameters()).device.type
    was_autocast = torch.is_autocast_enabled(device)
    narrow: dict[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def widen(module: nn.Module, *_: Any) -> None:
        for tensor in _own_tensors(module):
            if tensor.dtype in (torch.bfloat16, torch.float16):
                narrow.setdefault(module, []).append((tensor, tensor.data))
                tensor.data = tensor.data.float()

    def restore(module: nn.Module, *_: Any) -> None:
        for tensor, data in narrow.pop(module, []):
            tensor.data = data

    def switch_autocast_off(*_: Any) -> None:
        # The wrapper's own exit brings the state back that it found.
        torch.set_autocast_enabled(device, False)

    head = inner.get_output_embeddings()
    of_head = set(head.modules()) if head is not None else set()
    handles = [inner.base_model.register_forward_pre_hook(switch_autocast_off)]
    for module in set(model.modules()) - of_head:
        if any(True for _ in _own_tensors(module)):
            handles.append(module.register_forward_pre_hook(widen))
            handles.append(module.register_forward_hook(restore, always_call=True))
    try:
        for module in of_head:
            widen(module)
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in list(narrow):
            restore(module)
        torch.set_autocast_enabled(device, was_autocast)


def computes_in_float32(model: nn.Module) -> bool:
    """Whether no parameter is of lower precision and no autocast is on while the backbone runs. One tiny forward."""
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()):
        return False
    device = next(model.parameters()).device
    autocast: list[bool] = []
    handle = inner_model(model).base_model.register_forward_pre_hook(
        lambda *_: autocast.append(torch.is_autocast_enabled(device.type))
    )
    try:
        ids = torch.full((1, 2), PADDING_ID, device=device)
        forward_one_position(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    finally:
        handle.remove()
    return not any(autocast)


def _obstacle(model: nn.Module, world: World) -> str | None:
    if world.sharded:
        return "the model's parameters are sharded over ranks"
    if not all(p.is_floating_point() and p.dtype.itemsize > 1 for p in model.parameters()):
        return "the model is quantised"
    return "the model computes in float32" if computes_in_float32(model) else None


def _own_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)
