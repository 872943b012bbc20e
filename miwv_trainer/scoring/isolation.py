"""Scoring leaves no trace: training flags, gradients and random states are afterwards what they were."""

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
    Evaluation mode without gradients inside; outside, nothing has happened.

    Each module's own training flag comes back (a frozen submodule may have been in evaluation mode), and so do the
    global random states, from which dropout and augmentation of the training that follows will draw. FSDP2
    holds its share only.
    """
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with preserve_rng(), torch.no_grad(), reshard_afterwards(model):
            yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def preserve_rng() -> Iterator[None]:
    """Brings the global random states of Python, NumPy, torch and CUDA back as they were."""
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
    """Fills a set with whether the modules inside the model ran under autocast, which no parameter's dtype tells."""
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
    """All modules but the root, around whose forward accelerate puts autocast."""
    return [module for module in model.modules() if module is not model]


def get_device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
