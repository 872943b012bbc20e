"""What every pass of a round shares: model, pool, configuration, ranks, and the limits that are decided once.

Limits are decided once because a round may be killed and go on in another process. Batches change the last bits of a
loss, and free memory differs from minute to minute; a round that measured it again would compose other batches.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.distributed.wrappers import unwrap_model
from miwv_trainer.scoring.context import find_context_length
from miwv_trainer.scoring.memory import BatchSize, MemoryBudget, measure_memory, size_batches
from miwv_trainer.scoring.rows import find_scorable
from miwv_trainer.storage.journal import PlanHeader


@dataclass(frozen=True)
class ScoringPlan:
    """
    The three decisions of a round, which its journal's header holds.

    Args:
        context: Longest sequence, in tokens, that is forwarded.
        layout: How samples share a forward: `"tree"`, `"padded"` or `"zero_shot"`.
        memory: What limits the size of forwards.
    """

    context: int
    layout: str
    memory: MemoryBudget

    def to_header(self) -> PlanHeader:
        """The plan as JSON holds it."""
        return PlanHeader(context=self.context, layout=self.layout, memory=asdict(self.memory))

    @classmethod
    def from_header(cls, header: PlanHeader) -> "ScoringPlan":
        """The plan that a journal's header holds among other entries."""
        return cls(header["context"], header["layout"], MemoryBudget(**header["memory"]))


@dataclass(frozen=True)
class Scorer:
    """
    What scores a pool in one round. Made by [`prepare_scorer`].

    Args:
        model: The model as it is forwarded: FSDP's wrapper, else the module inside all wrappers.
        pool: N samples as token ids.
        config: Its `tokens_per_batch`, `tokens_per_row` and `logits_chunk` come before what memory allows.
        world: The ranks among which forwards are dealt.
        context: Longest sequence, in tokens, that is forwarded.
        memory: What limits the size of forwards.
    """

    model: PreTrainedModel
    pool: Pool
    config: MIWVConfig
    world: World
    context: int
    memory: MemoryBudget

    def follow(self, plan: ScoringPlan) -> "Scorer":
        """The scorer of the same round in an earlier process, whose journal holds `plan`."""
        return replace(self, context=plan.context, memory=plan.memory)

    def restrict_to_this_rank(self) -> "Scorer":
        """The same for forwards that every rank makes by itself, with no progress bar."""
        return replace(self, world=World(0, 1, self.world.device, self.world.sharded, quiet=True))

    def size_batches(self, exemplars: np.ndarray) -> BatchSize:
        """The size of the forwards that score the samples which have `exemplars`, `(N,)`."""
        can_score = find_scorable(self.pool, exemplars, self.context)
        return size_batches(self.model, self.config, self.memory, 2 * int(self.pool.lengths[can_score].sum()))


def prepare_scorer(model: nn.Module, pool: Pool, config: MIWVConfig, world: World) -> Scorer:
    """
    Decides the context and measures the memory, on all ranks together.

    Args:
        model: A causal language model of transformers, as a Trainer holds it: it may be wrapped by DataParallel,
            DistributedDataParallel, a DeepSpeed engine, FSDP or `torch.compile`.
    """
    inside = unwrap_model(model)
    return Scorer(inside, pool, config, world, find_context_length(inside, config), measure_memory(inside, world))
