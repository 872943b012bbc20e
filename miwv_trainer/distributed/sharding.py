"""Models whose parameters are split over ranks: ZeRO-3, FSDP1 and FSDP2."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers.integrations import deepspeed, is_deepspeed_zero3_enabled


@contextmanager
def whole_models() -> Iterator[None]:
    """
    Inside, `from_pretrained` loads a model whole. Under ZeRO-3 it would split every model over the ranks, and hang
    where only one of them loads it.
    """
    running = _running_deepspeed_config()
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if running is not None:
            deepspeed.set_hf_deepspeed_config(running)


def is_sharded(model: nn.Module) -> bool:
    """
    Whether a forward of the model waits for all ranks, because parameters are split over them: by ZeRO-3, by FSDP2
    (`fully_shard`, whose parameters are DTensors) or by FSDP1.
    """
    if is_deepspeed_zero3_enabled() or any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return True
    return len(FullyShardedDataParallel.fsdp_modules(model)) > 0


def fsdp_root_inside(model: nn.Module) -> nn.Module:
    """The module that FSDP1 wraps, whose forward takes what it takes; the model itself where nothing wraps it."""
    return model.module if isinstance(model, FullyShardedDataParallel) else model


@contextmanager
def resharded(model: nn.Module) -> Iterator[None]:
    """
    Afterwards FSDP holds no more than its share. Its root, and with some settings every module, would keep what it
    gathered for a backward to come: memory, and the weights of now where the next forward is to see others.
    """
    try:
        yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        for part in FullyShardedDataParallel.fsdp_modules(model):
            _reshard_fsdp1(part)


def _running_deepspeed_config() -> Any:
    """The configuration under which transformers loads models in parts; None where there is none."""
    # Private, seen in transformers 5.23.0. The public `deepspeed_config()` gives the dictionary inside; but
    # `set_hf_deepspeed_config` keeps only a weak reference, so what is put back must be the Trainer's own object.
    reference = deepspeed._hf_deepspeed_config_weak_ref
    return reference() if reference is not None else None


def _reshard_fsdp1(part: FullyShardedDataParallel) -> None:
    """Frees what a module wrapped by FSDP1 has gathered. Modules that have run no forward yet have gathered nothing."""
    # Private, seen in torch 2.13.0. FSDP1 reshards only after a backward and has no public method for it (FSDP2 has
    # `reshard`); `check_is_root` would start what the first forward starts.
    if part._is_root is not None and part._handle is not None and part._handle.uses_sharded_strategy:
        part._handle.reshard(free_unsharded_flat_param=True)
