"""
What a token in a row of trees attends to: its own branch, and the trunk of its tree.

Four ways give the same losses. On a CUDA device in half precision, a layer is one call of FlashAttention's kernel,
without a mask. On a CPU, a model with torch's scaled dot product attention calls it once for each trunk and each group
of branches, so that no masked pair costs anything, however long the row. With flex attention, a `BlockMask` says which
blocks to skip. All others (eager attention; sdpa on a GPU in float32, where many small calls cost more than masked
pairs) get a mask of `length * length` for each row.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from miwv_trainer.choices import Attention, AttentionChoice
from miwv_trainer.compat import computes_registered_attention
from miwv_trainer.distributed.wrappers import get_attention_implementation, get_inner_model
from miwv_trainer.scoring.context import get_text_config, read_size
from miwv_trainer.scoring.root_forward import PADDING_ID, ForwardInputs, pad
from miwv_trainer.scoring.tree_masks import RowSegments, make_block_mask, make_mask, restrict_window
from miwv_trainer.scoring.trees import TreeRow
from miwv_trainer.scoring.varlen import VARLEN, find_unsupported, find_varlen_obstacle, use_sequences

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

SEGMENTS = "miwv_segments"
# The ways that change the model's attention function, and the names that transformers knows the functions by.
FUNCTIONS: dict[Attention, str] = {"segments": SEGMENTS, "varlen": VARLEN}
# Kinds of layers, as configurations of transformers name them.
FULL, SLIDING = "full_attention", "sliding_attention"
# What families call the tokens that a local layer sees: Mistral; GPT-Neo; RecurrentGemma; ModernBERT's decoder.
WINDOW_NAMES = ("sliding_window", "window_size", "attention_window_size", "local_attention", "attention_window")
# What the forward in progress attends to. It does not travel as an argument of the forward, because not every family
# hands further arguments down to its attention.
_SEGMENTS: ContextVar[RowSegments | None] = ContextVar("segments", default=None)


def find_tree_obstacle(
    model: nn.Module, context: int, asked: AttentionChoice = "auto", device: torch.device | None = None
) -> str | None:
    """
    Why a model cannot take rows of trees, as far as its configuration tells; None if it may.

    Args:
        context: Longest sequence, in tokens. A window of at least that length hides nothing.
        asked: The way in which its layers are to attend.
        device: Where it will be forwarded; by default where it is.
    """
    inner = get_inner_model(model)
    config = inner.config.get_text_config()
    obstacle = find_attention_obstacle(model, asked, device)
    if obstacle is not None:
        return obstacle
    kinds = set(getattr(config, "layer_types", None) or [FULL]) - {FULL}
    window = find_window(config)
    # transformers hands only a window of this name to the attention function of a layer, and makes masks by it.
    if window is not None and (context <= window or read_size(config, "sliding_window") is not None):
        kinds -= {SLIDING}
    elif window is not None:
        return f"its attention slides over a window of {window} tokens, less than the context of {context}"
    # Recurrent layers ignore such a mask, so that the state of one branch leaks into the next without an error
    # (transformers#46851, #46093).
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}"
    if "position_ids" not in inspect.signature(inner.forward).parameters:
        return "its forward takes no `position_ids`"
    return None


def find_window(config: PretrainedConfig) -> int | None:
    """The window in tokens of a model's local attention; None if it has none."""
    # GPT-Neo has a window in its configuration even where no layer is local.
    if getattr(config, "attention_types", None) is not None and "local" not in str(config.attention_types):
        return None
    return read_size(config, *WINDOW_NAMES)


def find_attention_obstacle(model: nn.Module, asked: AttentionChoice, device: torch.device | None = None) -> str | None:
    """Why the layers of a model cannot attend as asked; with `"auto"`, why in none of the four ways."""
    implementation = get_attention_implementation(model)
    takes_masks = implementation in ("sdpa", "eager")
    if takes_masks and asked in ("auto", "mask") or implementation == "flex_attention" and asked in ("auto", "blocks"):
        return None
    # FlashAttention takes two-dimensional masks only (Dao-AILab/flash-attention#1857).
    reason = f"its attention is {implementation!r}, which takes no {'block mask' if asked == 'blocks' else 'mask'} of "
    reason += "its own for each row"
    if asked in ("blocks", "mask") or asked == "auto" and not _is_flash(implementation):
        return reason
    if not _calls_registered(get_inner_model(model)):
        return "its layers call an attention function of their own"
    unsupported = find_unsupported(get_inner_model(model)) if asked == "segments" else None
    if unsupported is not None:
        return f"segments call torch's scaled dot product attention, which computes no {unsupported}"
    varlen = find_varlen_obstacle(model, device) if asked != "segments" else None
    if varlen is None or asked == "varlen":
        return varlen
    return f"{reason}, and variable-length attention cannot take its place: {varlen}"


def _calls_registered(model: PreTrainedModel) -> bool:
    """Whether the layers call what `AttentionInterface` has under the name in the configuration, not their own."""
    return model.is_backend_compatible() and computes_registered_attention(model.config.model_type)


