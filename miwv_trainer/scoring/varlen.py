"""
Rows of trees as sequences of unequal query and key lengths, which FlashAttention computes in one call a layer.

The queries of a sequence are the tokens of a trunk, or of one branch. Its keys and values are the trunk's, followed by
the branch's own. Causal attention aligned at the bottom right then shows each token what it sees in a tree, without a
mask: the last query sees the last key, the query before it one key less. The price is a copy of the keys and values,
in which a trunk stands once for each of its branches.

torch has the kernel for CUDA devices only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from miwv_trainer.compat import FIRST_TORCH_WITH_VARLEN, load_varlen_attention
from miwv_trainer.distributed.wrappers import enters_autocast, get_inner_model
from miwv_trainer.scoring.context import get_text_config
from miwv_trainer.scoring.float32 import is_in_float32
from miwv_trainer.scoring.tree_masks import find_sequences, restrict_window
from miwv_trainer.scoring.trees import TreeRow

VARLEN = "miwv_varlen"
# FlashAttention's kernels take heads of up to this width, and of a multiple of the second number.
WIDEST_HEAD, HEAD_STEP = 256, 8
# What attention layers call the width: most; latent attention (DeepSeek); BERT and its relatives.
HEAD_WIDTH_NAMES = ("head_dim", "qk_head_dim", "attention_head_size")
# FlashAttention needs Ampere or later.
LEAST_CAPABILITY = (8, 0)
# What the layers of some families hand to their attention, and the kernel has no argument for.
UNSUPPORTED = {"softcap": "soft-capped scores", "s_aux": "attention sinks", "position_bias": "position biases"}


class VarlenKernel(NamedTuple):
    """
    A function of variable-length attention.

    Args:
        load: Returns a function with the arguments of `torch.nn.attention.varlen.varlen_attn`; None if there is none.
        dtypes: What it computes in.
    """

    load: Callable[[], Callable[..., torch.Tensor] | None]
    dtypes: tuple[torch.dtype, ...]


# By type of device. The tests put a function for the CPU here, which computes the same from the same arguments.
KERNELS = {"cuda": VarlenKernel(load_varlen_attention, (torch.bfloat16, torch.float16))}


@dataclass(frozen=True)
class Sequences:
    """
    A row's sequences for layers of one window, as the kernel takes them.

    Args:
        keys: `(keys,)` positions in the row of all keys, one sequence after the other; None if they are the row itself.
        query_ends: `(sequences + 1,)` int32, where the queries of each sequence begin and end.
        key_ends: `(sequences + 1,)` int32, where its keys do.
        longest_query: Most queries of a sequence.
        longest_key: Most keys of a sequence.
        window: How far a token sees to the left and to the right; -1 to the left for no limit.
    """

    keys: torch.Tensor | None
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    longest_query: int
    longest_key: int
    window: tuple[int, int]


class RowSequences:
    """The sequences of one row for layers of every window, made when the first layer with that window asks."""

    def __init__(self, row: TreeRow, device: torch.device) -> None:
        self._row, self._device = row, device
        self._by_window: dict[int | None, Sequences] = {}

    def find(self, window: int | None) -> Sequences:
        """The sequences for a layer that sees `window` tokens; all of its sequence if None."""
        window = restrict_window(window, [self._row])
        if window not in self._by_window:
            self._by_window[window] = make_sequences(self._row, self._device, window)
        return self._by_window[window]


def make_sequences(row: TreeRow, device: torch.device, window: int | None = None) -> Sequences:
    """The sequences of a row. With a window, keys that no query of a sequence sees are left out."""
    parts: list[np.ndarray] = []
    queries, keys = [0], [0]
    for own, trunk in find_sequences(row):
        if trunk is not None:
            # The first token of a branch sees the last W - 1 tokens of its trunk, and the others see less of it.
            start = trunk.start if window is None else max(trunk.start, trunk.stop - window + 1)
            parts.append(np.arange(start, trunk.stop))
        parts.append(np.arange(own.start, own.stop))
        queries.append(own.stop)
        keys.append(sum(map(len, parts[-2:])) if trunk is not None else len(parts[-1]))
    index, key_ends = np.concatenate(parts), np.cumsum(keys)
    return Sequences(
        keys=torch.as_tensor(index, device=device) if len(index) > len(row.ids) else None,
        query_ends=torch.as_tensor(np.asarray(queries), dtype=torch.int32, device=device),
        key_ends=torch.as_tensor(key_ends, dtype=torch.int32, device=device),
        longest_query=int(np.diff(queries).max()),
        longest_key=max(keys),
        window=(-1 if window is None else window - 1, 0),
    )


def find_varlen_obstacle(model: nn.Module, device: torch.device | None = None) -> str | None:
    """
    Why variable-length attention cannot run a model, as far as its configuration tells; None if it may.

    Args:
        device: Where the model will be forwarded; by default where it is.
    """
    parameter, inner = next(model.parameters()), get_inner_model(model)
    device = device or parameter.device
    kernel = KERNELS.get(device.type)
    if kernel is None:
        return f"it runs on CUDA devices only, and the model is on a device of the type {device.type!r}"
    if kernel.load() is None:
        return f"it comes with torch {FIRST_TORCH_WITH_VARLEN}, and an earlier version is installed"
    obstacle = _find_gpu_obstacle(device) if device.type == "cuda" else None
    if obstacle is not None:
        return obstacle
    is_autocast = enters_autocast(model) or torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if is_autocast and not is_in_float32() else parameter.dtype
    if dtype not in kernel.dtypes:
        return f"it computes in {' or '.join(map(str, kernel.dtypes))}, and the model's weights are {dtype}"
    width = find_head_width(inner)
    if width > WIDEST_HEAD:
        return f"it takes attention heads of at most {WIDEST_HEAD} numbers, and the model's have {width}"
    unsupported = find_unsupported(inner)
    return None if unsupported is None else f"it computes no {unsupported}"


def find_unsupported(model: nn.Module) -> str | None:
    """What the attention of a model has that neither this kernel nor torch's scaled dot product attention computes."""
    if getattr(get_text_config(model), "attn_logit_softcapping", None) is not None:
        return UNSUPPORTED["softcap"]
    if any(name.endswith(".sinks") for name, _ in model.named_parameters()):
        return UNSUPPORTED["s_aux"]
    return None


