"""What a process holds of a model, what a round could leave changed about it, and the losses that it has."""

import gc
import random
from typing import Any

import numpy as np
import torch
from torch import nn

from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.wrappers import unwrap_model
from miwv_trainer.scoring.rows import make_one_shot_row, make_zero_shot_row


def live_bytes() -> int:
    """Of all tensors that live, what wrappers keep of them included; storage that several share counts once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, nn.Parameter) and not thing.is_meta:
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def facts(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that a round could leave changed, and the global random states, as JSON takes it."""
    python_state, numpy_state = random.getstate()[1], np.random.get_state()[1]
    return {
        "training": [module.training for module in model.modules()],
        "hooks": [
            [len(hooks) for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)]
            for m in model.modules()
        ],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grad": [None if p.grad is None else p.grad.sum().item() for p in model.parameters()],
        "dtypes": [str(parameter.dtype) for parameter in model.parameters()],
        "attention": unwrap_model(model).config._attn_implementation,
        "random": [hash(python_state), hash(numpy_state.tobytes()), hash(torch.get_rng_state().numpy().tobytes())],
        "checkpointing": [getattr(module, "gradient_checkpointing", None) for module in model.modules()],
    }


def plain_losses(model: Any, pool: Pool, exemplars: np.ndarray) -> np.ndarray:
    """`(2, N)` losses of each row by itself, from the whole model's own `labels`."""
    losses = np.empty((2, len(pool)))
    for sample in range(len(pool)):
        rows = (make_zero_shot_row(pool, sample), make_one_shot_row(pool, sample, int(exemplars[sample]), 512))
        for kind, row in enumerate(rows):
            ids = torch.from_numpy(row.ids.astype(np.int64))[None]
            labels = torch.full_like(ids, -100)
            labels[0, row.targets] = ids[0, row.targets]
            with torch.no_grad():
                losses[kind, sample] = model(input_ids=ids, labels=labels).loss.item()
    return losses


def scoring_forwards(model: nn.Module) -> list[int]:
    """Tokens of every forward without gradients from now on."""
    seen: list[int] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        if not torch.is_grad_enabled():
            seen.append(kwargs["input_ids"].numel())

    model.register_forward_pre_hook(note, with_kwargs=True)
    return seen
