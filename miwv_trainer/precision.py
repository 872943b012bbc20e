"""Samples near the selection's threshold, scored again in float32 where the model computes in lower precision.

Rounding to bfloat16 moves a loss by some hundredths of a nat, and MIWV is a small difference of two losses: samples on
both sides of the threshold change places. Far from it rounding changes no selection, so only a band around it is
scored again, with the same low-precision weights in float32 arithmetic, as wide as the rounding measured there asks.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from miwv_trainer.config import MIWVConfig
from miwv_trainer.distributed import World
from miwv_trainer.head import inner_model
from miwv_trainer.journal import Journal
from miwv_trainer.layout import score_pool
from miwv_trainer.packing import exemplars_of
from miwv_trainer.pool import Pool
from miwv_trainer.scoring import Losses, inside, noticing_autocast
from miwv_trainer.selection import number_selected, select_top

logger = logging.getLogger(__name__)

CALIBRATION = 32  # samples that tell how much rounding moves MIWV, to an eighth of it
WIDTH = 3.0  # half the band's width, in root mean squares of that movement
MOST_REFINED = 0.25  # of the pool: float32 may be an order of magnitude slower

REFINED = "float32"  # the stages' name in the journal

# Losses to `(N,)` scores and `(N,)` distances from the threshold of the selection, NaN where there is none.
Ranking = Callable[[Losses], tuple[np.ndarray, np.ndarray]]

# Where a module holds a tensor: the module and the attribute's name.
Slot = tuple[nn.Module, str]


@dataclass(frozen=True)
class Refined:
    """
    Losses of a pool, those near the threshold in float32 arithmetic.

    Args:
        losses: Of all samples; its `tokens_forwarded` includes `tokens`.
        samples: How many were scored again.
        tokens: Tokens forwarded for them.
        seconds: Time that took.
    """

    losses: Losses
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0


def score_refined(
    model: nn.Module,
    pool: Pool,
    exemplars: np.ndarray,
    config: MIWVConfig,
    layout: str,
    world: World,
    show_progress: bool = False,
    journal: Journal | None = None,
    ranking: Ranking | None = None,
) -> Refined:
    """
    Like [`~miwv_trainer.layout.score_pool`]; then, where the model computes below float32 and `refine_near_threshold`
    is on, the samples near the threshold again.

    A model that cannot compute in float32 keeps the losses it has, and a log line says why.
    """
    with noticing_autocast(model) as noticed:
        losses = score_pool(model, pool, exemplars, config, layout, world, show_progress, journal)
    is_low = world.share(any(noticed) or any(map(_is_low, model.parameters())))
    if not is_low or not config.refine_near_threshold:
        return Refined(losses)
    obstacle = _obstacle(model, world)
    if obstacle is not None:
        if world.is_main:
            logger.info("Samples near the threshold are not scored again in float32: %s.", obstacle)
        return Refined(losses)
    return refine(model, pool, exemplars, losses, config, layout, world, show_progress, journal, ranking)


def refine(
    model: nn.Module,
    pool: Pool,
    exemplars: np.ndarray,
    losses: Losses,
    config: MIWVConfig,
    layout: str,
    world: World,
    show_progress: bool = False,
    journal: Journal | None = None,
    ranking: Ranking | None = None,
) -> Refined:
    """
    Scores the samples near the threshold of `losses` again, in float32 arithmetic.

    The nearest ones tell how much rounding moves MIWV (root mean square); all within three times that are scored, which
    moves the threshold and sharpens the estimate, until none is left or a quarter of the pool is done.

    Args:
        model: In evaluation mode, without gradients ([`~miwv_trainer.scoring.no_trace`]).
        exemplars: `(N,)` index of each sample's exemplar.
        losses: Of the same pool, by the model as it computes.
        ranking: What is ranked and where its threshold lies; by default MIWV and the selection's number.
    """
    started = time.perf_counter()
    if ranking is None:
        ranking = functools.partial(_by_miwv, number=number_selected(config.fraction, len(pool)))
    most = max(CALIBRATION, int(MOST_REFINED * len(pool)))
    refined, is_done = losses, np.zeros(len(pool), dtype=bool)
    scores, distances = ranking(losses)
    wanted, passes = nearest(distances, np.inf)[:CALIBRATION], 0
    try:
        with ExitStack() as stack:
            with world.together("copying weights to float32"):
                stack.enter_context(float32_arithmetic(model))
            while len(again := wanted[: most - is_done.sum()]):
                of_these, stage = exemplars_of(again, exemplars), f"{REFINED}, pass {passes}"
                scored = score_pool(model, pool, of_these, config, layout, world, show_progress, journal, stage)
                passes += 1
                refined = refined.replaced(scored, again)
                is_done[again] = True
                scores_now, distances = ranking(refined)
                width = WIDTH * _root_mean_square(scores_now[is_done] - scores[is_done])
                wanted = nearest(distances, width)
                wanted = wanted[~is_done[wanted]]
    except RuntimeError as error:  # no memory for float32, or a kernel without it: on one rank, so on all
        if world.is_main:
            logger.warning(
                "Only %d samples near the threshold could be scored again in float32: %s. "
                "`refine_near_threshold=False` leaves it out.", is_done.sum(), str(error).strip().partition("\n")[0],
            )  # fmt: skip
    else:
        if len(wanted) and world.is_main:
            logger.warning(
                "%d samples near the threshold were scored again in float32, the most that are, and %d more are as "
                "near as rounding moves MIWV: the selection may differ from float32's.", is_done.sum(), len(wanted),
            )  # fmt: skip
    tokens = refined.tokens_forwarded - losses.tokens_forwarded
    return Refined(refined, int(is_done.sum()), tokens, time.perf_counter() - started)


def _root_mean_square(values: np.ndarray) -> float:
    """Over what is finite; 0 where nothing is."""
    finite = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(np.square(finite)))) if len(finite) else 0.0


def _by_miwv(losses: Losses, number: int) -> tuple[np.ndarray, np.ndarray]:
    return losses.miwv, threshold_distances(losses.miwv, number)


def threshold_distances(miwv: np.ndarray, number: int) -> np.ndarray:
    """
    `(N,)` distance of each MIWV from the `number`-th highest, in nats; NaN where a sample has none.

    Where no more than `number` have one, all of these are selected, and none is near a threshold: NaN everywhere.
    """
    if np.count_nonzero(~np.isnan(miwv)) <= number:
        return np.full(len(miwv), np.nan)
    return np.abs(miwv - miwv[select_top(miwv, number)].min())


def nearest(distances: np.ndarray, width: float) -> np.ndarray:
    """The samples at most `width` from their threshold, nearest first, ties by lower index; none where it is NaN."""
    order = np.argsort(distances, kind="stable")
    return order[distances[order] <= width]


@contextmanager
def float32_arithmetic(model: nn.Module) -> Iterator[None]:
    """
    Inside, the model's forward computes in float32 with the values of its low-precision weights, and without autocast.
    For forwards without gradients. Outside, nothing has happened, also after an error.

    A layer's weights are copied to float32 while it runs, so that one layer is held twice at a time; embeddings, head,
    and whatever several layers share, throughout. Parameters are set aside, not changed: their storage, gradients and
    the hooks on them (of DistributedDataParallel, for one) stay. Whether matrix products of float32 use TF32 is left as
    it is set.
    """
    device_type = next(model.parameters()).device.type
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device_type, enabled=False))
        for module in inside(model):
            # accelerate enters autocast in the root's forward, so it is left in the first module called there; where
            # the root's forward ends, autocast is again what it was before.
            hook = module.register_forward_pre_hook(lambda *_: torch.set_autocast_enabled(device_type, False))
            stack.callback(hook.remove)
        blocks = list(_blocks(model))
        shared, own = _assigned(model, blocks)
        stack.enter_context(_Upcast(shared))
        for block, slots in zip(blocks, own, strict=True):
            upcast = _Upcast(slots)
            stack.callback(upcast.restore)
            # First before the layer and last after it, so that hooks of others find the weights that it runs with.
            stack.callback(block.register_forward_pre_hook(lambda *_, u=upcast: u.apply(), prepend=True).remove)
            stack.callback(block.register_forward_hook(lambda *_, u=upcast: u.restore()).remove)
        yield


class _Upcast:
    """Float32 copies in the place of tensors, until they are restored. Slots with one tensor share one copy."""

    def __init__(self, slots: list[Slot]) -> None:
        self.slots = slots
        self.originals: list[torch.Tensor] = []

    def apply(self) -> None:
        if self.originals:
            return
        self.originals = [getattr(module, name) for module, name in self.slots]
        copies = {id(tensor): _float32(tensor) for tensor in self.originals}
        for (module, name), tensor in zip(self.slots, self.originals, strict=True):
            setattr(module, name, copies[id(tensor)])

    def restore(self) -> None:
        for (module, name), tensor in zip(self.slots, self.originals, strict=False):
            setattr(module, name, tensor)
        self.originals = []

    def __enter__(self) -> None:
        self.apply()

    def __exit__(self, *_: object) -> None:
        self.restore()


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.detach().float()
    return nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy


def _assigned(model: nn.Module, blocks: list[nn.Module]) -> tuple[list[Slot], list[list[Slot]]]:
    """The low-precision tensors of a model: those outside blocks or in several of them, and those of each block."""
    in_blocks = {module for block in blocks for module in block.modules()}
    outside = [module for module in model.modules() if module not in in_blocks]
    users: dict[int, set[int]] = {}
    for number, modules in enumerate([outside, *(block.modules() for block in blocks)]):
        for module in modules:
            for _, tensor in _low_precision_tensors(module):
                users.setdefault(id(tensor), set()).add(number)
    slots: list[list[Slot]] = [[] for _ in range(len(blocks) + 1)]
    for module in model.modules():
        for name, tensor in _low_precision_tensors(module):
            numbers = users[id(tensor)]
            slots[min(numbers) if len(numbers) == 1 else 0].append((module, name))
    return slots[0], slots[1:]


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost module lists: the layers of a transformer."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _blocks(child)


def _low_precision_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The module's own parameters and buffers that are floating-point numbers of less than 32 bits."""
    held = [
        *module.named_parameters(recurse=False, remove_duplicate=False),
        *module.named_buffers(recurse=False, remove_duplicate=False),
    ]
    return [(name, tensor) for name, tensor in held if _is_low(tensor)]


def _is_low(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize < torch.float32.itemsize


def _obstacle(model: nn.Module, world: World) -> str | None:
    """Why the model's weights cannot be copied to float32; None where they can."""
    if world.sharded:
        return "the model's parameters are split over the ranks"
    if any(parameter.is_meta for parameter in model.parameters()):
        return "some of the model's weights are offloaded"
    packed = any(parameter.dtype.itemsize < 2 for parameter in model.parameters())
    if packed or getattr(inner_model(model).config, "quantization_config", None) is not None:
        return "the model is quantised"
    return None
