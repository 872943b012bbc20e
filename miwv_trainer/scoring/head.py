"""
From the hidden states of one root forward to the negative log-likelihood of each response token.

The model's own loss does not serve: it is one mean for the whole batch, and transformers computes it from all logits in
float32, 1.2 GB for a row of 2,000 tokens and a vocabulary of 152,000. Here logits exist at no more than `logits_chunk`
positions. A hook before the head runs the head on the hidden states that predict response tokens, one chunk at a time.
Then it passes a single position on, so that the root forward can finish. If the logits made this way are not the
model's own (`head_check`), the model makes its own.

A model that TRL has given a fused head is scored through it, as it is trained. Under ZeRO-3, a forward that takes
another way through the head leaves its weight partitioned where the next training step expects it whole.
"""

import functools
import logging
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from miwv_trainer.data.pool import IGNORED_LABEL
from miwv_trainer.distributed.wrappers import get_inner_model
from miwv_trainer.scoring.head_check import find_chunking_obstacle
from miwv_trainer.scoring.logits import compute_nll, finish_logits
from miwv_trainer.scoring.root_forward import (
    ForwardInputs,
    has_fused_head,
    hook_head_input,
    keep_first_position,
    run_root_forward,
    takes_argument,
)

logger = logging.getLogger(__name__)
# Through TRL's fused head; through the head module, a chunk at a time; by the logits that the forward returns.
Head = Literal["fused", "chunked", "own"]


class Targets(NamedTuple):
    """
    What is to be predicted, int64 and `(targets,)` each.

    Args:
        rows: Row of each answer.
        predicting: Position that predicts it: the one before its own.
        answers: Token ids.
    """

    rows: torch.Tensor
    predicting: torch.Tensor
    answers: torch.Tensor

    @classmethod
    def from_arrays(cls, rows: np.ndarray, predicting: np.ndarray, answers: np.ndarray) -> "Targets":
        return cls(*(torch.as_tensor(array.astype(np.int64)) for array in (rows, predicting, answers)))

    def to(self, device: torch.device) -> "Targets":
        return Targets(*(part.to(device) for part in self))

    def split(self, size: int, device: torch.device) -> "Iterator[Targets]":
        """Parts of at most `size` targets, on a device."""
        parts = (part.to(device).split(size) for part in self)
        return (Targets(*chunk) for chunk in zip(*parts, strict=True))


def choose_head(model: nn.Module) -> Head:
    """
    How the losses of a model come from its hidden states: `"fused"` if TRL has given it such a head, `"chunked"` if one
    root forward of a few tokens shows that its logits are then its own, else `"own"`, with a warning.

    Args:
        model: A causal language model of transformers, in evaluation mode. Under ZeRO-3 all ranks call this.
    """
    if has_fused_head(model):
        return "fused"
    obstacle = find_chunking_obstacle(model)
    if obstacle is None:
        return "chunked"
    _warn_once(
        f"{type(get_inner_model(model)).__name__} is scored by the logits that its forward returns, because "
        f"{obstacle}. They take memory for a whole batch's response tokens at once, times the vocabulary; lower "
        "`tokens_per_batch` and `tokens_per_row` if that is too much."
    )
    return "own"


def compute_answer_losses(
    model: nn.Module, inputs: ForwardInputs, targets: Targets, logits_chunk: int, head: Head
) -> np.ndarray:
    """
    `(targets,)` float64 -log p of each answer, computed in float32, from one root forward.

    Args:
        inputs: What the forward takes.
        logits_chunk: Positions whose logits exist at once if the head is `"chunked"`; those in float32 at once if it
            is the model's `"own"`. A fused head has tiles of its own size.
        head: From [`choose_head`].
    """
    targets = targets.to(inputs["input_ids"].device)
    if head == "fused":
        losses = _run_fused_head(model, inputs, targets)
    elif head == "chunked":
        losses = _run_chunked_head(model, inputs, targets, logits_chunk)
    else:
        losses = _run_own_head(model, inputs, targets, logits_chunk)
    return losses.double().cpu().numpy()


def _run_fused_head(model: nn.Module, inputs: ForwardInputs, targets: Targets) -> torch.Tensor:
    """From the log-probabilities that TRL's fused head gives for labels."""
    rows, predicting, answers = targets
    labels = torch.full_like(inputs["input_ids"], IGNORED_LABEL)
    labels[rows, predicting + 1] = answers
    log_probs = run_root_forward(model, inputs, labels=labels, fused_lm_head=True).log_probs
    return -log_probs[rows, predicting]


def _run_chunked_head(model: nn.Module, inputs: ForwardInputs, targets: Targets, logits_chunk: int) -> torch.Tensor:
    """From what the head makes of the hidden states that predict an answer, a chunk at a time."""
    config = get_inner_model(model).config.get_text_config()
    losses: list[torch.Tensor] = []

    def score(module: nn.Module, args: tuple[torch.Tensor, ...]) -> torch.Tensor:
        (hidden,) = args
        for rows, predicting, answers in targets.split(logits_chunk, hidden.device):
            # `forward` runs no hooks: neither this one again, nor ZeRO-3's, which would free the weight after a chunk.
            logits = finish_logits(module.forward(hidden[rows, predicting]), config)
            losses.append(compute_nll(logits, answers))
        return keep_first_position(hidden)

    # Under native AMP accelerate copies the logits that a forward returns to float32. Here they are one position's.
    with hook_head_input(model, score):
        run_root_forward(model, inputs)
    return torch.cat(losses)


def _run_own_head(model: nn.Module, inputs: ForwardInputs, targets: Targets, logits_chunk: int) -> torch.Tensor:
    """From the forward's own logits, kept if it can at the positions that predict an answer in any row."""
    # `logits_to_keep` takes one set of positions for all rows of a batch.
    kept, position = targets.predicting.unique(return_inverse=True)
    if takes_argument(model, "logits_to_keep"):
        logits = run_root_forward(model, inputs, logits_to_keep=kept).logits
    else:
        logits = run_root_forward(model, inputs).logits[:, kept]
    targets = targets._replace(predicting=position)
    losses = [
        compute_nll(logits[rows, positions].float(), answers)
        for rows, positions, answers in targets.split(logits_chunk, logits.device)
    ]
    return torch.cat(losses)


@functools.cache
def _warn_once(message: str) -> None:
    """Every round chooses anew; one warning is enough."""
    logger.warning(message)
