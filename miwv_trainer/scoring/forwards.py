"""Batches through the model in turns of one forward a rank, until no rank has more; halved if memory runs out."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn
from tqdm.auto import tqdm

from miwv_trainer.distributed.world import Turn, World
from miwv_trainer.scoring.root_forward import PADDING_ID, forward_one_position

logger = logging.getLogger(__name__)


class Batch(Protocol):
    """What one forward takes. It is divided if memory runs out."""

    @property
    def tokens(self) -> int:
        """Tokens forwarded, padding included."""
        ...

    def halve(self: "BatchT") -> "Sequence[BatchT]":
        """The same work in two parts; none if it cannot be divided."""
        ...


BatchT = TypeVar("BatchT", bound=Batch)
ResultT = TypeVar("ResultT")


def run_forwards(
    model: nn.Module, batches: Sequence[BatchT], forward: Callable[[BatchT], ResultT], world: World, task: str
) -> Iterator[tuple[BatchT, ResultT]]:
    """
    Yields each of this rank's batches with what `forward` returned for it.

    Ranks agree after every turn of forwards, so that an error on one rank ends all of them. A rank that has no batches
    left waits for the others; if parameters are sharded, it runs dummy forwards meanwhile. The largest batch comes
    first: a batch that does not fit the memory fails at once, and the ranks finish at about the same time.

    Args:
        task: What the forwards do, for progress bars and errors, such as "scoring the pool".
    """
    largest_first = sorted(batches, key=lambda batch: -batch.tokens)
    share = _Share(deque(world.split_between_ranks(largest_first)), forward, world.sharded)
    description = task[0].upper() + task[1:]
    with tqdm(
        total=share.tokens, desc=description, unit=" tokens", unit_scale=True, disable=not world.shows_progress
    ) as progress:
        turn = Turn(has_more=True)
        while turn.has_more:
            finished = None
            with world.run_turn(task) as turn:
                if share.pending:
                    finished = share.forward_next()
                elif world.sharded:
                    _run_dummy_forward(model)
                turn.has_more = bool(share.pending)
            if finished is not None:
                yield finished
                progress.total = progress.n + finished[0].tokens + share.tokens
                progress.update(finished[0].tokens)


@dataclass
class _Share(Generic[BatchT, ResultT]):
    """
    One rank's batches, in the order in which they are forwarded.

    If memory runs out, that batch and all larger than half of it are halved, and what is scored is kept. If parameters
    are sharded, the run ends: a rank that leaves a forward alone leaves the others waiting in a collective.
    """

    pending: deque[BatchT]
    forward: Callable[[BatchT], ResultT]
    is_sharded: bool
    most_tokens: float = float("inf")
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = sum(batch.tokens for batch in self.pending)

    def forward_next(self) -> tuple[BatchT, ResultT] | None:
        """Forwards the next batch and returns it with the result; None if memory ran out and half of it may fit."""
        batch = self._take()
        while batch.tokens > self.most_tokens and (parts := batch.halve()):
            self._put_back(parts)
            batch = self._take()
        result = _forward_unless_out_of_memory(self.forward, batch, self.is_sharded)
        if result is not None:
            return batch, result
        self.most_tokens = batch.tokens // 2
        logger.warning("Out of memory on %d tokens: going on with %d a forward.", batch.tokens, self.most_tokens)
        self._put_back([batch])
        return None

    def _take(self) -> BatchT:
        batch = self.pending.popleft()
        self.tokens -= batch.tokens
        return batch

    def _put_back(self, batches: Sequence[BatchT]) -> None:
        self.pending.extendleft(reversed(batches))
        self.tokens += sum(batch.tokens for batch in batches)


def _forward_unless_out_of_memory(
    forward: Callable[[BatchT], ResultT], batch: BatchT, is_sharded: bool
) -> ResultT | None:
    """Returns what `forward` makes of a batch; None if memory ran out and half of the batch may fit."""
    try:
        return forward(batch)
    except Exception as error:
        if not should_reduce_batch_size(error) and not isinstance(error, MemoryError):
            raise
        if is_sharded or not batch.halve():
            raise RuntimeError(_explain_out_of_memory(batch, is_sharded)) from error
    # Not in the handler: the traceback still holds the failed forward's tensors there, and nothing would be freed.
    clear_device_cache(garbage_collection=True)
    return None


def _explain_out_of_memory(batch: Batch, is_sharded: bool) -> str:
    reason = (
        "where parameters are sharded over ranks, no rank can try again alone. Lower `tokens_per_batch` and "
        "`tokens_per_row`"
        if is_sharded
        else "and it cannot be halved: it is a single sample. Lower `scoring_max_length`"
    )
    return f"Out of memory on a scoring forward of {batch.tokens} tokens, {reason}, or `logits_chunk`."


def _run_dummy_forward(model: nn.Module) -> None:
    """A forward for a rank that ran out of work while others still need its shard of the parameters."""
    # Without it, the others wait in an all-gather until the timeout of the process group (DeepSpeed#860, #4367).
    ids = torch.full((1, 2), PADDING_ID, dtype=torch.long, device=next(model.parameters()).device)
    forward_one_position(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
