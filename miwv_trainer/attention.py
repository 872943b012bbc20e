"""How a row of trees is seen by the model's attention: each token its own branch and the trunk before it."""

import inspect

import torch
from torch import nn

from miwv_trainer.head import inner_model
from miwv_trainer.packing import TreeRow


def tree_mask(model: nn.Module, row: TreeRow, device: torch.device) -> torch.Tensor:
    """`(1, 1, length, length)`: a token sees what came before it in its own branch, and in the trunk of its tree."""
    tree, branch = (torch.as_tensor(array, device=device) for array in (row.tree, row.branch))
    seen = (tree[:, None] == tree[None]) & ((branch[None] == 0) | (branch[:, None] == branch[None]))
    seen = seen.tril()[None, None]
    if inner_model(model).config._attn_implementation == "sdpa":
        return seen
    # The eager attention of transformers adds its mask.
    dtype = next(model.parameters()).dtype
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)


def tree_obstacle(model: nn.Module) -> str | None:
    """Why a model cannot take rows of trees, as far as its configuration tells; None where it may."""
    inner = inner_model(model)
    config = inner.config.get_text_config()
    attention = inner.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        return f"its attention is {attention!r}, which takes no mask of its own for each row"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"it has layers of {', '.join(sorted(kinds - {'full_attention'}))}"
    if getattr(config, "sliding_window", None) is not None:
        return f"its attention slides over a window of {config.sliding_window} tokens"
    if "position_ids" not in inspect.signature(inner.forward).parameters:
        return "its forward takes no `position_ids`"
    return None
