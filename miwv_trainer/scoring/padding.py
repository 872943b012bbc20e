"""
Whether right padding changes a model's losses, asked of a few samples before the first row.

It should not: causal attention does not see what comes later. Some families have an attention or a position scheme of
their own that does. Their losses in padded rows were off by up to 2 nats, so they are scored in rows of equal length.
"""

import logging
from dataclasses import replace
from weakref import WeakSet

import numpy as np
import torch
from torch import nn

from miwv_trainer.distributed.wrappers import get_inner_model
from miwv_trainer.scoring.isolation import watch_autocast
from miwv_trainer.scoring.losses import score_batches
from miwv_trainer.scoring.memory import size_batches
from miwv_trainer.scoring.rows import PaddedBatch, find_scorable, plan_padded, plan_zero_shot, restrict_exemplars
from miwv_trainer.scoring.scorer import Scorer

logger = logging.getLogger(__name__)

# Two ways to compute a loss count as equal up to this many nats, or up to ten times the difference that another batch
# without padding makes, whichever is larger.
LEAST_TOLERANCE = {torch.float32: 1e-3}
LEAST_TOLERANCE_LOW_PRECISION = 0.05
# Samples whose rows are scored both ways: the shortest, one of middle length, and the longest that a check may take.
FEW = 3
_warned: WeakSet[nn.Module] = WeakSet()


def find_least_tolerance(model: nn.Module, is_autocast: bool) -> float:
    """The difference between two ways to compute a loss with the same weights that rounding explains, in nats."""
    return LEAST_TOLERANCE.get(find_dtype(model, is_autocast), LEAST_TOLERANCE_LOW_PRECISION)


def find_dtype(model: nn.Module, is_autocast: bool) -> torch.dtype:
    """The dtype that a forward computes in."""
    return torch.bfloat16 if is_autocast else next(model.parameters()).dtype


def settle_padding(scorer: Scorer, exemplars: np.ndarray | None = None) -> Scorer:
    """
    The scorer, with rows of equal length if right padding changes the model's losses, which one warning then says.

    The model is in evaluation mode. All ranks call this together.

    Args:
        exemplars: `(N,)` index of each sample's exemplar; None if no row is one-shot.

    Raises:
        ValueError: the same row alone has another loss each time.
    """
    with scorer.world.run_turn("comparing padded rows with rows alone"):
        found = _measure_padding(scorer.restrict_to_this_rank(), exemplars)
    found = max(scorer.world.all_gather(found))
    if not found:
        return scorer
    if scorer.model not in _warned:  # Every round asks anew; one warning is enough.
        _warned.add(scorer.model)
        logger.warning(
            "%s is scored in rows of equal length, so that no forward has padding: right padding changes its losses "
            "by up to %.2g nats. Smaller forwards make this slower.",
            type(get_inner_model(scorer.model)).__name__, found,
        )  # fmt: skip
    return replace(scorer, sharing=scorer.sharing.without_padding())


def _measure_padding(scorer: Scorer, exemplars: np.ndarray | None) -> float:
    """By how many nats padding changes the losses of a few samples; 0 if rounding explains it."""
    rows = _plan_few(scorer, exemplars)
    if not len(rows.samples):
        return 0.0
    with watch_autocast(scorer.model) as noticed:
        alone = _score_rows(scorer, exemplars, _divide(rows))
    padded = _score_rows(scorer, exemplars, _share(rows, scorer))
    differences = np.abs(padded - alone)
    least = find_least_tolerance(scorer.model, any(noticed))
    if _summarise(differences, least) <= least:
        return 0.0
    again = _score_rows(scorer, exemplars, _divide(rows))
    if _summarise(np.abs(again - alone), least) > least:
        raise ValueError(explain_random(scorer.model))
    # In low precision another batch alone moves a loss (lm-evaluation-harness#1645): each row beside its own copy.
    twice = [PaddedBatch(*(np.repeat(part, 2) for part in (b.samples, b.kinds, b.lengths))) for b in _divide(rows)]
    noise = np.abs(_score_rows(scorer, exemplars, twice) - alone)
    is_too_much = _summarise(differences, least) > max(least, 10 * _summarise(noise, least))
    return float(np.nanmax(differences)) if is_too_much else 0.0


def explain_random(model: nn.Module) -> str:
    """What to do with a model that gives the same row other logits each time."""
    return (
        f"{type(get_inner_model(model)).__name__} gives other losses each time for the same row alone: its forward "
        "draws random numbers in evaluation mode, so no two samples can be compared. Fix its seed (Reformer's "
        "`hash_seed`) or take another model."
    )


def _summarise(differences: np.ndarray, least: float) -> float:
    """The largest in float32, the mean in low precision, where a single short response may move by more."""
    finite = differences[np.isfinite(differences)]
    if not len(finite):  # NaN in both: the round will say so.
        return 0.0
    return float(finite.max() if least < LEAST_TOLERANCE_LOW_PRECISION else finite.mean())


def _score_rows(scorer: Scorer, exemplars: np.ndarray | None, batches: list[PaddedBatch]) -> np.ndarray:
    losses = score_batches(scorer, batches, exemplars)
    return np.stack([losses.zero_shot, losses.one_shot])


def _divide(rows: PaddedBatch) -> list[PaddedBatch]:
    """Each row by itself."""
    parts = (slice(number, number + 1) for number in range(len(rows.samples)))
    return [PaddedBatch(rows.samples[part], rows.kinds[part], rows.lengths[part]) for part in parts]


def _share(rows: PaddedBatch, scorer: Scorer) -> list[PaddedBatch]:
    """The rows, longest first, in as few forwards as they may share."""
    batches, start = [], 0
    while start < len(rows.samples):
        part = slice(start, start + scorer.sharing.count_companions(rows.lengths[start:]))
        batches.append(PaddedBatch(rows.samples[part], rows.kinds[part], rows.lengths[part]))
        start = part.stop
    return batches


def _plan_few(scorer: Scorer, exemplars: np.ndarray | None) -> PaddedBatch:
    """The rows of a few samples, longest first: the shortest, the middle, and the longest that a check may take."""
    pool, context = scorer.pool, scorer.context
    shown = np.arange(len(pool)) if exemplars is None else exemplars
    lengths = len(pool.preamble) + pool.lengths
    if exemplars is not None:
        lengths = np.minimum(lengths + pool.lengths[np.maximum(exemplars, 0)], context)
    samples = np.flatnonzero(find_scorable(pool, shown, context))
    samples = samples[np.argsort(lengths[samples], kind="stable")]
    rows_each = 1 if exemplars is None else 2
    size = size_batches(scorer.model, scorer.config, scorer.memory)
    fits = lengths[samples] <= min(scorer.limit_checked_row(shown), size.tokens_per_batch // (FEW * rows_each))
    samples = samples[fits] if fits.any() else samples[:1]
    few = samples[np.unique(np.linspace(0, len(samples) - 1, min(FEW, len(samples))).astype(int))]
    if exemplars is None:
        batches = plan_zero_shot(pool, context, 1, few)
    else:
        batches = plan_padded(pool, restrict_exemplars(few, exemplars), context, 1)
    empty = [np.zeros(0, dtype=np.int64)]
    return PaddedBatch(
        np.concatenate([batch.samples for batch in batches] or empty),
        np.concatenate([batch.kinds for batch in batches] or empty),
        np.concatenate([batch.lengths for batch in batches] or empty),
    )
