"""Rows through the model to losses.

For sample i with response tokens y_1..y_n, exemplar k and context c, the loss is the mean over the response of
-log p(y_t | c, y_<t): zero-shot with c = x_i, one-shot with c = x_k, y_k, x_i (equations 2 and 3 of the paper, MIWV
being their difference). Logits are made only where a response token is predicted, a few positions at a time. The
forward is the root module's, which ZeRO-3 needs. The padded layout is the reference; rows of trees must give the same
losses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from miwv_trainer.distributed.world import World
from miwv_trainer.distributed.wrappers import inner_model
from miwv_trainer.scoring.attention import (
    Attention,
    choose_tree_attention,
    pad,
    prepare_tree_inputs,
    use_tree_attention,
)
from miwv_trainer.scoring.forwards import Batch, run_forwards
from miwv_trainer.scoring.head import (
    PADDING_ID,
    Head,
    Targets,
    choose_head,
    compute_answer_losses,
    forward_one_position,
)
from miwv_trainer.scoring.isolation import get_device
from miwv_trainer.scoring.rows import PaddedBatch, Row, make_prompt_row, make_rows
from miwv_trainer.scoring.scorer import Scorer
from miwv_trainer.scoring.trees import Tree, TreeBatch, TreeRow, make_tree_batches, make_tree_row
from miwv_trainer.selection.scores import compute_miwv
from miwv_trainer.storage.journal import Journal, JournalLine

# Kinds, samples and losses of one forward, `(losses,)` each.
ScoredLosses = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Losses:
    """
    Mean negative log-likelihood per response token, in nats.

    Args:
        zero_shot: `(N,)` float32, NaN where a sample was not scored.
        one_shot: `(N,)` float32, likewise.
        tokens_forwarded: Tokens of all rows, padding included.
    """

    zero_shot: np.ndarray
    one_shot: np.ndarray
    tokens_forwarded: int

    @property
    def miwv(self) -> np.ndarray:
        return compute_miwv(self.one_shot, self.zero_shot)

    def replace_samples(self, others: "Losses", samples: np.ndarray) -> "Losses":
        """These losses, those of `samples` (indices, or a mask) taken from `others`; tokens of both."""
        zero_shot, one_shot = self.zero_shot.copy(), self.one_shot.copy()
        zero_shot[samples], one_shot[samples] = others.zero_shot[samples], others.one_shot[samples]
        return Losses(zero_shot, one_shot, self.tokens_forwarded + others.tokens_forwarded)


@dataclass(frozen=True)
class Recording:
    """
    Where a pass over the pool is recorded.

    Args:
        journal: Receives what each forward gave. What it holds of this stage already is not forwarded again.
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
        """`(losses,)` `ZERO_SHOT` or `ONE_SHOT`."""
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
        exemplars: `(N,)` index of each sample's exemplar; None where no row is one-shot.
    """

    def score(batch: PaddedBatch, head: Head) -> ScoredLosses:
        rows = make_rows(batch, scorer.pool, exemplars, scorer.context)
        return batch.kinds, batch.samples, compute_response_losses(scorer.model, rows, scorer.config.logits_chunk, head)

    return _sweep(scorer, batches, score, recording)


def score_trees(
    scorer: Scorer, rows: list[list[Tree]], tokens_per_batch: int, recording: Recording = NOT_RECORDED
) -> Losses:
    """
    Like [`score_batches`], for rows of trees from [`~miwv_trainer.scoring.trees.plan_trees`], as many in a forward as
    `tokens_per_batch` holds.
    """
    model, pool = scorer.model, scorer.pool
    attention = choose_tree_attention(model)
    batches = make_tree_batches(rows, pool, tokens_per_batch, is_padded=attention == "mask")

    def score(batch: TreeBatch, head: Head) -> ScoredLosses:
        # Only masks are padded. The other ways compute nothing between trees, so that rows are joined.
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
    """Scores each batch on one rank, writes results into slots of their own, and sums the slots over ranks once."""
    world, journal, size = scorer.world, recording.journal, len(scorer.pool)
    losses_in_all = sum(len(batch.samples) for batch in batches)
    recorded = _read_recorded(recording, size, world)
    # Batches were composed before what is recorded is left out, so that losses do not depend on where a round stopped.
    batches = [batch for batch in batches if not recorded.is_known[batch.kinds, batch.samples].all()]
    losses = np.zeros((2, size))
    is_scored = np.zeros((2, size))
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
    losses = np.where(is_scored > 0, losses, np.where(recorded.is_known, recorded.losses, np.nan))
    zero_shot, one_shot = losses.astype(np.float32)
    return Losses(zero_shot, one_shot, int(world.all_reduce_sum(tokens)[0]) + recorded.tokens)


@dataclass(frozen=True)
class _Recorded:
    """What the journals of all ranks hold of a pass: `(2, N)` losses, which are known, tokens forwarded for them."""

    losses: np.ndarray
    is_known: np.ndarray
    tokens: int


def _read_recorded(recording: Recording, size: int, world: World) -> _Recorded:
    """The same on every rank, although a rank may see the files of its own machine only."""
    losses, is_known = np.zeros((2, size)), np.zeros((2, size))
    if recording.journal is None:
        return _Recorded(losses, is_known > 0, 0)
    tokens = np.zeros(world.size, dtype=np.int64)
    with world.run_together("reading the journal"):
        for line in chain(*recording.journal.read()):
            if line.stage == recording.stage:
                losses[line.kinds, line.samples] = line.losses
                is_known[line.kinds, line.samples] = 1
                tokens[world.rank] += line.tokens
    # A loss is float32, so that neither the sum over the ranks that read it nor the division rounds.
    losses, is_known = world.all_reduce_sum(losses), world.all_reduce_sum(is_known)
    return _Recorded(losses / np.maximum(is_known, 1), is_known > 0, int(world.all_reduce_sum(tokens).max()))


def compute_response_losses(
    model: nn.Module, rows: list[Row], logits_chunk: int = 256, head: Head | None = None
) -> np.ndarray:
    """
    `(rows,)` mean negative log-likelihood of each row's response tokens, from one forward.

    A token at position t is predicted at t - 1. Without a head, [`~miwv_trainer.scoring.head.choose_head`] finds it by
    another forward.
    """
    row_numbers = np.repeat(np.arange(len(rows)), [len(row.targets) for row in rows])
    predicting = np.concatenate([row.targets - 1 for row in rows])
    answers = np.concatenate([row.ids[row.targets] for row in rows])
    head = choose_head(model) if head is None else head
    targets = Targets.from_arrays(row_numbers, predicting, answers)
    nll = compute_answer_losses(model, _pad_rows(rows, get_device(model)), targets, logits_chunk, head)
    return np.bincount(row_numbers, weights=nll) / np.bincount(row_numbers)


def compute_tree_losses(
    model: nn.Module, rows: list[TreeRow], attention: Attention, logits_chunk: int, head: Head
) -> ScoredLosses:
    """
    Kinds, samples and mean negative log-likelihoods, `(losses,)` each, of what rows of trees score, from one forward.

    A response token stands right behind the one that predicts it, since its sample's prompt comes first.
    """
    numbers = np.repeat(np.arange(len(rows)), [len(row.targets) for row in rows])
    targets, samples, kinds = (
        np.concatenate([getattr(row, name) for row in rows]) for name in ("targets", "samples", "kinds")
    )
    answers = np.concatenate([row.ids[row.targets] for row in rows])
    with prepare_tree_inputs(model, rows, attention) as inputs:
        nll = compute_answer_losses(
            model, inputs, Targets.from_arrays(numbers, targets - 1, answers), logits_chunk, head
        )
    slots, slot = np.unique(np.stack([kinds, samples]), axis=1, return_inverse=True)
    return slots[0], slots[1], np.bincount(slot, weights=nll) / np.bincount(slot)


def embed_prompts(scorer: Scorer, batches: list[PaddedBatch]) -> np.ndarray:
    """
    `(N, hidden)` mean of the last hidden states over each prompt's tokens: the `"model"` embedder.

    Args:
        batches: From [`~miwv_trainer.scoring.rows.plan_prompts`].
    """
    model, pool, world = scorer.model, scorer.pool, scorer.world

    def embed(batch: PaddedBatch) -> np.ndarray:
        return _average_prompt_states(
            model, [make_prompt_row(pool, sample, scorer.context) for sample in batch.samples.tolist()]
        )

    sums: np.ndarray | None = None
    for batch, means in run_forwards(model, batches, embed, world, "embedding the prompts with the model"):
        if sums is None:
            sums = np.zeros((len(pool), means.shape[1]), dtype=np.float32)
        sums[batch.samples] = means
    # Rank 0 always has a batch; a rank without one learns the width from it.
    width = world.broadcast_from_main(0 if sums is None else sums.shape[1])
    return world.all_reduce_sum(sums if sums is not None else np.zeros((len(pool), width), dtype=np.float32))


def _average_prompt_states(model: nn.Module, rows: list[Row]) -> np.ndarray:
    """`(rows, hidden)` means over each row's targets of what the backbone puts out during a root forward."""
    inputs = _pad_rows(rows, get_device(model))
    outputs: list[torch.Tensor] = []
    hook = inner_model(model).base_model.register_forward_hook(
        lambda module, args, output: outputs.append(output.last_hidden_state)
    )
    try:
        forward_one_position(model, inputs)
    finally:
        hook.remove()
    (hidden,) = outputs
    is_prompt = torch.zeros(hidden.shape[:2], device=hidden.device)
    for number, row in enumerate(rows):
        is_prompt[number, torch.as_tensor(row.targets, device=hidden.device)] = 1
    means = torch.einsum("bth,bt->bh", hidden.float(), is_prompt) / is_prompt.sum(dim=1, keepdim=True)
    return means.cpu().numpy()


def _pad_rows(rows: list[Row], device: torch.device) -> dict[str, torch.Tensor]:
    """Right-padded `(rows, length)` ids and mask: correct for every causal family, recurrent ones too."""
    return {
        "input_ids": pad([row.ids for row in rows], PADDING_ID, device),
        "attention_mask": pad([np.ones(len(row.ids)) for row in rows], 0, device),
    }
