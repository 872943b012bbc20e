"""
How a model's rows are laid out, decided on all ranks alike, and a whole pool scored in that layout.

Trees forward a third fewer tokens than padded rows. They need a mask of their own in every layer, which not every
family takes, and some ignore it without an error. So a few samples are scored both ways before the first row.
"""

import logging
from dataclasses import replace
from typing import Literal
from weakref import WeakSet

import numpy as np
import torch
from torch import nn

from miwv_trainer.choices import Attention
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import NO_EXEMPLAR, rank_columns
from miwv_trainer.distributed.wrappers import get_inner_model
from miwv_trainer.foreign_errors import take_first_line
from miwv_trainer.scoring.attention import (
    choose_tree_attention,
    find_attention_obstacle,
    find_tree_obstacle,
)
from miwv_trainer.scoring.causality import check_causal
from miwv_trainer.scoring.context import find_context_length
from miwv_trainer.scoring.isolation import watch_autocast
from miwv_trainer.scoring.losses import NOT_RECORDED, Losses, Recording, score_batches, score_trees
from miwv_trainer.scoring.memory import BatchSize
from miwv_trainer.scoring.padding import find_least_tolerance, settle_padding
from miwv_trainer.scoring.rows import (
    ONE_SHOT,
    RESPONSE,
    ZERO_SHOT,
    PaddedBatch,
    find_scorable,
    plan_losses,
    restrict_exemplars,
)
from miwv_trainer.scoring.scorer import CheckedModel, Scorer, ScoringPlan
from miwv_trainer.scoring.tree_samples import choose_samples
from miwv_trainer.scoring.trees import make_tree_batches, plan_trees
from miwv_trainer.selection.scores import get_score

logger = logging.getLogger(__name__)

ZERO_SHOT_ONLY = "zero_shot"
# Rows of equal length share a forward, for models that right padding changes.
EQUAL, ZERO_SHOT_EQUAL = "equal", "zero_shot_equal"
_warned: WeakSet[nn.Module] = WeakSet()


def score_pool(scorer: Scorer, exemplars: np.ndarray, layout: str, recording: Recording = NOT_RECORDED) -> Losses:
    """
    The losses that the score needs of every scorable sample, on every rank; no one-shot losses with the layout
    `"zero_shot"`.

    Args:
        exemplars: `(N,)` index of each sample's exemplar, or `(N, m)` of its nearest ones; samples without one are not
            scored.
        layout: From [`choose_layout`].
    """
    pool, context, size = scorer.pool, scorer.context, scorer.size_batches(exemplars)
    if layout != "tree":
        return score_batches(scorer, _plan_batches(scorer, exemplars, layout, size), exemplars, recording)
    rows = plan_trees(pool, exemplars, context, size.tokens_per_row)
    losses = score_trees(scorer, rows, size.tokens_per_batch, recording)
    if _scores_responses(scorer):
        # No branch: a response alone stands behind no trunk.
        batches = _plan_responses(scorer, exemplars, size)
        stage = recording.with_stage(f"{recording.stage}, responses")
        losses = losses.with_responses(score_batches(scorer, batches, recording=stage))
    # One token that overflows makes the losses of a whole row of trees NaN, as a masked NaN times 0 is NaN. In padded
    # rows it makes only its own sample's.
    is_nan = find_scorable(pool, exemplars, context) & _find_nan(losses, exemplars)
    if not is_nan.any():
        return losses
    their_exemplars = restrict_exemplars(is_nan, exemplars)
    batches = _plan_batches(scorer, their_exemplars, "padded", size)
    again = score_batches(scorer, batches, their_exemplars, recording.with_stage(f"{recording.stage}, alone"))
    return losses.replace_samples(again, is_nan)


def _find_nan(losses: Losses, exemplars: np.ndarray) -> np.ndarray:
    """`(N,)` bool, the samples that lack a loss behind one of their exemplars."""
    is_nan = np.isnan(losses.miwv)
    if losses.further is not None:
        further = rank_columns(exemplars)[:, 1:]
        is_nan |= (np.isnan(losses.further[:, : further.shape[1]]) & (further != NO_EXEMPLAR)).any(axis=1)
    return is_nan