def _find_gpu_obstacle(device: torch.device) -> str | None:
    if torch.version.hip is not None:
        return "nobody has tried it on ROCm"
    if not torch.backends.cuda.is_flash_attention_available():
        return "this torch is built without FlashAttention"
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return "it needs a GPU of the compute capability 8.0 (Ampere) or higher"
    return None


def find_head_width(model: nn.Module) -> int:
    """
    Most numbers of a query or key of one attention head; 0 if no layer says.

    Layers say it by these attributes. The configuration of a family whose layers differ (Gemma 4) refuses the question.
    """
    widths = (vars(module).get(name) for module in model.modules() for name in HEAD_WIDTH_NAMES)
    return max((width for width in widths if isinstance(width, int)), default=0)


_SEQUENCES: ContextVar[RowSequences | None] = ContextVar("sequences", default=None)


@contextmanager
def use_sequences(row: TreeRow, device: torch.device) -> Iterator[None]:
    """Inside, layers that call the registered function attend within the sequences of this row."""
    token = _SEQUENCES.set(RowSequences(row, device))
    try:
        yield
    finally:
        _SEQUENCES.reset(token)


def _attend_in_sequences(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: `(1, heads, length, dim)` to `(1, length, heads, dim)`."""
    unsupported = [text for name, text in UNSUPPORTED.items() if kwargs.get(name) is not None]
    if unsupported:
        raise ValueError(f"variable-length attention computes no {unsupported[0]}")
    rows = _SEQUENCES.get()
    if rows is None:  # The dummy forward of a rank that ran out of rows while others forward trees.
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    sequences = rows.find(kwargs.get("sliding_window"))
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    return _call_kernel(query[0], key[0], value[0], sequences, scale)[None], None


def _call_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: Sequences, scale: float
) -> torch.Tensor:
    """`(heads, length, dim)` to `(length, heads, dim)`."""
    kernel = KERNELS[query.device.type]
    attend = kernel.load()
    assert attend is not None
    dtype = _choose_dtype(kernel.dtypes, (query, key, value))
    # Latent attention has values of another width than keys. Zeros change neither scores nor the other numbers.
    width = -(-max(query.shape[-1], value.shape[-1]) // HEAD_STEP) * HEAD_STEP
    queries, keys, values = (_widen(each.transpose(0, 1).to(dtype), width) for each in (query, key, value))
    if sequences.keys is not None:
        keys, values = (each.index_select(0, sequences.keys) for each in (keys, values))
    found = attend(
        queries, keys, values, sequences.query_ends, sequences.key_ends, sequences.longest_query,
        sequences.longest_key, scale=scale, window_size=sequences.window, enable_gqa=len(query) != len(key),
    )  # fmt: skip
    return found[..., : value.shape[-1]]


def _choose_dtype(allowed: tuple[torch.dtype, ...], states: Sequence[torch.Tensor]) -> torch.dtype:
    """
    What the kernel computes in: autocast's dtype, else the lowest of the three. PEFT casts norms to float32, so queries
    and keys may arrive in float32 although the model computes in bfloat16.
    """
    device_type = states[0].device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    dtype = min((each.dtype for each in states), key=lambda each: each.itemsize)
    if dtype not in allowed:
        raise ValueError(f"variable-length attention computes in {' or '.join(map(str, allowed))}, and got {dtype}")
    return dtype


def _widen(states: torch.Tensor, width: int) -> torch.Tensor:
    return states if states.shape[-1] == width else pad(states, (0, width - states.shape[-1]))


AttentionInterface.register(VARLEN, _attend_in_sequences)
