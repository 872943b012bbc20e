"""
A smaller model that scores for the one in training: how far the two agree, on samples that both of them score.

The samples are spread over the ranks of the smaller model's scores, so that the correlation is that of the pool, and
the top of the ranking is among them.
"""

import logging
import time

import numpy as np

from miwv_trainer.config import MIWVConfig
from miwv_trainer.distributed.wrappers import disable_compilation, get_inner_model
from miwv_trainer.rounds.inputs import RoundInputs
from miwv_trainer.rounds.messages import describe_proxy
from miwv_trainer.rounds.statistics import compute_rank_correlation
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import choose_layout, count_planned_tokens, score_pool
from miwv_trainer.scoring.losses import Losses
from miwv_trainer.scoring.rows import restrict_exemplars
from miwv_trainer.scoring.scorer import Scorer
from miwv_trainer.selection.budget import count_selected
from miwv_trainer.selection.choose import compute_overlap
from miwv_trainer.selection.guards import apply_guards
from miwv_trainer.selection.measured import Measured
from miwv_trainer.storage.stored_round import ProxyCheck

logger = logging.getLogger(__name__)


def check_proxy(scorer: Scorer, inputs: RoundInputs, losses: Losses, seconds: float) -> ProxyCheck | None:
    """
    Scores some samples with the model in training too, on all ranks. None if the scorer stands for no other model.

    Args:
        losses: Of the smaller model, of the whole pool.
        seconds: What they took.
    """
    trained, config = scorer.stands_for, inputs.config
    if trained is None or not config.proxy_check or not inputs.is_scored.any():
        return None
    samples = choose_spread(inputs.score(inputs.merge(losses)), config.proxy_check)
    if not len(samples):  # The smaller model gives no finite loss, which ends the round.
        return None
    by_model, seconds_of_model = _score_with_model(trained, inputs, samples)
    # Both are ranked within the samples alone: a residual MIWV depends on which samples it is fitted to.
    measured, by_other = (inputs.merge(each.restrict_to(samples)) for each in (losses, by_model))
    scores, others = inputs.score(measured), inputs.score(by_other)
    in_both = np.isfinite(scores) & np.isfinite(others)
    count = count_selected(config.fraction, int(in_both.sum()))
    # What a guard leaves out is not selected by either model: of IFD, the highest values are above its bound.
    best, best_of_model = (
        _find_best(np.where(in_both, each, np.nan), its_losses, config, count)
        for each, its_losses in ((scores, measured), (others, by_other))
    )
    found = ProxyCheck(
        model=get_inner_model(trained.model).config.name_or_path,
        samples=int(in_both.sum()),
        rank_correlation=compute_rank_correlation(scores, others),
        overlap=share_best(best, best_of_model),
        seconds=round(seconds, 3),
        seconds_of_model=round(seconds_of_model, 3),
    )
    correlation = found["rank_correlation"]
    if scorer.world.is_main and correlation is None:
        logger.warning(
            "It is not known whether the smaller model ranks the samples like the model in training: %s. A correlation "
            "takes three samples whose scores differ. Give a larger `proxy_check`.", describe_proxy(found),
        )  # fmt: skip
    elif scorer.world.is_main and correlation is not None and correlation < config.proxy_warn_below:
        logger.warning(
            "The smaller model ranks the samples unlike the model in training: %s. Selected is what is hard for the "
            "smaller one. Score with a larger model, or with the model itself (no `scorer`).", describe_proxy(found),
        )  # fmt: skip
    return found


def share_best(best: np.ndarray, best_of_model: np.ndarray) -> float | None:
    """The share of the best samples that the model in training has among its best too; None if there are none."""
    return compute_overlap(best, best_of_model) if len(best) else None


def _find_best(scores: np.ndarray, measured: Measured, config: MIWVConfig, count: int) -> np.ndarray:
    """`(k,)` the samples of highest score that the guards leave, at most `count`."""
    is_left, _ = apply_guards(scores, measured, config)
    left = np.flatnonzero(is_left)
    return left[np.argsort(-scores[left], kind="stable")[:count]]


def choose_spread(scores: np.ndarray, count: int) -> np.ndarray:
    """`(k,)` samples, at most `count`, at equal distances in the ranking by score; the best and the last among them."""
    ranked = np.argsort(-scores, kind="stable")[: int(np.isfinite(scores).sum())]
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return np.sort(ranked[places])


def _score_with_model(trained: Scorer, inputs: RoundInputs, samples: np.ndarray) -> tuple[Losses, float]:
    """The model's losses of some samples, and the seconds that the whole pool would take at their speed."""
    exemplars = restrict_exemplars(samples, inputs.scored_behind)
    whole = restrict_exemplars(inputs.is_scored, inputs.scored_behind)
    with leave_no_trace(trained.model), disable_compilation(trained.model):
        layout = choose_layout(trained, exemplars)
        started = time.perf_counter()
        losses = score_pool(trained, exemplars, layout)
        seconds = time.perf_counter() - started
    tokens = count_planned_tokens(trained, whole, layout)
    return losses, trained.world.broadcast_from_main(seconds) * tokens / max(losses.tokens_forwarded, 1)
