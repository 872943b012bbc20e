"""
A smaller model that scores for the one in training: how far the two agree, on samples that both of them score.

The samples are spread over the ranks of the smaller model's scores, so that the correlation is that of the pool, and
the top of the ranking is among them.
"""

import logging
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import numpy as np

from miwv_trainer.config import MIWVConfig
from miwv_trainer.distributed.wrappers import disable_compilation, get_inner_model
from miwv_trainer.own_scores import is_function
from miwv_trainer.rounds.identity import ModelFingerprint, identify_model
from miwv_trainer.rounds.inputs import RoundInputs, read_measured
from miwv_trainer.rounds.messages import describe_proxy
from miwv_trainer.rounds.reuse import is_same_model
from miwv_trainer.rounds.statistics import compute_rank_correlation
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import count_planned_tokens, plan_scoring, score_pool
from miwv_trainer.scoring.losses import Losses
from miwv_trainer.scoring.rows import find_scorable, restrict_exemplars
from miwv_trainer.scoring.scorer import Scorer
from miwv_trainer.selection.budget import count_selected
from miwv_trainer.selection.choose import compute_overlap
from miwv_trainer.selection.guards import apply_guards
from miwv_trainer.selection.measured import Measured
from miwv_trainer.selection.scores import SCORES, get_score
from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import ProxyCheck, StoredRound

logger = logging.getLogger(__name__)
# A correlation of two samples is 1 or -1, whatever the models.
LEAST_COMPARED = 3


class Quantity(NamedTuple):
    """
    What two models may be compared by.

    Args:
        label: What it is called.
        compute: Gives `(N,)` values, NaN where a sample has none; the highest are best.
    """

    label: str
    compute: Callable[[Measured], np.ndarray]


def check_proxy(scorer: Scorer, inputs: RoundInputs, losses: Losses, seconds: float | None) -> ProxyCheck | None:
    """
    Scores some samples with the model in training too, on all ranks. None if the scorer stands for no other model.

    Args:
        losses: Of the smaller model, of the whole pool.
        seconds: What its forwards took, without checks and refinement; None if that was not timed.
    """
    trained, config = scorer.stands_for, inputs.config
    if trained is None or not config.proxy_check or not inputs.is_scored.any():
        return None
    measured = inputs.merge(losses)
    quantities = list(_list_quantities(inputs, measured))
    samples = choose_spread(quantities[0].compute(measured), config.proxy_check)
    if not len(samples):  # The smaller model gives no finite loss, which ends the round.
        return None
    with leave_no_trace(trained.model), disable_compilation(trained.model):
        fingerprint = scorer.world.broadcast_from_main(identify_model(trained, inputs.exemplars))
        by_model, seconds_of_model = _score_with_model(trained, inputs, samples)
    # Both are ranked within the samples alone: a residual MIWV depends on which samples it is fitted to.
    pair = inputs.merge(losses.restrict_to(samples)), inputs.merge(by_model)
    compared = _choose_quantity(quantities, *pair)
    scores, others = (compared.compute(each) for each in pair)
    in_both = np.isfinite(scores) & np.isfinite(others)
    correlation = compute_rank_correlation(scores, others)
    seconds = scorer.world.broadcast_from_main(seconds)
    found = ProxyCheck(
        model=get_inner_model(trained.model).config.name_or_path,
        fingerprint=cast(dict[str, object], fingerprint),
        asked=config.proxy_check,
        compared=compared.label,
        samples=int(in_both.sum()),
        rank_correlation=correlation,
        overlap=_compare_best(config, in_both, (scores, pair[0]), (others, pair[1])),
        seconds=round(seconds, 3) if seconds else None,
        seconds_of_model=None if seconds_of_model is None else round(seconds_of_model, 3),
    )
    if correlation is None:
        found["reason"] = _explain_no_correlation(trained, inputs, samples, int(in_both.sum()))
    if scorer.world.is_main:
        _warn_of_disagreement(found, config)
    return found


def renew_check(scorer: Scorer, inputs: RoundInputs, store: Store, finished: StoredRound) -> StoredRound:
    """
    A round of an earlier process with the figures of this run's model in training. Its losses stay.

    They are measured anew if they are of another model or of another number of samples, or are missing, and left out
    where this run compares nothing. All ranks call this together.
    """
    stored, found = finished.summary.get("proxy"), None
    trained, config, world = scorer.stands_for, inputs.config, scorer.world
    if trained is not None and config.proxy_check:
        if stored is not None and _is_of(stored, trained, inputs):
            if world.is_main:
                _warn_of_disagreement(stored, config)
            return finished
        # Earlier releases timed the smaller model's checks too.
        seconds = stored["seconds"] if stored is not None and "asked" in stored else None
        found = world.broadcast_from_main(check_proxy(scorer, inputs, _read_losses(finished), seconds))
    if found == stored:
        return finished
    summary = finished.summary.copy()
    summary["config"] = {**summary["config"], "proxy_check": config.proxy_check}
    if found is None:
        del summary["proxy"]
    else:
        summary["proxy"] = found
    with world.run_together("writing the figures of the smaller model"):
        if world.is_main:
            finished = store.replace_summary(finished, summary)
    return world.broadcast_from_main(finished)


