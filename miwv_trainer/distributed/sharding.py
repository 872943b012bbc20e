"""
Models whose parameters are split over ranks: ZeRO-3, FSDP1 and FSDP2.

Each forward of such a model gathers parameters from all ranks. A rank that runs one forward less than the others leaves
them waiting until the timeout of the process group, 30 minutes by default (DeepSpeed#4367).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import disable_fsdp_ram_efficient_loading, enable_fsdp_ram_efficient_loading
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers.integrations import deepspeed, is_deepspeed_zero3_enabled, is_fsdp_enabled
from transformers.integrations.deepspeed import HfDeepSpeedConfig


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's parameters are split over ranks by ZeRO-3, FSDP2 (as DTensors) or FSDP1."""
    # ZeRO-3 is known as a setting of the process: its parameters are of torch's own class, and empty between forwards.
    if is_deepspeed_zero3_enabled() or any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return True
    return len(FullyShardedDataParallel.fsdp_modules(model)) > 0


def is_whole(model: nn.Module) -> bool:
    """Whether this rank holds all of a model's parameters: ZeRO-3 leaves split ones empty, FSDP some without values."""
    parameters = list(model.parameters())
    return not any(isinstance(each, DTensor) or each.is_meta or each.numel() == 0 for each in parameters)


def unwrap_fsdp1(model: nn.Module) -> nn.Module:
    """The module inside FSDP1's outermost wrapper; the model itself if it has none."""
    return model.module if isinstance(model, FullyShardedDataParallel) else model


@contextmanager
def load_models_whole() -> Iterator[None]:
    """
    Inside, `from_pretrained` loads whole models.

    Under ZeRO-3 it would split every model over the ranks, which would then run forwards in step. Under
    FSDP with `cpu_ram_efficient_loading`, some versions of transformers give weights to the first rank of a machine
    only: FSDP hands them on, but only to the model that it wraps.
    """
    running, loads_once = _find_running_config(), is_fsdp_enabled()
    deepspeed.unset_hf_deepspeed_config()
    if loads_once:
        disable_fsdp_ram_efficient_loading()
    try:
        yield
    finally:
        if running is not None:
            deepspeed.set_hf_deepspeed_config(running)
        if loads_once:
            enable_fsdp_ram_efficient_loading()


@contextmanager
def reshard_afterwards(model: nn.Module) -> Iterator[None]:
    """
    Afterwards, FSDP holds only this rank's share of the parameters.

    After a forward, FSDP keeps the root's gathered parameters for the backward to come (and those of every module with
    SHARD_GRAD_OP). After a scoring pass no backward comes: the memory would stay taken, and the next training forward
    would use the gathered weights of before the optimizer's step.
    """
    try:
        yield
    finally:
        # After an error too: in a notebook, the model is used again.
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        for part in FullyShardedDataParallel.fsdp_modules(model):
            _reshard_fsdp1(part)


def _find_running_config() -> HfDeepSpeedConfig | None:
    """The configuration by which transformers knows that it runs under DeepSpeed; None if it does not."""
    # Private, seen in transformers 5.23.0. The public `deepspeed_config()` returns only the dictionary inside. As
    # `set_hf_deepspeed_config` keeps a weak reference, what is set again must be the Trainer's own object.
    reference = deepspeed._hf_deepspeed_config_weak_ref
    return reference() if reference is not None else None


def _reshard_fsdp1(part: FullyShardedDataParallel) -> None:
    """Frees the gathered parameters of a module that FSDP1 wraps. Before its first forward it has none."""
    # Private, seen in torch 2.13.0. FSDP1 reshards after a backward and has no public method for it, as FSDP2 has. The
    # public `check_is_root` initialises the module, which only a first forward of all ranks should do.
    if part._is_root is not None and part._handle is not None and part._handle.uses_sharded_strategy:
        part._handle.reshard(free_unsharded_flat_param=True)
