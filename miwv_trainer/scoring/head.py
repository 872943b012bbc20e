"""From the hidden states of one root forward to the negative log-likelihood of each response token.

The vocabulary is wide, so its logits never exist at more than `logits_chunk` positions. A hook before the model's head
takes the hidden states that predict a response token through the head, a chunk at a time, in float32 from there on,
and lets one position go on, so that the root forward is whole (under ZeRO-3 and FSDP no other one gathers parameters).
What some families do to the head's output (they scale it, cap it softly) is read from the configuration, and checked
against the model's own forward before the first row of a sweep. Where the two differ the model makes its own logits.

A model that TRL has given a fused head is scored through it, as it is trained: under ZeRO-3 a forward that takes
another way through the head leaves its weight partitioned where the next training step expects it whole.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig

from miwv_trainer.data.pool import IGNORED_LABEL
from miwv_trainer.distributed.wrappers import inner_model

logger = logging.getLogger(__name__)
# Through TRL's fused head; through the head module, a chunk at a time; by the logits that the forward returns.
Head = Literal["fused", "chunked", "own"]
PADDING_ID = 0  # any id: padding is masked
# The check replaces the head's output by logits over this range, so that a scale shows, and a cap that is not small.
WIDEST_LOGIT = 256.0
# As a share of the largest logit. TF32 multiplies float32 with ten bits, bfloat16 holds eight.
TOLERANCE = {torch.float32: 1e-3}
TOLERANCE_LOW_PRECISION = 2e-2


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
        parts = (part.to(device).split(size) for part in self)
        return (Targets(*chunk) for chunk in zip(*parts, strict=True))


def choose_head(model: nn.Module) -> Head:
    """
    How the losses of a model come from its hidden states: `"fused"` where TRL has given it such a head, `"chunked"`
    where one root forward of a few tokens shows that its logits are then its own, else `"own"`, with a warning.

    Args:
        model: A causal language model of transformers, in evaluation mode. Under ZeRO-3 all ranks call this.
    """
    if _has_fused_head(model):
        return "fused"
    obstacle = _find_chunking_obstacle(model)
    if obstacle is None:
        return "chunked"
    _warn_once(
        f"{type(inner_model(model)).__name__} is scored by the logits that its forward returns, because {obstacle}. "
        "They take memory for a whole batch's response tokens at once, times the vocabulary; lower `tokens_per_batch` "
        "and `tokens_per_row` if that is too much."
    )
    return "own"


def compute_answer_losses(
    model: nn.Module,
    inputs: dict[str, torch.Tensor],
    targets: Targets,
    logits_chunk: int,
    head: Head,
) -> np.ndarray:
    """
    `(targets,)` float64 -log p of each answer, computed in float32, from one root forward.

    Args:
        inputs: `(rows, length)` ids, and what else the forward takes.
        logits_chunk: Positions whose logits exist at once, where the head is `"chunked"`; those in float32 at once,
            where it is the model's `"own"`. A fused head has tiles of its own size.
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