def _is_of(stored: ProxyCheck, trained: Scorer, inputs: RoundInputs) -> bool:
    """Whether stored figures are of a model and of as many samples as are asked for."""
    if stored.get("asked") != inputs.config.proxy_check:
        return False
    with leave_no_trace(trained.model), disable_compilation(trained.model):
        fingerprint = identify_model(trained, inputs.exemplars)
    is_same = is_same_model(cast(ModelFingerprint, stored["fingerprint"]), fingerprint)
    return trained.world.broadcast_from_main(is_same)


def _read_losses(finished: StoredRound) -> Losses:
    measured = read_measured(finished)
    return Losses(measured.zero_shot_loss, measured.one_shot_loss, 0, measured.response_loss, measured.further_losses)


def _list_quantities(inputs: RoundInputs, measured: Measured) -> Iterator[Quantity]:
    """What the two models may be compared by: first the score, unless no loss changes it; then the losses."""
    score = inputs.config.score
    if is_function(score) or (isinstance(score, str) and SCORES[score].losses):
        yield Quantity(get_score(inputs.config).label, inputs.score)
    if np.isfinite(measured.miwv).any():
        yield Quantity("MIWV", lambda each: each.miwv)
    yield Quantity("zero-shot loss", lambda each: each.zero_shot_loss)


def _choose_quantity(quantities: list[Quantity], measured: Measured, by_model: Measured) -> Quantity:
    """The first by which the two differ: a function of the user's may read no loss, and ranks alike by any model."""
    for quantity in quantities:
        if not np.array_equal(quantity.compute(measured), quantity.compute(by_model), equal_nan=True):
            return quantity
    return quantities[0]


def _explain_no_correlation(trained: Scorer, inputs: RoundInputs, samples: np.ndarray, count: int) -> str:
    if count >= LEAST_COMPARED:
        return "all samples have the same score by one of the models"
    if len(samples) < LEAST_COMPARED:
        return "it takes three samples"
    too_long = int((~find_scorable(trained.pool, inputs.scored_behind, trained.context))[samples].sum())
    if too_long:
        return (
            f"{too_long} of {len(samples)} samples are too long for the model in training, whose context is "
            f"{trained.context} tokens"
        )
    return f"the model in training gives {len(samples) - count} of {len(samples)} samples no finite score"


def _warn_of_disagreement(found: ProxyCheck, config: MIWVConfig) -> None:
    correlation = found["rank_correlation"]
    if correlation is None:
        advice = " Give a larger `proxy_check`." if config.proxy_check < LEAST_COMPARED else ""
        logger.warning(
            "It is not known whether the smaller model ranks the samples like the model in training: %s.%s",
            describe_proxy(found), advice,
        )  # fmt: skip
    elif correlation < config.proxy_warn_below:
        logger.warning(
            "The smaller model ranks the samples unlike the model in training: %s. Selected is what is hard for the "
            "smaller one. Score with a larger model, or with the model itself (no `scorer`).", describe_proxy(found),
        )  # fmt: skip


def _compare_best(config: MIWVConfig, in_both: np.ndarray, *ranked: tuple[np.ndarray, Measured]) -> float | None:
    """The share of the best samples that both models have. What a guard leaves out is selected by neither."""
    count = count_selected(config.fraction, int(in_both.sum()))
    # Of IFD, the highest values are above its bound.
    best, best_of_model = (
        _find_best(np.where(in_both, scores, np.nan), measured, config, count) for scores, measured in ranked
    )
    return share_best(best, best_of_model)


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


def _score_with_model(trained: Scorer, inputs: RoundInputs, samples: np.ndarray) -> tuple[Losses, float | None]:
    """
    The model's losses of some samples, and the seconds that its forwards of the whole pool would take at their speed;
    None if none of the samples fits its context.
    """
    exemplars = restrict_exemplars(samples, inputs.scored_behind)
    if not find_scorable(trained.pool, exemplars, trained.context).any():
        nothing = np.full(len(trained.pool), np.nan, dtype=np.float32)
        return Losses(nothing, nothing, 0), None
    whole = restrict_exemplars(inputs.is_scored, inputs.scored_behind)
    plan = plan_scoring(trained, exemplars)
    trained = trained.follow(plan)
    started = time.perf_counter()
    losses = score_pool(trained, exemplars, plan.layout)
    seconds = time.perf_counter() - started
    tokens = count_planned_tokens(trained, whole, plan.layout)
    return losses, trained.world.broadcast_from_main(seconds) * tokens / max(losses.tokens_forwarded, 1)