def count_planned_tokens(scorer: Scorer, exemplars: np.ndarray, layout: str) -> int:
    """Tokens that [`score_pool`] will forward, padding and trunks that are only context included."""
    size = scorer.size_batches(exemplars)
    if layout != "tree":
        return sum(batch.tokens for batch in _plan_batches(scorer, exemplars, layout, size))
    rows = plan_trees(scorer.pool, exemplars, scorer.context, size.tokens_per_row)
    is_padded = choose_tree_attention(scorer.model, scorer.config.attention) == "mask"
    tokens = sum(batch.tokens for batch in make_tree_batches(rows, scorer.pool, size.tokens_per_batch, is_padded))
    responses = _plan_responses(scorer, exemplars, size) if _scores_responses(scorer) else []
    return tokens + sum(batch.tokens for batch in responses)


def _scores_responses(scorer: Scorer) -> bool:
    return "response" in get_score(scorer.config).losses


def _plan_responses(scorer: Scorer, exemplars: np.ndarray, size: BatchSize) -> list[PaddedBatch]:
    """Batches of responses alone, for a pool whose other losses come from trees."""
    pool, context = scorer.pool, scorer.context
    return plan_losses(pool, exemplars, context, size.tokens_per_batch, scorer.sharing, kinds=[RESPONSE])


def _plan_batches(scorer: Scorer, exemplars: np.ndarray, layout: str, size: BatchSize) -> list[PaddedBatch]:
    pool, context = scorer.pool, scorer.context
    is_equal = layout in (EQUAL, ZERO_SHOT_EQUAL)
    sharing = scorer.sharing.without_padding() if is_equal else scorer.sharing
    kinds = [ZERO_SHOT] if layout in (ZERO_SHOT_ONLY, ZERO_SHOT_EQUAL) else [ZERO_SHOT, ONE_SHOT]
    kinds += [RESPONSE] if _scores_responses(scorer) else []
    return plan_losses(pool, exemplars, context, size.tokens_per_batch, sharing, kinds=kinds)


def choose_layout(scorer: Scorer, exemplars: np.ndarray) -> str:
    """
    `"zero_shot"` if the score needs no other loss; `"tree"` if the model's configuration allows it and a few samples
    have the same losses both ways; else `"padded"`. Where right padding changes the losses of a few samples,
    `"zero_shot_equal"` or `"equal"`, whatever is asked for.

    The model is in evaluation mode.

    Args:
        exemplars: `(N,)` or `(N, m)`. At least one sample is scorable.

    Raises:
        ValueError: `layout="tree"` or an `attention` was asked for and the model cannot take it.
    """
    model, config = scorer.model, scorer.config
    _check_attention(model, config)
    checked = _check_forwards(scorer, exemplars)
    if not get_score(config).needs_exemplars:
        return ZERO_SHOT_EQUAL if checked.is_equal else ZERO_SHOT_ONLY
    if checked.is_equal and config.layout != "tree":
        _warn_of_attention_in_vain(scorer)
        return EQUAL
    if config.layout == "padded":
        return "padded"
    obstacle = _find_known_obstacle(scorer, exemplars, checked.is_equal) or checked.tree_obstacle
    if obstacle is None:
        return "tree"
    if config.layout == "tree":
        raise ValueError(_explain_no_trees(model, obstacle))
    if _is_first(model):
        logger.warning(
            "%s is scored in padded rows, which forward half as many tokens again as trees: %s. %s",
            type(get_inner_model(model)).__name__, obstacle, _advise_on_padded_rows(config),
        )  # fmt: skip
    return "padded"


def plan_scoring(scorer: Scorer, exemplars: np.ndarray) -> ScoringPlan:
    """
    The layout of [`choose_layout`], and the way to attend and the limits of forwards that go with it.

    Where trees have other losses than padded rows, or fail, a model that takes masks is asked again with masks: these
    need nothing but the model's own attention.

    Raises:
        ValueError: `layout="tree"` or an `attention` was asked for and the model cannot take it.
    """
    scorer = _find_way_to_attend(scorer, exemplars)
    return ScoringPlan(scorer.context, choose_layout(scorer, exemplars), scorer.memory, scorer.config.attention)


