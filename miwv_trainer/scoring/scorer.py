"""
What every pass of a round shares: model, pool, configuration, ranks, and the limits that are decided once.

A round may be killed and resumed by another process. Free memory differs from minute to minute, so a round that
measured it again would compose other batches, and the batch changes the last bits of a loss
(lm-evaluation-harness#1645): the resumed round would end with other scores.
"""

from dataclasses import asdict, dataclass, field, replace

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from miwv_trainer.choices import AttentionChoice
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import NO_EXEMPLAR, Pool, rank_columns
from miwv_trainer.distributed.world import World
from miwv_trainer.distributed.wrappers import get_inner_model, unwrap_model
from miwv_trainer.scoring.context import find_context_length, get_text_config
from miwv_trainer.scoring.memory import (
    LEAST_FORWARDS,
    LEAST_TOKENS,
    BatchSize,
    MemoryBudget,
    find_longest_row,
    measure_memory,
    size_batches,
)
from miwv_trainer.scoring.rope import read_rope_sharing
from miwv_trainer.scoring.rows import find_scorable
from miwv_trainer.scoring.sharing import ALL_SHARE, Sharing
from miwv_trainer.storage.journal import PlanHeader


@dataclass(frozen=True)
class ScoringPlan:
    """
    The decisions of a round, which are written into its journal's header.

    Args:
        context: Longest sequence, in tokens, that is forwarded.
        layout: How samples share a forward, from [`~miwv_trainer.scoring.layout.choose_layout`].
        memory: What limits the size of forwards.
        attention: How layers attend in rows of trees, as asked for, or as the forwards before the first row have found.
    """

    context: int
    layout: str
    memory: MemoryBudget
    attention: AttentionChoice

    def to_header(self) -> PlanHeader:
        """The plan as entries of a journal's header."""
        return PlanHeader(
            context=self.context, layout=self.layout, memory=asdict(self.memory), attention=self.attention
        )

    @classmethod
    def from_header(cls, header: PlanHeader) -> "ScoringPlan":
        """The plan among the entries of a journal's header."""
        return cls(
            header["context"], header["layout"], MemoryBudget(**header["memory"]), header.get("attention", "auto")
        )


@dataclass(frozen=True)
class CheckedModel:
    """
    What the forwards before the first row have told of a model.

    Args:
        is_equal: Whether no forward may have padding.
        tree_obstacle: Why the model takes no rows of trees; None if it does, or if nothing asks for them.
    """

    is_equal: bool
    tree_obstacle: str | None = None


@dataclass(frozen=True)
class Scorer:
    """
    What scores a pool in one round. Made by [`prepare_scorer`].

    Args:
        model: The model as it is forwarded: FSDP's wrapper, else the module inside all wrappers.
        pool: N samples as token ids.
        config: `tokens_per_batch`, `tokens_per_row` and `logits_chunk`, if given, take the place of what memory allows.
        world: The ranks among which forwards are dealt.
        context: Longest sequence, in tokens, that is forwarded.
        memory: What limits the size of forwards.
        sharing: Which rows may share a forward.
        stands_for: The scorer of the model in training, if a smaller model scores in its place.
        checked: What earlier rounds of the same training have found, by what it depends on, so that a later round does
            not ask again.
    """

    model: PreTrainedModel
    pool: Pool
    config: MIWVConfig
    world: World
    context: int
    memory: MemoryBudget
    sharing: Sharing = ALL_SHARE
    checked: dict[str, CheckedModel] = field(default_factory=dict)
    stands_for: "Scorer | None" = None

    @property
    def has_proxys_context(self) -> bool:
        """Whether it is a smaller model, and no setting, that limits how long a sequence may be."""
        return self.stands_for is not None and self.context != self.config.scoring_max_length

    def follow(self, plan: ScoringPlan) -> "Scorer":
        """
        This scorer by a plan: its own, or that of an earlier process, whose journal of the same round holds it.

        An `attention` that is asked for by name takes the place of the plan's.
        """
        asked = self.config.attention
        config = replace(self.config, attention=plan.attention if asked == "auto" else asked)
        return replace(self, config=config, context=plan.context, memory=plan.memory)

    def attend_by(self, attention: AttentionChoice) -> "Scorer":
        """This scorer with another way to attend in rows of trees, and rows as long as that way allows."""
        if attention == self.config.attention:
            return self
        memory = replace(self.memory, longest_row=find_longest_row(self.model, attention))
        return replace(self, config=replace(self.config, attention=attention), memory=memory)

    def restrict_to_this_rank(self) -> "Scorer":
        """A scorer for forwards that each rank makes by itself, without a progress bar."""
        return replace(self, world=replace(self.world.restrict_to_this_rank(), quiet=True))

    def size_batches(self, exemplars: np.ndarray) -> BatchSize:
        """The size of the forwards that score the samples with an exemplar in `exemplars`, `(N,)` or `(N, m)`."""
        return size_batches(self.model, self.config, self.memory, self._count_tokens(exemplars))

    def limit_checked_row(self, exemplars: np.ndarray) -> int:
        """
        Most tokens of a row that the checks before the first row forward.

        They take two dozen rows. Of any length, these were 75 % of the pass over a pool of 96 samples.
        """
        return max(self._count_tokens(exemplars) // LEAST_FORWARDS, LEAST_TOKENS)

    def _count_tokens(self, exemplars: np.ndarray) -> int:
        """Tokens of all samples that are scored, as often as they are; about what their forwards take together."""
        can_score = find_scorable(self.pool, exemplars, self.context)
        rows_each = 1 + (rank_columns(exemplars)[can_score] != NO_EXEMPLAR).sum(axis=1)
        return int((rows_each * self.pool.lengths[can_score]).sum())


def prepare_scorer(
    model: nn.Module, pool: Pool, config: MIWVConfig, world: World, checked: dict[str, CheckedModel] | None = None
) -> Scorer:
    """
    Decides the context and measures free memory. All ranks call this together.

    Args:
        model: A causal language model of transformers, as a Trainer holds it: it may be wrapped by DataParallel,
            DistributedDataParallel, a DeepSpeed engine, FSDP or `torch.compile`.
        checked: What earlier rounds of the same training have found, to which this scorer adds; None for nothing.
    """
    unwrapped = unwrap_model(model)
    context, memory = find_context_length(unwrapped, config), measure_memory(unwrapped, world, config.attention)
    sharing = read_rope_sharing(get_text_config(get_inner_model(unwrapped)))
    return Scorer(unwrapped, pool, config, world, context, memory, sharing, {} if checked is None else checked)
