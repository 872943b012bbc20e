"""
What a token in a row of trees attends to: its own branch, and the trunk of its tree.

Three ways give the same losses. On a CPU, a model with torch's scaled dot product attention calls it once for each
trunk and each group of branches, so that no masked pair costs anything, however long the row. With flex attention, a
`BlockMask` says which blocks to skip. All others (eager attention; sdpa on a GPU, where many small calls cost more than
masked pairs) get a mask of `length * length` for each row.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from miwv_trainer.distributed.wrappers import get_attention_implementation, get_inner_model
from miwv_trainer.scoring.context import read_size
from miwv_trainer.scoring.root_forward import PADDING_ID, ForwardInputs, pad
from miwv_trainer.scoring.trees import TreeRow

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Attention = Literal["segments", "blocks", "mask"]
SEGMENTS = "miwv_segments"
# Branches of one tree share a call up to this many tokens: a call costs as much as some masked pairs.
TOKENS_PER_CALL = 256
# Tokens a side of a block of flex attention: what `create_block_mask` takes by default, whose kernels are tuned for it.
BLOCK_SIZE = 128
# What families call the tokens that a local layer sees: Mistral; GPT-Neo; RecurrentGemma; ModernBERT's decoder.
WINDOW_NAMES = ("sliding_window", "window_size", "attention_window_size", "local_attention", "attention_window")


@dataclass(frozen=True)
class Segment:
    """
    Tokens of a row whose attention is one call.

    Args:
        own: Their positions in the row.
        trunk: Positions of the trunk that they see; None for a trunk, which sees only itself.
        mask: `(1, 1, own, trunk + own)`, True where a token is seen; None if each token sees all earlier ones.
    """

    own: slice
    trunk: slice | None
    mask: torch.Tensor | None


# What the forward in progress attends to. It does not travel as an argument of the forward, because not every family
# hands further arguments down to its attention.
_SEGMENTS: ContextVar[list[Segment] | None] = ContextVar("segments", default=None)


def find_tree_obstacle(model: nn.Module, context: int) -> str | None:
    """
    Why a model cannot take rows of trees, as far as its configuration tells; None if it may.

    Args:
        context: Longest sequence, in tokens. A window of at least that length hides nothing.
    """
    inner = get_inner_model(model)
    config = inner.config.get_text_config()
    attention = get_attention_implementation(model)
    # FlashAttention takes two-dimensional masks only (Dao-AILab/flash-attention#1857).
    if attention not in ("sdpa", "eager", "flex_attention"):
        return f"its attention is {attention!r}, which takes no mask of its own for each row"
    # transformers takes a four-dimensional mask as it is, for layers with a window too: they would see everything.
    window = _find_window(config)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if window is not None and context <= window:
        kinds -= {"sliding_attention"}
    elif window is not None:
        return f"its attention slides over a window of {window} tokens, less than the context of {context}"
    # Recurrent layers ignore such a mask, so that the state of one branch leaks into the next without an error
    # (transformers#46851, #46093).
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}"
    if "position_ids" not in inspect.signature(inner.forward).parameters:
        return "its forward takes no `position_ids`"
    return None


def _find_window(config: PretrainedConfig) -> int | None:
    """The window in tokens of a model's local attention; None if it has none."""
    # GPT-Neo has a window in its configuration even where no layer is local.
    if getattr(config, "attention_types", None) is not None and "local" not in str(config.attention_types):
        return None
    return read_size(config, *WINDOW_NAMES)


def choose_tree_attention(model: nn.Module) -> Attention:
    """Which of the three ways a model takes for which [`find_tree_obstacle`] finds nothing."""
    inner = get_inner_model(model)
    implementation = get_attention_implementation(model)
    if implementation == "flex_attention":
        return "blocks"
    on_cpu = next(model.parameters()).device.type == "cpu"
    # A model that is not backend-compatible calls its own attention, whatever function its configuration names.
    return "segments" if implementation == "sdpa" and on_cpu and inner.is_backend_compatible() else "mask"


@contextmanager
def use_tree_attention(model: nn.Module, attention: Attention) -> Iterator[None]:
    """Inside, the model's attention takes what [`prepare_tree_inputs`] makes for it. Only `"segments"` changes it."""
    if attention != "segments":
        yield
        return
    inner = get_inner_model(model)
    # The whole model comes first in this list: setting it also sets its parts, which may have had other functions.
    before = [(m, get_attention_implementation(m)) for m in inner.modules() if isinstance(m, PreTrainedModel)]
    inner.set_attn_implementation(SEGMENTS)
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
    if attention == "mask":
        yield {**inputs, "attention_mask": _make_mask(model, rows, device)}
        return
    (row,) = rows
    if attention == "blocks":
        yield {**inputs, "attention_mask": _make_block_mask(row, device)}
        return
    token = _SEGMENTS.set(_make_segments(row, device))
    try:
        yield inputs
    finally:
        _SEGMENTS.reset(token)


