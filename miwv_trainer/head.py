"""From the hidden states of one root forward to the negative log-likelihood of each response token.

Logits are made only where a response token is predicted, and turned into float32 a few positions at a time. A model
that TRL has given a fused head is scored through it, as it is trained: under ZeRO-3 a forward that takes another way
through the head leaves its weight partitioned where the next training step expects it whole.
"""

import inspect
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import is_peft_available

from miwv_trainer.pool import IGNORED_LABEL

PADDING_ID = 0  # any id: padding is masked


def answer_losses(
    model: nn.Module,
    inputs: dict[str, torch.Tensor],
    rows: np.ndarray,
    predicting: np.ndarray,
    answers: np.ndarray,
    logits_chunk: int,
) -> np.ndarray:
    """`(targets,)` -log p of each answer, in the row and at the position that predicts it, from one root forward."""
    if _has_fused_head(model):
        return _through_fused_head(model, inputs, rows, predicting, answers.astype(np.int64))
    kept, positions = np.unique(predicting, return_inverse=True)
    logits = _logits(model, inputs, torch.as_tensor(kept, device=inputs["input_ids"].device))
    return _negative_log_likelihood(logits, rows, positions, answers.astype(np.int64), logits_chunk)


def _through_fused_head(
    model: nn.Module, inputs: dict[str, torch.Tensor], rows: np.ndarray, predicting: np.ndarray, answers: np.ndarray
) -> np.ndarray:
    """`(targets,)` -log p of each answer, from the log-probabilities that TRL's fused head gives for labels."""
    labels = torch.full_like(inputs["input_ids"], IGNORED_LABEL)
    device = labels.device
    row_index, position_index = torch.as_tensor(rows, device=device), torch.as_tensor(predicting, device=device)
    labels[row_index, position_index + 1] = torch.as_tensor(answers, device=device)
    log_probs = model(**inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs
    return -log_probs[row_index, position_index].double().cpu().numpy()


def forward_one_position(model: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    """A root forward like those that score, with the head on one position only."""
    if _has_fused_head(model):
        labels = torch.full_like(inputs["input_ids"], IGNORED_LABEL)
        labels[0, 1:2] = PADDING_ID
        model(**inputs, labels=labels, use_cache=False, fused_lm_head=True)
    else:
        _logits(model, inputs, torch.zeros(1, dtype=torch.long, device=inputs["input_ids"].device))


def _logits(model: nn.Module, inputs: dict[str, torch.Tensor], kept: torch.Tensor) -> torch.Tensor:
    """`(rows, kept, vocabulary)` logits at the kept positions."""
    if "logits_to_keep" in inspect.signature(inner_model(model).forward).parameters:
        return model(**inputs, use_cache=False, logits_to_keep=kept).logits
    return model(**inputs, use_cache=False).logits[:, kept]


def _has_fused_head(model: nn.Module) -> bool:
    """Whether TRL's `add_fused_lm_head` has given the model a forward that takes `fused_lm_head`."""
    # TRL's forward shows the original's signature to `generate`, so look at the function itself.
    return "fused_lm_head" in inspect.signature(inner_model(model).forward, follow_wrapped=False).parameters


def _negative_log_likelihood(
    logits: torch.Tensor, rows: np.ndarray, positions: np.ndarray, answers: np.ndarray, chunk: int
) -> np.ndarray:
    """`(targets,)` -log p of each answer, in float32, `chunk` vocabulary rows at a time."""
    row_index, position_index, answer = (
        torch.as_tensor(array, device=logits.device) for array in (rows, positions, answers)
    )
    pieces = [
        F.cross_entropy(logits[r, p].float(), a, reduction="none")
        for r, p, a in zip(row_index.split(chunk), position_index.split(chunk), answer.split(chunk), strict=True)
    ]
    return torch.cat(pieces).double().cpu().numpy()


def inner_model(model: Any) -> Any:
    """The transformers model inside PEFT's wrapper, which hands its arguments through."""
    return model.get_base_model() if _is_peft(model) else model


def is_prompt_tuned(model: Any) -> bool:
    """Whether PEFT puts virtual tokens before the input. (Prefix tuning's are keys and values, which shift nothing.)"""
    if not _is_peft(model):
        return False
    config = model.active_peft_config
    return config.is_prompt_learning and config.peft_type != "PREFIX_TUNING"


def _is_peft(model: nn.Module) -> bool:
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)
