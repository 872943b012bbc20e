"""
A pass over the pool: every batch through the model, on some rank, to the losses of its samples.

For sample i with response tokens y_1..y_n, exemplar k and context c, the loss is the mean over the response of
-log p(y_t | c, y_<t): zero-shot with c = x_i, one-shot with c = (x_k, y_k, x_i). These are equations 2 and 3 of the
paper (arXiv 2511.07074); MIWV is their difference. The padded layout is the reference: rows of trees must give the same
losses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol, TypeVar

import numpy as np

from miwv_trainer.distributed.world import World
from miwv_trainer.scoring.attention import choose_tree_attention, use_tree_attention
from miwv_trainer.scoring.forwards import Batch, run_forwards
from miwv_trainer.scoring.head import Head, choose_head
from miwv_trainer.scoring.row_losses import ScoredLosses, compute_row_losses, compute_tree_losses
from miwv_trainer.scoring.rows import PaddedBatch, count_kinds, make_rows
from miwv_trainer.scoring.scorer import Scorer
from miwv_trainer.scoring.trees import Tree, TreeBatch, make_tree_batches, make_tree_row
from miwv_trainer.selection.measured import compute_miwv
from miwv_trainer.storage.journal import Journal, JournalLine


@dataclass(frozen=True)
class Losses:
    """
    Mean negative log-likelihood per response token, in nats.

    Args:
        zero_shot: `(N,)` float32, NaN where a sample was not scored.
        one_shot: `(N,)` float32, NaN where a sample was not scored.
        tokens_forwarded: Tokens of all rows, padding included.
        response: `(N,)` float32 of responses alone, without their prompts. None if none was asked for.
        further: `(N, m - 1)` float32 behind further exemplars, the second nearest first. None if each sample has one.
    """

    zero_shot: np.ndarray
    one_shot: np.ndarray
    tokens_forwarded: int
    response: np.ndarray | None = None
    further: np.ndarray | None = None

    @property
    def miwv(self) -> np.ndarray:
        """`(N,)` one-shot minus zero-shot loss."""
        return compute_miwv(self.one_shot, self.zero_shot)

    def replace_samples(self, others: "Losses", samples: np.ndarray) -> "Losses":
        """These losses with those of `samples` (indices or a mask) taken from `others`. Tokens are added up."""
        return Losses(
            zero_shot=_put(self.zero_shot, others.zero_shot, samples),
            one_shot=_put(self.one_shot, others.one_shot, samples),
            tokens_forwarded=self.tokens_forwarded + others.tokens_forwarded,
            response=_put_known(self.response, others.response, samples),
            further=_put_known(self.further, others.further, samples),
        )

    def restrict_to(self, samples: np.ndarray) -> "Losses":
        """These losses of `samples` (indices or a mask), NaN of all others. No tokens are counted."""
        nothing = Losses(
            zero_shot=np.full_like(self.zero_shot, np.nan),
            one_shot=np.full_like(self.one_shot, np.nan),
            tokens_forwarded=0,
            response=None if self.response is None else np.full_like(self.response, np.nan),
            further=None if self.further is None else np.full_like(self.further, np.nan),
        )
        return replace(nothing.replace_samples(self, samples), tokens_forwarded=0)

    def with_responses(self, responses: "Losses") -> "Losses":
        """These losses with those of responses alone, which another pass has computed. Tokens are added up."""
        tokens = self.tokens_forwarded + responses.tokens_forwarded
        return replace(self, response=responses.response, tokens_forwarded=tokens)


def _put(values: np.ndarray, others: np.ndarray, samples: np.ndarray) -> np.ndarray:
    merged = values.copy()
    merged[samples] = others[samples]
    return merged


def _put_known(values: np.ndarray | None, others: np.ndarray | None, samples: np.ndarray) -> np.ndarray | None:
    return values if values is None or others is None else _put(values, others, samples)


@dataclass(frozen=True)
class Recording:
    """
    Where a pass over the pool is recorded.

    Args:
        journal: Receives the losses of each forward. Those that it already holds of this stage are not computed again.
        stage: Name of the pass within the round.
    """

    journal: Journal | None = None
    stage: str = "losses"

    def with_stage(self, name: str) -> "Recording":
        """The recording of another pass of the same round."""
        return replace(self, stage=name)


NOT_RECORDED = Recording()


class ScoringBatch(Batch, Protocol):
    """A batch that knows which losses it gives."""

    @property
    def kinds(self) -> np.ndarray:
        """`(losses,)` `ZERO_SHOT`, `RESPONSE`, or the kind of the loss behind an exemplar."""
        ...

    @property
    def samples(self) -> np.ndarray:
        """`(losses,)` the samples."""
        ...


ScoringBatchT = TypeVar("ScoringBatchT", bound=ScoringBatch)


def score_batches(
    scorer: Scorer, batches: list[PaddedBatch], exemplars: np.ndarray | None = None, recording: Recording = NOT_RECORDED
) -> Losses:
    """
    Forwards all batches, each on one rank, and returns the losses on every rank.

    The model is in evaluation mode, without gradients ([`~miwv_trainer.scoring.isolation.leave_no_trace`]).

    Args:
        batches: From [`~miwv_trainer.scoring.rows.plan_padded`] or [`~miwv_trainer.scoring.rows.plan_zero_shot`].
        exemplars: `(N,)` index of each sample's exemplar, or `(N, m)` of its nearest ones; None where no row is
            one-shot.
    """

    def score(batch: PaddedBatch, head: Head) -> ScoredLosses:
        rows = make_rows(batch, scorer.pool, exemplars, scorer.context)
        return batch.kinds, batch.samples, compute_row_losses(scorer.model, rows, scorer.config.logits_chunk, head)

    return _sweep(scorer, batches, score, recording)


def score_trees(
    scorer: Scorer, rows: list[list[Tree]], tokens_per_batch: int, recording: Recording = NOT_RECORDED
) -> Losses:
    """
    Like [`score_batches`], for rows of trees from [`~miwv_trainer.scoring.trees.plan_trees`], as many in a forward as
    `tokens_per_batch` holds.
    """
    model, pool = scorer.model, scorer.pool
    attention = choose_tree_attention(model, scorer.config.attention)
    batches = make_tree_batches(rows, pool, tokens_per_batch, is_padded=attention == "mask")

    def score(batch: TreeBatch, head: Head) -> ScoredLosses:
        # Only masks need rows of one length. The other ways compute nothing between trees, so rows become one.
        joined = batch.rows if batch.is_padded else [list(chain(*batch.rows))]
        laid_out = [make_tree_row(row, pool) for row in joined]
        return compute_tree_losses(model, laid_out, attention, scorer.config.logits_chunk, head)

    with use_tree_attention(model, attention):
        return _sweep(scorer, batches, score, recording)


def _sweep(
    scorer: Scorer,
    batches: Sequence[ScoringBatchT],
    score: Callable[[ScoringBatchT, Head], ScoredLosses],
    recording: Recording,
) -> Losses:
    """
    Scores each batch on one rank and returns all losses on every rank.

    Each rank fills its own slots of arrays of zeros, and one sum over ranks puts them together: exact, whatever the
    order.
    """
    world, journal = scorer.world, recording.journal
    shape = count_kinds(scorer.config.exemplars_per_sample), len(scorer.pool)
    losses_in_all = sum(len(batch.samples) for batch in batches)
    recorded = _read_recorded(recording, shape, world)
    # Only whole batches are left out. Batches composed anew of what is missing would change the last bits of losses, so
    # scores would depend on where a round was interrupted.
    batches = [batch for batch in batches if not recorded.is_recorded[batch.kinds, batch.samples].all()]
    losses, is_scored = np.zeros(shape), np.zeros(shape)
    tokens = np.zeros(1, dtype=np.int64)
    task = "scoring the pool"
    with world.run_turn(task):
        head = choose_head(scorer.model)

    def forward(batch: ScoringBatchT) -> ScoredLosses:
        kinds, samples, values = score(batch, head)
        if journal is not None:
            line = JournalLine(recording.stage, kinds, samples, values, batch.tokens, journal.measure_seconds())
            journal.append(line, losses_in_all)
        return kinds, samples, values

    for batch, (kinds, samples, values) in run_forwards(scorer.model, batches, forward, world, task):
        losses[kinds, samples] = values
        is_scored[kinds, samples] = 1
        tokens += batch.tokens
    losses, is_scored = world.all_reduce_sum(losses), world.all_reduce_sum(is_scored)
    losses = np.where(is_scored > 0, losses, np.where(recorded.is_recorded, recorded.losses, np.nan))
    zero_shot, one_shot, response, *further = losses.astype(np.float32)
    in_all = int(world.all_reduce_sum(tokens)[0]) + recorded.tokens
    return Losses(zero_shot, one_shot, in_all, response, np.stack(further, axis=1) if further else None)


@dataclass(frozen=True)
class _Recorded:
    """
    What the journals of all ranks hold of a pass.

    Args:
        losses: `(kinds, N)` losses of each kind.
        is_recorded: `(kinds, N)` whether a loss is recorded.
        tokens: Tokens forwarded for them.
    """

    losses: np.ndarray
    is_recorded: np.ndarray
    tokens: int


def _read_recorded(recording: Recording, shape: tuple[int, int], world: World) -> _Recorded:
    """Reads the journals, the same on every rank, although a rank may see only the files of its own machine."""
    losses, readers = np.zeros(shape), np.zeros(shape)
    if recording.journal is None:
        return _Recorded(losses, readers > 0, 0)
    tokens = np.zeros(world.size, dtype=np.int64)
    with world.run_together("reading the journal"):
        for line in chain(*recording.journal.read()):
            if line.stage == recording.stage:
                losses[line.kinds, line.samples] = line.losses
                readers[line.kinds, line.samples] = 1
                tokens[world.rank] += line.tokens
    # A loss is float32, so that neither the sum over the ranks that read it nor the division rounds.
    losses, readers = world.all_reduce_sum(losses), world.all_reduce_sum(readers)
    return _Recorded(losses / np.maximum(readers, 1), readers > 0, int(world.all_reduce_sum(tokens).max()))
