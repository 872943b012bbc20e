"""
Samples near the selection's threshold, scored again in float32 if the model computes in lower precision.

Rounding to bfloat16 moves a loss by some hundredths of a nat, and MIWV is a small difference of two losses: samples on
both sides of the threshold change places. Far from the threshold, rounding changes no selection. So only samples within
a band around it are scored again, with the same low-precision weights in float32 arithmetic; the rounding measured
there gives the band's width. The price is bounded: at most a quarter of the pool is scored twice.
"""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from miwv_trainer.distributed.world import World
from miwv_trainer.distributed.wrappers import get_inner_model
from miwv_trainer.foreign_errors import take_first_line
from miwv_trainer.scoring.float32 import is_low_precision, use_float32
from miwv_trainer.scoring.isolation import watch_autocast
from miwv_trainer.scoring.layout import score_pool
from miwv_trainer.scoring.losses import Losses, Recording
from miwv_trainer.scoring.rows import restrict_exemplars
from miwv_trainer.scoring.scorer import Scorer
from miwv_trainer.storage.journal import Journal

logger = logging.getLogger(__name__)
# Samples from which rounding is first estimated. The standard error of a root mean square of 32 values is an eighth.
CALIBRATION = 32
# Half the band's width, in root mean squares of what rounding moves: three, so that few samples outside it cross.
WIDTH = 3.0
# Share of the pool. Float32 may be an order of magnitude slower.
MOST_REFINED = 0.25
# How the names of these stages begin in the journal.
REFINED = "float32"
# From losses to `(N,)` scores and `(N,)` distances from the threshold of the selection, NaN where there is none.
Ranking = Callable[[Losses], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Refined:
    """
    Losses of a pool, those near the threshold in float32 arithmetic.

    Args:
        losses: Losses of all samples; `tokens_forwarded` includes `tokens`.
        samples: How many were scored again.
        tokens: Tokens forwarded for these.
        seconds: Time for these.
        first_seconds: Time of the pass before, over all samples.
    """

    losses: Losses
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first_seconds: float = 0.0


def score_refined(
    scorer: Scorer, exemplars: np.ndarray, layout: str, ranking: Ranking, journal: Journal | None = None
) -> Refined:
    """
    Scores a pool like [`~miwv_trainer.scoring.layout.score_pool`]. Then, if the model computes below float32 and
    `refine_near_threshold` is on, the samples near the threshold are scored again.

    A model that cannot compute in float32 keeps the losses it has, and a log line says why.
    """
    world, started = scorer.world, time.perf_counter()
    with watch_autocast(scorer.model) as noticed:
        losses = score_pool(scorer, exemplars, layout, Recording(journal))
    first = Refined(losses, first_seconds=time.perf_counter() - started)
    is_low = world.broadcast_from_main(any(noticed) or any(map(is_low_precision, scorer.model.parameters())))
    if not is_low or not scorer.config.refine_near_threshold:
        return first
    obstacle = _find_obstacle(scorer.model, world)
    if obstacle is not None:
        if world.is_main:
            logger.info("Samples near the threshold are not scored again in float32: %s.", obstacle)
        return first
    refined = refine(scorer, exemplars, losses, layout, ranking, journal)
    return replace(refined, first_seconds=first.first_seconds)


def refine(
    scorer: Scorer,
    exemplars: np.ndarray,
    losses: Losses,
    layout: str,
    ranking: Ranking,
    journal: Journal | None = None,
) -> Refined:
    """
    Scores the samples near the threshold of `losses` again, in float32 arithmetic.

    The nearest ones tell how much rounding moves a score (root mean square). All samples within three times that
    distance are scored, which moves the threshold and sharpens the estimate. This is repeated until none is left or a
    quarter of the pool is done.

    The model is in evaluation mode, without gradients ([`~miwv_trainer.scoring.isolation.leave_no_trace`]).

    Args:
        exemplars: `(N,)` index of each sample's exemplar.
        losses: Losses of the same pool by the model in its own precision.
        ranking: Gives scores, and their distances from the threshold.
    """
    started, world, size = time.perf_counter(), scorer.world, len(scorer.pool)
    most = max(CALIBRATION, int(MOST_REFINED * size))
    refined, is_done = losses, np.zeros(size, dtype=bool)
    scores, distances = ranking(losses)
    wanted, passes = find_nearest(distances, np.inf)[:CALIBRATION], 0
    try:
        with ExitStack() as stack:
            with world.run_together("copying weights to float32"):
                stack.enter_context(use_float32(scorer.model))
            while len(again := wanted[: most - is_done.sum()]):
                recording = Recording(journal, f"{REFINED}, pass {passes}")
                scored = score_pool(scorer, restrict_exemplars(again, exemplars), layout, recording)
                passes += 1
                refined = refined.replace_samples(scored, again)
                is_done[again] = True
                scores_now, distances = ranking(refined)
                width = WIDTH * _root_mean_square(scores_now[is_done] - scores[is_done])
                wanted = find_nearest(distances, width)
                wanted = wanted[~is_done[wanted]]
    # Float32 does not fit the memory, or a kernel does not take it. Ranks agree on errors, so all come here.
    except RuntimeError as error:
        if world.is_main:
            logger.warning(
                "Only %d samples near the threshold could be scored again in float32: %s. "
                "`refine_near_threshold=False` leaves it out.", is_done.sum(), take_first_line(error),
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
    """Root mean square of the finite values; 0 if none is."""
    finite = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(np.square(finite)))) if len(finite) else 0.0


def find_nearest(distances: np.ndarray, width: float) -> np.ndarray:
    """Samples at most `width` from their threshold, nearest first, ties by lower index; none whose distance is NaN."""
    order = np.argsort(distances, kind="stable")
    return order[distances[order] <= width]


def _find_obstacle(model: nn.Module, world: World) -> str | None:
    """Why the model's weights cannot be copied to float32; None if they can."""
    if world.sharded:
        return "the model's parameters are split over the ranks"
    if any(parameter.is_meta for parameter in model.parameters()):
        return "some of the model's weights are offloaded"
    packed = any(parameter.dtype.itemsize < 2 for parameter in model.parameters())
    if packed or getattr(get_inner_model(model).config, "quantization_config", None) is not None:
        return "the model is quantised"
    return None
