"""How a model's rows are laid out, decided on all ranks alike, and a whole pool scored in that layout.

Trees forward a third fewer tokens than padded rows. They need a mask of their own in every layer, which not every
family takes; so before the first row a few samples are scored both ways.
"""

import logging
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import nn

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.distributed.wrappers import inner_model
from miwv_trainer.scoring.attention import tree_attention, tree_obstacle
from miwv_trainer.scoring.isolation import noticing_autocast
from miwv_trainer.scoring.losses import Losses, score_batches, score_trees
from miwv_trainer.scoring.memory import Budget, choose_budget
from miwv_trainer.scoring.rows import Batch, exemplars_of, plan_padded, plan_zero_shot, scorable
from miwv_trainer.scoring.trees import plan_trees, tree_batches
from miwv_trainer.selection.scores import ZERO_SHOT, get_score
from miwv_trainer.storage.journal import Journal

logger = logging.getLogger(__name__)
NO_LIMIT = 2**31 - 1
ZERO_SHOT_ONLY = "zero_shot"
MOST_BRANCHES = 4
# The mean difference between the layouts over a few samples may be ten times what the padded one alone gives for other
# batches, and at least this.
LEAST_TOLERANCE = {torch.float32: 1e-3}
LEAST_TOLERANCE_LOW_PRECISION = 0.05
_warned: WeakSet[nn.Module] = WeakSet()


def context_length(model: nn.Module, config: MIWVConfig) -> int:
    """Longest sequence that is forwarded: `scoring_max_length`, else the model's `max_position_embeddings`."""
    limit = getattr(text_config(model), "max_position_embeddings", None) or NO_LIMIT
    return min(limit, config.scoring_max_length) if config.scoring_max_length is not None else limit


def text_config(model: Any) -> Any:
    """The configuration of the language model, where there are others beside it."""
    return model.config.get_text_config()


def score_pool(
    model: nn.Module,
    pool: Pool,
    exemplars: np.ndarray,
    config: MIWVConfig,
    layout: str,
    world: World,
    show_progress: bool = False,
    journal: Journal | None = None,
    stage: str = "losses",
) -> Losses:
    """
    Both losses of every scorable sample, on every rank; the zero-shot ones alone with the layout `"zero_shot"`.

    A loss that is not finite would spread over a whole row of trees; such samples are scored again in padded rows,
    where it stays with its own.
    """
    context = context_length(model, config)
    budget = _budget(model, pool, exemplars, config, world)
    options: dict[str, Any] = {"logits_chunk": config.logits_chunk, "world": world, "show_progress": show_progress}
    options["journal"] = journal

    def in_batches(exemplars: np.ndarray, stage: str, layout: str = layout) -> Losses:
        batches = _batches(pool, exemplars, context, layout, budget)
        return score_batches(model, pool, batches, exemplars, context=context, stage=stage, **options)

    if layout != "tree":
        return in_batches(exemplars, stage)
    rows = plan_trees(pool, exemplars, context, budget.tokens_per_row)
    losses = score_trees(model, pool, rows, tokens_per_batch=budget.tokens_per_batch, stage=stage, **options)
    doubtful = scorable(pool, exemplars, context) & np.isnan(losses.miwv)
    if not doubtful.any():
        return losses
    return losses.replaced(in_batches(exemplars_of(doubtful, exemplars), f"{stage}, alone", "padded"), doubtful)


def planned_tokens(
    model: nn.Module, pool: Pool, exemplars: np.ndarray, config: MIWVConfig, layout: str, world: World
) -> int:
    """Tokens that [`score_pool`] will forward, padding and trunks that are only context included."""
    context = context_length(model, config)
    budget = _budget(model, pool, exemplars, config, world)
    if layout != "tree":
        return sum(batch.tokens for batch in _batches(pool, exemplars, context, layout, budget))
    rows = plan_trees(pool, exemplars, context, budget.tokens_per_row)
    batches = tree_batches(rows, pool, budget.tokens_per_batch, is_padded=tree_attention(model) == "mask")
    return sum(batch.tokens for batch in batches)


def _budget(model: nn.Module, pool: Pool, exemplars: np.ndarray, config: MIWVConfig, world: World) -> Budget:
    can_score = scorable(pool, exemplars, context_length(model, config))
    return choose_budget(model, config, world, 2 * int(pool.lengths[can_score].sum()))


def _batches(pool: Pool, exemplars: np.ndarray, context: int, layout: str, budget: Budget) -> list[Batch]:
    if layout == ZERO_SHOT_ONLY:
        among = np.flatnonzero(scorable(pool, exemplars, context))
        return plan_zero_shot(pool, context, budget.tokens_per_batch, among)
    return plan_padded(pool, exemplars, context, budget.tokens_per_batch)


