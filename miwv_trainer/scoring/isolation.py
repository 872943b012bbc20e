"""Scoring leaves no trace: training flags, gradients and random states are the same after it as before."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from miwv_trainer.distributed.sharding import reshard_afterwards


@contextmanager
def leave_no_trace(model: nn.Module) -> Iterator[None]:
    """
    Inside, the model is in evaluation mode and makes no gradients. Afterwards, the model and the global random states
    are as they were, also after an error, and FSDP holds only its share of the parameters.
    """
    # The flag of each module, because a frozen submodule may have been in evaluation mode.
    flags = [(module, module.training) for module in model.modules()]
    # Evaluation mode also turns off LoRA's dropout, NEFTune's noise, router noise and gradient checkpointing.
    model.eval()
    try:
        # Not `inference_mode`: under ZeRO-3 the next training step would fail, because "Inference tensors cannot be
        # saved for backward" (ArcticTraining#265).
        with preserve_rng(), torch.no_grad(), reshard_afterwards(model):
            yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def preserve_rng() -> Iterator[None]:
    """
    Afterwards, the global random states of Python, NumPy, torch and CUDA are as they were.

    Iterating a DataLoader is enough to change torch's. Without this, dropout and shuffling of the training that follows
    would depend on whether samples were scored.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        # fork_rng restores torch's CPU state and that of every CUDA device.
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def watch_autocast(model: nn.Module) -> Iterator[set[bool]]:
    """
    Yields a set that receives, of each forward of a module inside the model, whether it ran under autocast.

    No parameter's dtype tells: accelerate replaces the root's `forward` by one that enters autocast by itself.
    """
    device_type = get_device(model).type
    noticed: set[bool] = set()

    def notice(*_: object) -> None:
        noticed.add(torch.is_autocast_enabled(device_type))

    hooks = [module.register_forward_pre_hook(notice) for module in get_inner_modules(model)]
    try:
        yield noticed
    finally:
        for hook in hooks:
            hook.remove()


def get_inner_modules(model: nn.Module) -> list[nn.Module]:
    """All modules but the root. accelerate's autocast begins in the root's forward, after the root's own hooks."""
    return [module for module in model.modules() if module is not model]


def get_device(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies."""
    return next(model.parameters()).device
