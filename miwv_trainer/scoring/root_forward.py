"""
One forward of the root module without gradients: its inputs, its options, and a hook before its head.

Scoring runs no submodule by itself. Under ZeRO-3, a hook of the root resets the trace by which parameters are fetched;
FSDP1 supports no forward of a submodule (pytorch#123962); accelerate puts autocast into the root's forward.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from torch import nn
from transformers.utils import ModelOutput
from typing_extensions import NotRequired, TypedDict

from miwv_trainer.data.pool import IGNORED_LABEL
from miwv_trainer.distributed.wrappers import get_inner_model
from miwv_trainer.scoring.rope import forget_longer_forwards

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

PADDING_ID = 0  # Any id serves, because padding is masked.
# Gets the head module and its arguments; returns what the head gets instead, or None to leave it.
HeadHook = Callable[[nn.Module, tuple[torch.Tensor, ...]], torch.Tensor | None]


class ForwardInputs(TypedDict):
    """
    What a forward takes.

    Args:
        input_ids: `(rows, length)` token ids.
        attention_mask: `(rows, length)`, 1 for tokens and 0 for padding; or the masks of rows of trees, by kind of
            layer if there are several kinds.
        position_ids: `(rows, length)`; without them, positions are 0, 1, 2, ...
    """

    input_ids: torch.Tensor
    attention_mask: NotRequired["torch.Tensor | BlockMask | dict[str, torch.Tensor | BlockMask]"]
    position_ids: NotRequired[torch.Tensor]


class ForwardOutput(Protocol):
    """What a causal language model returns: `log_probs` where TRL's fused head was asked for, else `logits`."""

    logits: torch.Tensor
    log_probs: torch.Tensor


def run_root_forward(model: nn.Module, inputs: ForwardInputs, **options: object) -> ForwardOutput:
    """One forward of the root, without a cache and without the balancing loss of a mixture of experts."""
    if takes_argument(model, "output_router_logits"):
        # The balancing loss is computed from a two-dimensional mask and fails on the masks of rows of trees.
        options["output_router_logits"] = False
    if takes_argument(model, "use_cache") or takes_any_argument(model):
        # Said explicitly, because gradient checkpointing and a configuration's `use_cache=True` exclude each other
        # (trl#3891).
        options["use_cache"] = False
    with forget_longer_forwards(model):
        return read_output(model(**inputs, **options))


def read_output(output: object) -> ForwardOutput:
    """
    The output of a forward by name. A model of the user's own may return a dictionary or a tuple.

    Raises:
        TypeError: it holds no logits.
    """
    if isinstance(output, ModelOutput):
        return cast(ForwardOutput, output)
    if isinstance(output, Mapping) and "logits" in output:
        return cast(ForwardOutput, SimpleNamespace(**output))
    if isinstance(output, tuple) and output and isinstance(output[0], torch.Tensor) and output[0].ndim == 3:
        return cast(ForwardOutput, SimpleNamespace(logits=output[0]))
    raise TypeError(
        f"The model's forward returned a {type(output).__name__} without logits. Return them as the entry `logits`, or "
        "as the first of a tuple, `(rows, length, vocabulary)`, where no labels are given."
    )


def takes_any_argument(model: nn.Module) -> bool:
    """Whether the model's forward takes arguments of any name."""
    parameters = inspect.signature(get_inner_model(model).forward).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def forward_one_position(model: nn.Module, inputs: ForwardInputs) -> None:
    """A root forward like those that score, with the head on one position only."""
    if has_fused_head(model):
        labels = torch.full_like(inputs["input_ids"], IGNORED_LABEL)
        labels[0, 1:2] = PADDING_ID
        run_root_forward(model, inputs, labels=labels, fused_lm_head=True)
        return
    options = {"logits_to_keep": 1} if takes_argument(model, "logits_to_keep") else {}
    with hook_head_input(model, lambda _, args: keep_first_position(args[0]) if args[0].ndim == 3 else None):
        run_root_forward(model, inputs, **options)


def takes_argument(model: nn.Module, name: str) -> bool:
    """Whether the model's forward has a parameter of that name."""
    return name in inspect.signature(get_inner_model(model).forward).parameters


def has_fused_head(model: nn.Module) -> bool:
    """Whether TRL's `add_fused_lm_head` has given the model a forward that takes `fused_lm_head`."""
    # TRL's forward shows the original's signature to `generate`, so the function itself must be looked at.
    return "fused_lm_head" in inspect.signature(get_inner_model(model).forward, follow_wrapped=False).parameters


@contextmanager
def hook_head_input(model: nn.Module, hook: HeadHook) -> Iterator[None]:
    """
    Inside, the head gets what the hook makes of its input. A model that names no head is left as it is.

    In a hook the head's weight is whole. Outside of the head's own forward it is empty under ZeRO-3 and a shard under
    FSDP2; gathering it by hand fails where it is tied to the embeddings, which are gathered already.
    """
    head = get_inner_model(model).get_output_embeddings()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def keep_first_position(hidden: torch.Tensor) -> torch.Tensor:
    """`(1, 1, width)` of `(rows, length, width)`: the root's own logits are then one row of vocabulary."""
    return hidden[:1, :1]


def pad(arrays: list[np.ndarray], value: int, device: torch.device) -> torch.Tensor:
    """`(arrays, longest)` int64, each array followed by `value`."""
    filled = np.full((len(arrays), max(map(len, arrays))), value, dtype=np.int64)
    for number, array in enumerate(arrays):
        filled[number, : len(array)] = array
    return torch.from_numpy(filled).to(device)
