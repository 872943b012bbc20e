"""One forward: the mean loss of each response in padded rows or in rows of trees."""

import numpy as np
import torch
from torch import nn

from miwv_trainer.choices import Attention
from miwv_trainer.scoring.attention import prepare_tree_inputs
from miwv_trainer.scoring.head import Head, Targets, choose_head, compute_answer_losses
from miwv_trainer.scoring.isolation import get_device
from miwv_trainer.scoring.root_forward import PADDING_ID, ForwardInputs, pad
from miwv_trainer.scoring.rows import Row
from miwv_trainer.scoring.trees import TreeRow

# Kinds, samples and losses of one forward, `(losses,)` each.
ScoredLosses = tuple[np.ndarray, np.ndarray, np.ndarray]


def compute_row_losses(
    model: nn.Module, rows: list[Row], logits_chunk: int = 256, head: Head | None = None
) -> np.ndarray:
    """
    `(rows,)` mean negative log-likelihood of each row's response tokens, in nats, from one forward.

    Args:
        logits_chunk: Positions whose logits exist at once.
        head: From [`~miwv_trainer.scoring.head.choose_head`]; if None, another forward finds it.
    """
    row_numbers = np.repeat(np.arange(len(rows)), [len(row.targets) for row in rows])
    # The token at position t is predicted at t - 1.
    predicting = np.concatenate([row.targets - 1 for row in rows])
    answers = np.concatenate([row.ids[row.targets] for row in rows])
    head = choose_head(model) if head is None else head
    targets = Targets.from_arrays(row_numbers, predicting, answers)
    nll = compute_answer_losses(model, pad_rows(rows, get_device(model)), targets, logits_chunk, head)
    return np.bincount(row_numbers, weights=nll) / np.bincount(row_numbers)


def compute_tree_losses(
    model: nn.Module, rows: list[TreeRow], attention: Attention, logits_chunk: int, head: Head
) -> ScoredLosses:
    """Kinds, samples and mean negative log-likelihoods, in nats, of what rows of trees score, from one forward."""
    numbers = np.repeat(np.arange(len(rows)), [len(row.targets) for row in rows])
    targets, samples, kinds = (
        np.concatenate([getattr(row, name) for row in rows]) for name in ("targets", "samples", "kinds")
    )
    answers = np.concatenate([row.ids[row.targets] for row in rows])
    # The token before a response token in the row is also the one before it in its sequence: a sample's prompt comes
    # first, so a branch never begins with a response token.
    predicted = Targets.from_arrays(numbers, targets - 1, answers)
    with prepare_tree_inputs(model, rows, attention) as inputs:
        nll = compute_answer_losses(model, inputs, predicted, logits_chunk, head)
    slots, slot = np.unique(np.stack([kinds, samples]), axis=1, return_inverse=True)
    return slots[0], slots[1], np.bincount(slot, weights=nll) / np.bincount(slot)


def pad_rows(rows: list[Row], device: torch.device) -> ForwardInputs:
    """Ids and mask of rows padded on the right, which is correct for recurrent layers and absolute positions too."""
    return {
        "input_ids": pad([row.ids for row in rows], PADDING_ID, device),
        "attention_mask": pad([np.ones(len(row.ids)) for row in rows], 0, device),
    }