def forward_one_position(model: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    """A root forward like those that score, with the head on one position only."""
    if _has_fused_head(model):
        labels = torch.full_like(inputs["input_ids"], IGNORED_LABEL)
        labels[0, 1:2] = PADDING_ID
        _forward(model, inputs, labels=labels, fused_lm_head=True)
        return
    options = {"logits_to_keep": 1} if _takes(model, "logits_to_keep") else {}
    with _hook_head_input(model, lambda module, args: _keep_first_position(args[0]) if args[0].ndim == 3 else None):
        _forward(model, inputs, **options)


def _run_fused_head(model: nn.Module, inputs: dict[str, torch.Tensor], targets: Targets) -> torch.Tensor:
    """From the log-probabilities that TRL's fused head gives for labels."""
    rows, predicting, answers = targets
    labels = torch.full_like(inputs["input_ids"], IGNORED_LABEL)
    labels[rows, predicting + 1] = answers
    log_probs = _forward(model, inputs, labels=labels, fused_lm_head=True).log_probs
    return -log_probs[rows, predicting]


def _run_chunked_head(
    model: nn.Module, inputs: dict[str, torch.Tensor], targets: Targets, logits_chunk: int
) -> torch.Tensor:
    """From what the head makes of the hidden states that predict an answer, a chunk at a time."""
    config = inner_model(model).config.get_text_config()
    losses: list[torch.Tensor] = []

    def score(module: nn.Module, args: tuple[torch.Tensor, ...]) -> torch.Tensor:
        (hidden,) = args
        for rows, predicting, answers in targets.split(logits_chunk, hidden.device):
            # `forward` runs no hooks: not this one again, nor those that under ZeRO-3 free the weight after each chunk.
            logits = _finish_logits(module.forward(hidden[rows, predicting]), config)
            losses.append(_compute_nll(logits, answers))
        return _keep_first_position(hidden)

    with _hook_head_input(model, score):
        _forward(model, inputs)
    return torch.cat(losses)


def _run_own_head(
    model: nn.Module, inputs: dict[str, torch.Tensor], targets: Targets, logits_chunk: int
) -> torch.Tensor:
    """From the forward's own logits, kept where it can at the positions that predict an answer in any row."""
    kept, position = targets.predicting.unique(return_inverse=True)
    if _takes(model, "logits_to_keep"):
        logits = _forward(model, inputs, logits_to_keep=kept).logits
    else:
        logits = _forward(model, inputs).logits[:, kept]
    targets = targets._replace(predicting=position)
    losses = [
        _compute_nll(logits[rows, positions].float(), answers)
        for rows, positions, answers in targets.split(logits_chunk, logits.device)
    ]
    return torch.cat(losses)


def _forward(model: nn.Module, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
    """One forward of the root, without a cache and without the balancing loss of a mixture of experts."""
    if _takes(model, "output_router_logits"):
        options["output_router_logits"] = False  # the loss made of them takes no mask of a row of trees
    return model(**inputs, use_cache=False, **options)


def _takes(model: nn.Module, option: str) -> bool:
    return option in inspect.signature(inner_model(model).forward).parameters


@contextmanager
def _hook_head_input(model: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """Inside, the head gets what the hook makes of its input; DeepSpeed's and FSDP's own hooks have gathered it."""
    head = inner_model(model).get_output_embeddings()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _keep_first_position(hidden: torch.Tensor) -> torch.Tensor:
    """`(1, 1, width)` of `(rows, length, width)`: the root's own logits are then one row of vocabulary."""
    return hidden[:1, :1]


def _finish_logits(logits: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """
    Float32 logits as the model's forward returns them: scaled, then capped by `cap * tanh(logits / cap)`.

    `logits` fresh from the head are changed in place where they are float32 already.
    """
    logits = logits.float()
    scale = _read_logit_scale(config)
    if scale != 1.0:
        logits.mul_(scale)
    cap = _read_first_number(config, "final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    if cap is not None:  # Gemma 2 to 4; RecurrentGemma; xLSTM
        logits.div_(cap).tanh_().mul_(cap)
    return logits


def _read_logit_scale(config: PretrainedConfig) -> float:
    """What the head's output is multiplied by."""
    scale = _read_first_number(config, "logit_scale", "output_multiplier", "lm_head_multiplier")
    if scale is not None:  # Cohere; Muse Glimmer; Falcon-H1
        return scale
    scaling = _read_first_number(config, "logits_scaling")
    if scaling is None or config.model_type == "minicpm3":  # divides the hidden states, before the head
        return 1.0
    return scaling if config.model_type == "hyperclovax" else 1 / scaling  # Granite


def _read_first_number(config: PretrainedConfig, *names: str) -> float | None:
    """The first of these entries that a configuration has. (MPT's `logit_scale` may be a word, which it ignores.)"""
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if isinstance(value, int | float)), None)


def _compute_nll(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """`(targets,)` -log p of each answer under `(targets, vocabulary)` float32 logits, which are used up."""
    # In place: `cross_entropy` makes a second matrix of this size, which costs more than the arithmetic.
    given = logits.gather(-1, answers[:, None])[:, 0]
    largest = logits.amax(dim=-1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(dim=-1)
    return total.log() + (largest[:, 0] - given)


def _find_chunking_obstacle(model: nn.Module) -> str | None:
    """
    Why the head cannot be run by chunks, from one root forward of two rows of two tokens; None where it can.

    The head is run as for scoring, and its own output replaced by logits over a wide range: what the forward makes of
    these shows everything that it does to logits, however narrow the range of the model's own.
    """
    ids = torch.full((2, 2), PADDING_ID, dtype=torch.long, device=next(model.parameters()).device)
    by_chunk: list[torch.Tensor] = []
    by_module: list[torch.Tensor] = []

    def before(module: nn.Module, args: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
        if len(args) != 1 or args[0].shape[:-1] != ids.shape:
            return None
        by_chunk.append(module.forward(args[0][0, :1]))
        return _keep_first_position(args[0])

    def after(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        by_module.append(output)
        return _make_wide_logits(output)

    head = inner_model(model).get_output_embeddings()
    if head is None:
        return "it names no output embeddings"
    handle = head.register_forward_hook(after)
    try:
        with _hook_head_input(model, before):
            own = _forward(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
    finally:
        handle.remove()
    if len(by_chunk) != 1 or len(by_module) != 1:
        return "its output embeddings are not called once with the hidden states of all positions"
    if not _agree(by_chunk[0], by_module[0][0], by_module[0].dtype):
        return "its output embeddings give something else when they are called as a module"
    config = inner_model(model).config.get_text_config()
    if not _agree(_finish_logits(_make_wide_logits(by_module[0]), config), own, by_module[0].dtype):
        return "its forward does something to the logits that its configuration does not tell in known words"
    return None


def _make_wide_logits(output: torch.Tensor) -> torch.Tensor:
    """Logits in the shape and dtype of the head's output, evenly spaced over a wide range."""
    spaced = torch.linspace(-WIDEST_LOGIT, WIDEST_LOGIT, output.shape[-1], device=output.device)
    return spaced.to(output.dtype).repeat(*output.shape[:-1], 1)


def _agree(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether logits are the same but for rounding in a dtype. Not-a-number agrees with itself: losses will show it."""
    if ours.shape != theirs.shape:
        return False
    ours, theirs = ours.float(), theirs.float().to(ours.device)
    slack = TOLERANCE.get(dtype, TOLERANCE_LOW_PRECISION) * float(theirs.nan_to_num().abs().max())
    return torch.allclose(ours, theirs, rtol=0, atol=slack, equal_nan=True)


@functools.cache
def _warn_once(message: str) -> None:
    """Every round chooses anew; one warning is enough."""
    logger.warning(message)


def _has_fused_head(model: nn.Module) -> bool:
    """Whether TRL's `add_fused_lm_head` has given the model a forward that takes `fused_lm_head`."""
    # TRL's forward shows the original's signature to `generate`, so look at the function itself.
    return "fused_lm_head" in inspect.signature(inner_model(model).forward, follow_wrapped=False).parameters