def choose_layout(model: nn.Module, pool: Pool, exemplars: np.ndarray, config: MIWVConfig, world: World) -> str:
    """
    `"tree"` where the model's configuration allows it and a few samples have the same losses both ways; else
    `"padded"`; `"zero_shot"` where the score asks for no other loss.

    Args:
        model: In evaluation mode.
        exemplars: `(N,)`. At least one sample is scorable.

    Raises:
        ValueError: `layout="tree"` was asked for and the model cannot take it.
    """
    if get_score(config).losses == ZERO_SHOT:
        return ZERO_SHOT_ONLY
    if config.layout == "padded":
        return "padded"
    context = context_length(model, config)
    obstacle = tree_obstacle(model, context) or _difference(model, pool, exemplars, config, world)
    if obstacle is None:
        return "tree"
    if config.layout == "tree":
        raise ValueError(_no_trees(model, obstacle))
    if model not in _warned:  # every round chooses anew
        _warned.add(model)
        logger.warning(
            '%s is scored in padded rows, which forward half as many tokens again as trees: %s. `layout="padded"` '
            "silences this.", type(inner_model(model)).__name__, obstacle,
        )  # fmt: skip
    return "padded"


def check_layout(model: nn.Module, config: MIWVConfig) -> None:
    """
    Raises `ValueError` where `layout="tree"` was asked for and the model's configuration tells that it cannot be had.

    For before there are exemplars: finding them may take hours.
    """
    obstacle = tree_obstacle(model, context_length(model, config)) if config.layout == "tree" else None
    if obstacle is not None:
        raise ValueError(_no_trees(model, obstacle))


def _no_trees(model: nn.Module, obstacle: str) -> str:
    name = type(inner_model(model)).__name__
    return f'{name} cannot be scored with `layout="tree"`: {obstacle}. Use "auto" or "padded".'


def _difference(model: nn.Module, pool: Pool, exemplars: np.ndarray, config: MIWVConfig, world: World) -> str | None:
    """Scores a few samples both ways, on every rank, and says by how much their losses differ, if too much on any."""
    with world.run_turn("comparing trees with padded rows"):
        found = _own_difference(model, pool, exemplars, config, World(0, 1, world.device, world.sharded))
    return next((each for each in world.all_gather(found) if each is not None), None)


def _own_difference(
    model: nn.Module, pool: Pool, exemplars: np.ndarray, config: MIWVConfig, alone: World
) -> str | None:
    few = _few_related(pool, exemplars, context_length(model, config))
    of_few = exemplars_of(few, exemplars)

    def losses(layout: str, config: MIWVConfig) -> np.ndarray:
        scored = score_pool(model, pool, of_few, config, layout, alone)
        return np.stack([scored.zero_shot, scored.one_shot])[:, few]

    with noticing_autocast(model) as noticed:
        padded = losses("padded", config)
    noise = np.abs(padded - losses("padded", replace(config, tokens_per_batch=1))).mean()
    try:
        difference = np.abs(padded - losses("tree", config)).mean()
    except (RuntimeError, ValueError, TypeError) as error:
        return f"a forward of trees fails ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})"
    least = least_tolerance(model, any(noticed))
    # NaN compares as false: where the loss itself is NaN, in both layouts alike, the round will say so.
    too_much = difference > max(least, 10 * noise)
    return f"the losses of {len(few)} samples differ by {difference:.2g} on average" if too_much else None


def least_tolerance(model: nn.Module, is_autocast: bool) -> float:
    """How far a loss may move, computed in another way by the same weights, without meaning anything."""
    dtype = torch.bfloat16 if is_autocast else next(model.parameters()).dtype
    return LEAST_TOLERANCE.get(dtype, LEAST_TOLERANCE_LOW_PRECISION)


def _few_related(pool: Pool, exemplars: np.ndarray, context: int) -> np.ndarray:
    """The shortest exemplar of two samples or more, with these, so that a row holds branches that could be confused."""
    can_score = np.flatnonzero(scorable(pool, exemplars, context))
    shared = np.bincount(exemplars[can_score], minlength=len(pool))
    crowded = np.flatnonzero(shared >= min(2, shared.max()))
    trunk = crowded[np.argmin(pool.lengths[crowded])]
    branches = can_score[exemplars[can_score] == trunk]
    branches = branches[np.argsort(pool.lengths[branches], kind="stable")][:MOST_BRANCHES]
    return np.union1d(branches, np.intersect1d([trunk], can_score))