def _find_way_to_attend(scorer: Scorer, exemplars: np.ndarray) -> Scorer:
    """The scorer, with masks if only with these its trees have the losses of padded rows."""
    model, config = scorer.model, scorer.config
    way = choose_tree_attention(model, config.attention)
    takes_others = config.attention == "auto" and way != "mask" and find_attention_obstacle(model, "mask") is None
    if not takes_others or config.layout == "padded" or not get_score(config).needs_exemplars:
        return scorer
    checked = _check_forwards(scorer, exemplars)
    if checked.tree_obstacle is None or _find_known_obstacle(scorer, exemplars, checked.is_equal) is not None:
        return scorer
    with_masks = scorer.attend_by("mask")
    if _check_forwards(with_masks, exemplars).tree_obstacle is not None:
        return scorer
    if _is_first(model):
        logger.warning(
            '%s attends by masks in rows of trees: otherwise %s. `attention="mask"` silences this.',
            type(get_inner_model(model)).__name__, checked.tree_obstacle,
        )  # fmt: skip
    return with_masks


def _is_first(model: nn.Module) -> bool:
    """Whether nothing was said of a model's layout yet: every round chooses anew, and one warning is enough."""
    is_first = model not in _warned
    _warned.add(model)
    return is_first


def _advise_on_padded_rows(config: MIWVConfig) -> str:
    """How to silence the warning of padded rows. An attention for trees and `layout="padded"` exclude each other."""
    if config.attention == "auto":
        return '`layout="padded"` silences this.'
    return (
        f'`attention="{config.attention}"` has no effect there: leave it out; without it, `layout="padded"` silences '
        "this."
    )


def _warn_of_attention_in_vain(scorer: Scorer) -> None:
    """Rows of equal length have a warning of their own, which does not know what was asked for trees."""
    model, asked = scorer.model, scorer.config.attention
    if asked != "auto" and _is_first(model):
        logger.warning(
            '%s is scored in rows of equal length, where `attention="%s"` has no effect: leave it out.',
            type(get_inner_model(model)).__name__, asked,
        )  # fmt: skip


def find_attention(scorer: Scorer, layout: str) -> Attention | Literal["none"]:
    """How layers attend in rows of trees; `"none"` in other rows, which have the model's own attention."""
    return choose_tree_attention(scorer.model, scorer.config.attention) if layout == "tree" else "none"


def _check_forwards(scorer: Scorer, exemplars: np.ndarray) -> CheckedModel:
    """
    What a few forwards tell of the model, found once in a training as long as nothing changes that it depends on.

    Raises:
        ValueError: the model sees tokens that follow.
    """
    config, size = get_inner_model(scorer.model).config, scorer.size_batches(exemplars)
    weights, asked = next(scorer.model.parameters()), scorer.config.attention
    of_model = (type(scorer.model), config.to_json_string(), weights.dtype, weights.device)
    key = " ".join(map(str, (*of_model, scorer.context, size, asked)))
    # Ranks agree, because one that asks waits for the others.
    if all(scorer.world.all_gather(key in scorer.checked)):
        return scorer.checked[key]
    check_causal(scorer)
    needs_exemplars = get_score(scorer.config).needs_exemplars
    # Behind its nearest exemplar each sample is laid out as behind any other.
    nearest = rank_columns(exemplars)[:, 0]
    is_equal = settle_padding(scorer, nearest if needs_exemplars else None).sharing.is_equal
    asks = needs_exemplars and scorer.config.layout != "padded"
    obstacle = _find_known_obstacle(scorer, exemplars, is_equal) or _compare_layouts(scorer, nearest) if asks else None
    scorer.checked[key] = CheckedModel(is_equal, obstacle)
    return scorer.checked[key]


def _find_known_obstacle(scorer: Scorer, exemplars: np.ndarray, is_equal: bool) -> str | None:
    """Why the model takes no trees, as far as no forward is needed to tell."""
    return (
        ("right padding changes its losses" if is_equal else None)
        or find_tree_obstacle(scorer.model, scorer.context, scorer.config.attention)
        or _find_rope_obstacle(scorer, exemplars)
    )


