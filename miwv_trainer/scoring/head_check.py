"""Whether a head can be run by chunks: a root forward of four tokens, compared with the model's own logits."""

import torch
from torch import nn

from miwv_trainer.distributed.wrappers import get_inner_model
from miwv_trainer.foreign_errors import take_first_line
from miwv_trainer.scoring.logits import finish_logits
from miwv_trainer.scoring.root_forward import (
    PADDING_ID,
    ForwardInputs,
    hook_head_input,
    keep_first_position,
    run_root_forward,
)

# A model of random weights has logits near 0, where a cap of 30 changes nothing. So the head's output is replaced by
# logits over this range.
WIDEST_LOGIT = 256.0
# As a share of the largest logit. TF32 multiplies float32 with ten bits, bfloat16 holds eight.
TOLERANCE = {torch.float32: 1e-3}
TOLERANCE_LOW_PRECISION = 2e-2


def find_chunking_obstacle(model: nn.Module) -> str | None:
    """
    Why the head cannot be run by chunks, from one root forward of two rows of two tokens; None if it can.

    The head is run as for scoring, and its own output is replaced by logits over a wide range. What the forward makes
    of these shows everything that it does to logits, however narrow the range of the model's own.
    """
    ids = torch.full((2, 2), PADDING_ID, dtype=torch.long, device=next(model.parameters()).device)
    by_chunk: list[torch.Tensor] = []
    by_module: list[torch.Tensor] = []

    def run_by_chunk(module: nn.Module, args: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
        if len(args) != 1 or args[0].shape[:-1] != ids.shape:
            return None
        by_chunk.append(module.forward(args[0][0, :1]))
        return keep_first_position(args[0])

    def replace_output(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        by_module.append(output)
        return _make_wide_logits(output)

    head = get_inner_model(model).get_output_embeddings()
    if head is None:
        return "it names no output embeddings"
    handle = head.register_forward_hook(replace_output)
    try:
        with hook_head_input(model, run_by_chunk):
            own = _run_first_forward(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    finally:
        handle.remove()
    if len(by_chunk) != 1 or len(by_module) != 1:
        return "its output embeddings are not called once with the hidden states of all positions"
    if not _agree(by_chunk[0], by_module[0][0], by_module[0].dtype):
        return "its output embeddings give something else when they are called as a module"
    config = get_inner_model(model).config.get_text_config()
    if not _agree(finish_logits(_make_wide_logits(by_module[0]), config), own, by_module[0].dtype):
        return "its forward does something to the logits that its configuration does not tell in known words"
    return None


def _run_first_forward(model: nn.Module, inputs: ForwardInputs) -> torch.Tensor:
    """
    The logits of the first forward of a pass.

    Raises:
        ValueError: the model's forward does not take token ids alone, or returns no logits for them.
    """
    try:
        return run_root_forward(model, inputs).logits
    # Those that Python raises about arguments, parts and shapes. Running out of memory is a RuntimeError.
    except (TypeError, AttributeError, ValueError, LookupError, AssertionError) as error:
        name, reason = type(get_inner_model(model)).__name__, take_first_line(error)
        raise ValueError(
            f"{name} cannot be scored: a forward of `input_ids` and `attention_mask` alone fails "
            f"({type(error).__name__}: {reason}). Give a causal language model that takes these and returns logits."
        ) from error


def _make_wide_logits(output: torch.Tensor) -> torch.Tensor:
    """Logits in the shape and dtype of the head's output, evenly spaced over a wide range."""
    spaced = torch.linspace(-WIDEST_LOGIT, WIDEST_LOGIT, output.shape[-1], device=output.device)
    return spaced.to(output.dtype).repeat(*output.shape[:-1], 1)


def _agree(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether logits are equal up to rounding in a dtype. NaN equals NaN: the losses will show it."""
    if ours.shape != theirs.shape:
        return False
    ours, theirs = ours.float(), theirs.float().to(ours.device)
    slack = TOLERANCE.get(dtype, TOLERANCE_LOW_PRECISION) * float(theirs.nan_to_num().abs().max())
    return torch.allclose(ours, theirs, rtol=0, atol=slack, equal_nan=True)
