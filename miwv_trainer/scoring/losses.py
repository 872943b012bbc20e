"""Rows through the model to losses.

For sample i with response tokens y_1..y_n, exemplar k and context c, the loss is the mean over the response of
-log p(y_t | c, y_<t): zero-shot with c = x_i, one-shot with c = x_k, y_k, x_i (equations 2 and 3 of the paper, MIWV
being their difference). Logits are made only where a response token is predicted, a few positions at a time. The
forward is the root module's, which ZeRO-3 needs. The padded layout is the reference; rows of trees must give the same
losses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.distributed.wrappers import inner_model
from miwv_trainer.scoring.attention import Attention, attending, pad, tree_attention, tree_inputs
from miwv_trainer.scoring.forwards import run_forwards
from miwv_trainer.scoring.head import PADDING_ID, Head, answer_losses, choose_head, forward_one_position
from miwv_trainer.scoring.isolation import device_of
from miwv_trainer.scoring.rows import Batch, Row, batch_rows, prompt_row
from miwv_trainer.scoring.trees import Tree, TreeBatch, TreeRow, tree_batches, tree_row
from miwv_trainer.selection.scores import compute_miwv
from miwv_trainer.storage.journal import Journal, JournalLine

# Kinds, samples and losses of one forward, `(losses,)` each.
Scored = tuple[np.ndarray, np.ndarray, np.ndarray]


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

    def replaced(self, others: "Losses", samples: np.ndarray) -> "Losses":
        """These losses, those of `samples` (indices, or a mask) taken from `others`; tokens of both."""
        zero_shot, one_shot = self.zero_shot.copy(), self.one_shot.copy()
        zero_shot[samples], one_shot[samples] = others.zero_shot[samples], others.one_shot[samples]
        return Losses(zero_shot, one_shot, self.tokens_forwarded + others.tokens_forwarded)


def score_batches(
    model: nn.Module,
    pool: Pool,
    batches: list[Batch],
    exemplars: np.ndarray | None = None,
    *,
    context: int,
    logits_chunk: int = 256,
    world: World,
    show_progress: bool = False,
    journal: Journal | None = None,
    stage: str = "losses",
) -> Losses:
    """
    Forwards all batches, each on one rank, and returns the losses on every rank.

    Args:
        model: A causal language model of transformers, in evaluation mode ([`no_trace`]).
        batches: From [`~miwv_trainer.scoring.rows.plan_padded`] or [`~miwv_trainer.scoring.rows.plan_zero_shot`].
        exemplars: `(N,)` index of each sample's exemplar; None where no row is one-shot.
        context: Longest sequence.
        logits_chunk: Positions whose logits exist at once.
        journal: Receives what each forward gave. What it holds of `stage` already is not forwarded again.
        stage: Name of this pass over the pool.
    """

    def score(batch: Batch, head: Head) -> Scored:
        rows = batch_rows(batch, pool, exemplars, context)
        return batch.kinds, batch.samples, response_losses(model, rows, logits_chunk, head)

    return _sweep(model, len(pool), batches, score, Batch.halves, world, show_progress, journal, stage)


def score_trees(
    model: nn.Module,
    pool: Pool,
    rows: list[list[Tree]],
    *,
    tokens_per_batch: int,
    logits_chunk: int = 256,
    world: World,
    show_progress: bool = False,
    journal: Journal | None = None,
    stage: str = "losses",
) -> Losses:
    """
    Like [`score_batches`], for rows of trees from [`~miwv_trainer.scoring.trees.plan_trees`], as many in a forward as
    `tokens_per_batch` holds.
    """
    attention = tree_attention(model)
    batches = tree_batches(rows, pool, tokens_per_batch, is_padded=attention == "mask")

    def score(batch: TreeBatch, head: Head) -> Scored:
        # Only masks are padded; other attention costs nothing between trees, so that rows are joined.
        joined = batch.rows if batch.is_padded else [list(chain(*batch.rows))]
        return tree_losses(model, [tree_row(row, pool) for row in joined], attention, logits_chunk, head)

    with attending(model, attention):
        return _sweep(
            model, len(pool), batches, score, lambda batch: batch.halves(pool), world, show_progress, journal, stage
        )


def _sweep(
    model: nn.Module,
    size: int,
    batches: Sequence[Any],
    score: Callable[[Any, Head], Scored],
    halves: Callable[[Any], list[Any]],
    world: World,
    show_progress: bool,
    journal: Journal | None,
    stage: str,
) -> Losses:
    """Each batch on one rank, results into slots of their own, one sum."""
    of_losses = sum(len(batch.samples) for batch in batches)
    recorded = _recorded(journal, stage, size, world)
    # Composed before what is known is left out, so that losses do not depend on where a round was interrupted.
    batches = [batch for batch in batches if not recorded.known[batch.kinds, batch.samples].all()]
    losses = np.zeros((2, size))
    scored = np.zeros((2, size))
    tokens = np.zeros(1, dtype=np.int64)
    doing = "scoring the pool"
    with world.run_turn(doing):
        head = choose_head(model)

    def forward(batch: Any) -> Scored:
        kinds, samples, values = score(batch, head)
        if journal is not None:
            journal.append(JournalLine(stage, kinds, samples, values, batch.tokens, journal.seconds()), of_losses)
        return kinds, samples, values

    for batch, (kinds, samples, values) in run_forwards(model, batches, forward, halves, world, doing, show_progress):
        losses[kinds, samples] = values
        scored[kinds, samples] = 1
        tokens += batch.tokens
    losses, scored = world.all_reduce_sum(losses), world.all_reduce_sum(scored)
    losses = np.where(scored > 0, losses, np.where(recorded.known, recorded.losses, np.nan))
    zero_shot, one_shot = losses.astype(np.float32)
    return Losses(zero_shot, one_shot, int(world.all_reduce_sum(tokens)[0]) + recorded.tokens)


@dataclass(frozen=True)
class _Recorded:
    """What the journals of all ranks hold of a stage: `(2, N)` losses, which are known, tokens forwarded for them."""

    losses: np.ndarray
    known: np.ndarray
    tokens: int


def _recorded(journal: Journal | None, stage: str, size: int, world: World) -> _Recorded:
    """The same on every rank, although a rank may see the files of its own machine only."""
    losses, known = np.zeros((2, size)), np.zeros((2, size))
    if journal is None:
        return _Recorded(losses, known > 0, 0)
    tokens = np.zeros(world.size, dtype=np.int64)
    with world.run_together("reading the journal"):
        for entry in (entry for entries in journal.read() for entry in entries if entry.stage == stage):
            losses[entry.kinds, entry.samples] = entry.losses
            known[entry.kinds, entry.samples] = 1
            tokens[world.rank] += entry.tokens
    # A loss is float32, so that neither the sum over the ranks that read it nor the division rounds.
    losses, known = world.all_reduce_sum(losses), world.all_reduce_sum(known)
    return _Recorded(losses / np.maximum(known, 1), known > 0, int(world.all_reduce_sum(tokens).max()))


def response_losses(model: nn.Module, rows: list[Row], logits_chunk: int = 256, head: Head | None = None) -> np.ndarray:
    """
    `(rows,)` mean negative log-likelihood of each row's response tokens, from one forward.

    A token at position t is predicted at t - 1. Without a head, [`~miwv_trainer.scoring.head.choose_head`] finds it by
    another forward.
    """
    row_numbers = np.repeat(np.arange(len(rows)), [len(row.targets) for row in rows])
    predicting = np.concatenate([row.targets - 1 for row in rows])
    answers = np.concatenate([row.ids[row.targets] for row in rows])
    head = choose_head(model) if head is None else head
    nll = answer_losses(model, _pad(rows, device_of(model)), row_numbers, predicting, answers, logits_chunk, head)
    return np.bincount(row_numbers, weights=nll) / np.bincount(row_numbers)


def tree_losses(model: nn.Module, rows: list[TreeRow], attention: Attention, logits_chunk: int, head: Head) -> Scored:
    """
    Kinds, samples and mean negative log-likelihoods, `(losses,)` each, of what rows of trees score, from one forward.

    A response token stands right behind the one that predicts it, since its sample's prompt comes first.
    """
    numbers = np.repeat(np.arange(len(rows)), [len(row.targets) for row in rows])
    targets, samples, kinds = (
        np.concatenate([getattr(row, name) for row in rows]) for name in ("targets", "samples", "kinds")
    )
    answers = np.concatenate([row.ids[row.targets] for row in rows])
    with tree_inputs(model, rows, attention) as inputs:
        nll = answer_losses(model, inputs, numbers, targets - 1, answers, logits_chunk, head)
    slots, slot = np.unique(np.stack([kinds, samples]), axis=1, return_inverse=True)
    return slots[0], slots[1], np.bincount(slot, weights=nll) / np.bincount(slot)


def prompt_embeddings(
    model: nn.Module,
    pool: Pool,
    batches: list[Batch],
    *,
    context: int,
    world: World,
    show_progress: bool = False,
) -> np.ndarray:
    """`(N, hidden)` mean of the last hidden states over each prompt's tokens: the `"model"` embedder."""

    def embed(batch: Batch) -> np.ndarray:
        return _prompt_means(model, [prompt_row(pool, sample, context) for sample in batch.samples.tolist()])

    sums: np.ndarray | None = None
    doing = "embedding the prompts with the model"
    for batch, means in run_forwards(model, batches, embed, Batch.halves, world, doing, show_progress):
        if sums is None:
            sums = np.zeros((len(pool), means.shape[1]), dtype=np.float32)
        sums[batch.samples] = means
    # Rank 0 always has a batch; a rank without one learns the width from it.
    width = world.broadcast_from_main(0 if sums is None else sums.shape[1])
    return world.all_reduce_sum(sums if sums is not None else np.zeros((len(pool), width), dtype=np.float32))


def _prompt_means(model: nn.Module, rows: list[Row]) -> np.ndarray:
    """`(rows, hidden)` means over each row's targets of what the backbone puts out during a root forward."""
    inputs = _pad(rows, device_of(model))
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


def _pad(rows: list[Row], device: torch.device) -> dict[str, torch.Tensor]:
    """Right-padded `(rows, length)` ids and mask: correct for every causal family, recurrent ones too."""
    return {
        "input_ids": pad([row.ids for row in rows], PADDING_ID, device),
        "attention_mask": pad([np.ones(len(row.ids)) for row in rows], 0, device),
    }