def _is_flash(implementation: str | None) -> bool:
    """Whether this is FlashAttention, or a kernel from the hub, whose names are those of repositories."""
    return implementation is not None and ("flash" in implementation or "/" in implementation)


def choose_tree_attention(model: nn.Module, asked: AttentionChoice = "auto") -> Attention:
    """
    Which of the four ways a model takes for which [`find_tree_obstacle`] finds nothing.

    What is asked for may hold no longer while the model computes in float32, near the threshold of the selection.
    """
    if asked in ("segments", "blocks", "mask"):
        return asked
    inner, implementation = get_inner_model(model), get_attention_implementation(model)
    calls_ours = _calls_registered(inner)
    is_sdpa, is_flash = implementation == "sdpa", _is_flash(implementation)
    if calls_ours and (asked == "varlen" or is_sdpa or is_flash) and find_varlen_obstacle(model) is None:
        return "varlen"
    if implementation == "flex_attention":
        return "blocks"
    on_cpu = next(model.parameters()).device.type == "cpu"
    return "segments" if calls_ours and (is_flash or is_sdpa and on_cpu) else "mask"


@contextmanager
def use_tree_attention(model: nn.Module, attention: Attention) -> Iterator[None]:
    """Inside, the model's attention takes what [`prepare_tree_inputs`] makes for it. Masks leave it as it is."""
    if attention not in FUNCTIONS:
        yield
        return
    inner = get_inner_model(model)
    # The whole model comes first in this list: setting it also sets its parts, which may have had other functions.
    before = [(m, get_attention_implementation(m)) for m in inner.modules() if isinstance(m, PreTrainedModel)]
    inner.set_attn_implementation(FUNCTIONS[attention])
    try:
        yield
    finally:
        for part, implementation in before:
            part.set_attn_implementation(implementation)


@contextmanager
def prepare_tree_inputs(model: nn.Module, rows: list[TreeRow], attention: Attention) -> Iterator[ForwardInputs]:
    """
    The inputs of a forward, which must run inside the block.

    Args:
        rows: One row; several only if `attention` is `"mask"`.
    """
    device = next(model.parameters()).device
    inputs: ForwardInputs = {
        "input_ids": pad([row.ids for row in rows], PADDING_ID, device),
        "position_ids": pad([row.positions for row in rows], 0, device),
    }
    if attention not in FUNCTIONS:
        yield {**inputs, "attention_mask": _make_masks(model, rows, attention, device)}
        return
    (row,) = rows
    if attention == "varlen":
        with use_sequences(row, device):
            yield inputs
        return
    token = _SEGMENTS.set(RowSegments(row, device))
    try:
        yield inputs
    finally:
        _SEGMENTS.reset(token)


def _make_masks(
    model: nn.Module, rows: list[TreeRow], attention: Attention, device: torch.device
) -> "torch.Tensor | BlockMask | dict[str, torch.Tensor | BlockMask]":
    """One mask for all layers, or one for each kind of layer where transformers makes one for each kind."""
    config = get_text_config(get_inner_model(model))
    window = restrict_window(read_size(config, "sliding_window"), rows)
    kinds = getattr(config, "layer_types", None)
    if window is None:
        return _make_mask(model, rows, attention, device, None)
    if kinds is None:
        return _make_mask(model, rows, attention, device, window)
    return {
        kind: _make_mask(model, rows, attention, device, window if kind == SLIDING else None)
        for kind in sorted({FULL, *kinds})
    }


def count_masks(model: nn.Module) -> int:
    """How many masks the layers of a model share: two if some layers have a window and some have none."""
    kinds = getattr(get_text_config(get_inner_model(model)), "layer_types", None) or [FULL]
    return len({kind == SLIDING for kind in kinds})


def _make_mask(
    model: nn.Module, rows: list[TreeRow], attention: Attention, device: torch.device, window: int | None
) -> "torch.Tensor | BlockMask":
    """A block mask; or `(rows, 1, length, length)`, for eager attention as what is added to the weights."""
    if attention == "blocks":
        return make_block_mask(rows[0], device, window)
    seen = make_mask(rows, device, window)
    if get_attention_implementation(model) == "sdpa":
        return seen
    # The eager attention of transformers adds its mask to the weights, in the model's dtype.
    dtype = next(model.parameters()).dtype
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)


def _attend_by_segment(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: `(1, heads, length, dim)` to `(1, length, heads, dim)`."""
    segments = _SEGMENTS.get()
    if segments is None:  # The dummy forward of a rank that ran out of rows while others forward trees.
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    outputs = []
    for segment in segments.find(kwargs.get("sliding_window")):
        span = segment.span
        keys, values = _take(key, span.keys), _take(value, span.keys)
        output, _ = sdpa_attention_forward(module, query[:, :, span.queries], keys, values, segment.mask, **kwargs)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


def _take(states: torch.Tensor, parts: tuple[slice, ...]) -> torch.Tensor:
    """Parts of `(1, heads, length, dim)` one after the other; a view if there is only one."""
    taken = [states[:, :, part] for part in parts]
    return taken[0] if len(taken) == 1 else torch.cat(taken, dim=2)


AttentionInterface.register(SEGMENTS, _attend_by_segment)