def _make_mask(model: nn.Module, rows: list[TreeRow], device: torch.device) -> torch.Tensor:
    """`(rows, 1, length, length)`: True where a token is seen, or, for eager attention, what is added to weights."""
    # Padding is a tree of its own: no token sees it, and it sees itself, as a softmax over nothing is NaN.
    tree, branch = pad([row.tree for row in rows], -1, device), pad([row.branch for row in rows], 0, device)
    seen = _find_seen(tree[:, :, None], branch[:, :, None], tree[:, None], branch[:, None]).tril()[:, None]
    if get_attention_implementation(model) == "sdpa":
        return seen
    # The eager attention of transformers adds its mask to the weights, in the model's dtype.
    dtype = next(model.parameters()).dtype
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)


def _find_seen(
    tree: torch.Tensor, branch: torch.Tensor, seen_tree: torch.Tensor, seen_branch: torch.Tensor
) -> torch.Tensor:
    """Whether a token of one tree and branch sees an earlier one of another."""
    return (tree == seen_tree) & ((seen_branch == 0) | (branch == seen_branch))


def _make_block_mask(row: TreeRow, device: torch.device) -> "BlockMask":
    """
    The mask of one row, as flex attention takes it.

    The blocks follow from the row's spans. `create_block_mask` would evaluate every pair of tokens to find them.
    """
    from torch.nn.attention.flex_attention import BlockMask

    tree, branch = torch.as_tensor(row.tree, device=device), torch.as_tensor(row.branch, device=device)

    def sees(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & _find_seen(tree[query], branch[query], tree[key], branch[key])

    length = len(row.ids)
    blocks = -(-length // BLOCK_SIZE)
    has_pairs = np.zeros((blocks, blocks), dtype=bool)
    for own, trunk in _find_spans(row):
        queries = slice(own.start // BLOCK_SIZE, -(-own.stop // BLOCK_SIZE))
        for keys in (own, trunk or own):
            has_pairs[queries, keys.start // BLOCK_SIZE : -(-keys.stop // BLOCK_SIZE)] = True
    has_pairs = np.tril(has_pairs)
    counts = torch.as_tensor(has_pairs.sum(axis=1), dtype=torch.int32, device=device)
    indices = torch.as_tensor(np.argsort(~has_pairs, axis=1, kind="stable"), dtype=torch.int32, device=device)
    return BlockMask.from_kv_blocks(
        counts[None, None], indices[None, None], BLOCK_SIZE=BLOCK_SIZE, mask_mod=sees, seq_lengths=(length, length)
    )


def _find_spans(row: TreeRow) -> list[tuple[slice, slice | None]]:
    """Trunks, and groups of branches with the trunk that they see, in the order of the row."""
    spans: list[tuple[slice, slice | None]] = []
    is_edge = (np.diff(row.tree) != 0) | (np.diff(row.branch) != 0)
    edges = [0, *(np.flatnonzero(is_edge) + 1).tolist(), len(row.ids)]
    trunk: slice | None = None
    for start, end in pairwise(edges):
        if row.branch[start] == 0:
            trunk = slice(start, end)
            spans.append((trunk, None))
            continue
        group, seen = spans[-1]
        if seen is not None and end - group.start <= TOKENS_PER_CALL:
            spans[-1] = (slice(group.start, end), trunk)
        else:
            spans.append((slice(start, end), trunk))
    return spans


def _make_segments(row: TreeRow, device: torch.device) -> list[Segment]:
    branch = torch.as_tensor(row.branch, device=device)
    return [Segment(own, trunk, _make_segment_mask(own, trunk, branch)) for own, trunk in _find_spans(row)]


def _make_segment_mask(own: slice, trunk: slice | None, branch: torch.Tensor) -> torch.Tensor | None:
    if trunk is None:
        return None
    same_branch = (branch[own, None] == branch[None, own]).tril()
    whole_trunk = same_branch.new_ones(len(same_branch), trunk.stop - trunk.start)
    return torch.cat([whole_trunk, same_branch], dim=1)[None, None]


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
    for segment in segments:
        keys, values = key[:, :, segment.own], value[:, :, segment.own]
        if segment.trunk is not None:
            keys = torch.cat([key[:, :, segment.trunk], keys], dim=2)
            values = torch.cat([value[:, :, segment.trunk], values], dim=2)
        output, _ = sdpa_attention_forward(module, query[:, :, segment.own], keys, values, segment.mask, **kwargs)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(SEGMENTS, _attend_by_segment)