def check_layout(model: nn.Module, config: MIWVConfig, device: torch.device) -> None:
    """
    Checks what the model's configuration tells of the layout. Finding exemplars may take hours, so this comes before.

    Args:
        device: Where the model will be scored.

    Raises:
        ValueError: `layout="tree"` or an `attention` was asked for and the model cannot take it.
    """
    _check_attention(model, config, device)
    if config.layout != "tree":
        return
    obstacle = find_tree_obstacle(model, find_context_length(model, config), config.attention, device)
    if obstacle is not None:
        raise ValueError(_explain_no_trees(model, obstacle))


def _check_attention(model: nn.Module, config: MIWVConfig, device: torch.device | None = None) -> None:
    obstacle = find_attention_obstacle(model, config.attention, device) if config.attention != "auto" else None
    if obstacle is not None:
        name = type(get_inner_model(model)).__name__
        raise ValueError(
            f'{name} cannot be scored with `attention="{config.attention}"`: {obstacle}. Use "auto", or leave it out.'
        )


def _explain_no_trees(model: nn.Module, obstacle: str) -> str:
    name = type(get_inner_model(model)).__name__
    return f'{name} cannot be scored with `layout="tree"`: {obstacle}. Use "auto" or "padded".'


def _find_rope_obstacle(scorer: Scorer, exemplars: np.ndarray) -> str | None:
    """Why rotary positions forbid trees: sequences that need other factors would share a row."""
    limit, pool = scorer.sharing.longest_unaffected, scorer.pool
    if limit is None:
        return None
    can_score = find_scorable(pool, exemplars, scorer.context)
    ranked = rank_columns(exemplars)[can_score]
    shown = np.where(ranked == NO_EXEMPLAR, 0, pool.lengths[ranked])
    lengths = len(pool.preamble) + pool.lengths[can_score] + shown.max(axis=1, initial=0)
    longer = int((np.minimum(lengths, scorer.context) > limit).sum())
    if not longer:
        return None
    return (
        f"its rotary positions depend on the longest sequence of a forward, and {longer} are longer than {limit} tokens"
    )


def _compare_layouts(scorer: Scorer, exemplars: np.ndarray) -> str | None:
    """Scores a few samples both ways on every rank; returns the difference if it is too large on any rank."""
    with scorer.world.run_turn("comparing trees with padded rows"):
        here = scorer.restrict_to_this_rank()
        groups = choose_samples(here, exemplars)
        found = next(filter(None, (_compare_samples(here, exemplars, few) for few in groups)), None)
    found = next((each for each in scorer.world.all_gather(found) if each is not None), None)
    attention = choose_tree_attention(scorer.model, scorer.config.attention)
    return f'{found} (by `attention="{attention}"`)' if found is not None else None


def _compare_samples(scorer: Scorer, exemplars: np.ndarray, few: np.ndarray) -> str | None:
    their_exemplars = restrict_exemplars(few, exemplars)

    def score(layout: str, scorer: Scorer = scorer) -> np.ndarray:
        losses = score_pool(scorer, their_exemplars, layout)
        return np.stack([losses.zero_shot, losses.one_shot])[:, few]

    # Each row alone: `settle_padding` has found that padding changes nothing, and short rows take little of it.
    one_by_one = replace(scorer, config=replace(scorer.config, tokens_per_batch=1))
    with watch_autocast(scorer.model) as noticed:
        alone = score("padded", one_by_one)
    try:
        difference = np.abs(alone - score("tree")).mean()
    # XLM asserts the shape of its mask.
    except (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError) as error:
        return f"a forward of trees fails ({type(error).__name__}: {take_first_line(error)})"
    least = find_least_tolerance(scorer.model, any(noticed))
    # NaN compares as false: if the loss itself is NaN, in both layouts alike, the round will say so.
    if not difference > least and not scorer.world.sharded:  # Ranks that hold shards must run the same forwards.
        return None
    # In low precision another batch alone moves a loss (lm-evaluation-harness#1645), which is no fault of trees.
    noise = np.abs(alone - score("padded")).mean()
    too_much = difference > max(least, 10 * noise)
    return f"the losses of {len(few)} samples differ by {difference:.2g} on average" if too_much else None
