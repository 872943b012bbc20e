"""
The wrappers in which a Trainer holds its model and its optimizer, and the state to restore after a scoring pass.

Scoring runs the module inside DataParallel, DistributedDataParallel, a DeepSpeed engine or `torch.compile`, because a
wrapper's own forward does more than a forward: DistributedDataParallel broadcasts buffers, so ranks that run unequal
numbers of forwards would hang; `torch.compile` compiles once for every new length.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, cast

import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.state import AcceleratorState, DistributedType
from accelerate.utils import extract_model_from_parallel, is_compiled_module
from accelerate.utils.operations import ConvertOutputsToFp32
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

from miwv_trainer.compat import read_parallelism
from miwv_trainer.distributed.sharding import unwrap_fsdp1

if TYPE_CHECKING:
    from peft import PeftModel

PARALLELISMS = {
    "tp_size": ("tensor parallelism", "the ranks of a group hold parts of one layer and need the very same rows"),
    "cp_size": ("context parallelism", "the ranks of a group hold parts of one sequence"),
    "sp_size": ("sequence parallelism", "the ranks of a group hold parts of one sequence"),
}


class WrappedOptimizer(Protocol):
    """An optimizer as accelerate wraps it and the Trainer gives it to callbacks."""

    optimizer: torch.optim.Optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def eval(self) -> None: ...

    def train(self) -> None: ...


def check_parallelism(requested: ParallelismConfig | None, fsdp: object, model: nn.Module) -> None:
    """
    Checks that each rank can take rows of its own, and that the model is sharded as the training's arguments say.

    Args:
        requested: The arguments' `parallelism_config`.
        fsdp: The arguments' `fsdp`.

    Raises:
        ValueError: tensor, context or sequence parallelism, whose ranks share rows; or FSDP that is not active.
    """
    state = AcceleratorState()
    for name, degree in _read_degrees(requested, state, model).items():
        if degree > 1:
            what, why = PARALLELISMS[name]
            raise ValueError(
                f"The training uses {what} ({name}={degree}): {why}, but scoring deals each rank rows of its own. Use "
                f"data parallelism (DDP, ZeRO or FSDP2; {name}=1), or score before training with `miwv score`."
            )
    # accelerate has no FSDP on a CPU or without a launcher; the Trainer then trains without it.
    if fsdp and state.distributed_type != DistributedType.FSDP:
        raise ValueError(
            f"FSDP was asked for (`fsdp={fsdp!r}`), but is not active: accelerate runs as "
            f"{state.distributed_type.value}. It needs GPUs and a launcher (`accelerate launch --use_fsdp`, or "
            "torchrun); leave `fsdp` out to train without it."
        )


def _read_degrees(requested: ParallelismConfig | None, state: AcceleratorState, model: nn.Module) -> dict[str, int]:
    """
    The number of ranks in a group of each kind of parallelism: the largest that any of five places says.

    The arguments and accelerate's state have a ParallelismConfig each; `from_pretrained(tp_plan=...)` notes the number
    in the model; DeepSpeed has configuration keys of its own.
    """
    degrees = dict.fromkeys(PARALLELISMS, 1)
    for config in (requested, state.parallelism_config):
        if config is not None:
            for name, degree in read_parallelism(config).items():
                degrees[name] = max(degrees[name], degree)
    inner = get_inner_model(model)
    degrees["tp_size"] = max(degrees["tp_size"], inner.tp_size or 1)
    if state.distributed_type == DistributedType.DEEPSPEED:
        config = state.deepspeed_plugin.deepspeed_config
        degrees["tp_size"] = max(degrees["tp_size"], config.get("tensor_parallel", {}).get("autotp_size", 1))
        degrees["sp_size"] = max(degrees["sp_size"], config.get("sequence_parallel_size", 1))
    return degrees


def unwrap_model(model: nn.Module) -> nn.Module:
    """
    The module inside DataParallel, DistributedDataParallel, a DeepSpeed engine or `torch.compile`.

    FSDP1's wrapper stays, because its forward gathers the parameters.
    """
    # The compiled module's only child is the module that `torch.compile` was given.
    uncompiled = next(model.children()) if is_compiled_module(model) else model
    # accelerate's function would take FSDP1's wrapper off too.
    if unwrap_fsdp1(uncompiled) is not uncompiled:
        return uncompiled
    return extract_model_from_parallel(model, keep_torch_compile=False)


@contextmanager
def disable_compilation(model: nn.Module) -> Iterator[None]:
    """
    Inside, compiled parts of the model run as the plain modules they were made from.

    Rows have a hundred lengths, and `torch.compile` would compile for each, at seconds a length. Flex attention stays
    compiled: without it, transformers' flex attention computes every pair of tokens.
    """
    if get_attention_implementation(model) == "flex_attention":
        yield
        return
    # Taking off the wrapper is not enough: `model.compile()` compiles a module in place.
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def use_evaluation_weights(optimizer: WrappedOptimizer | None) -> Iterator[None]:
    """
    Inside, the model has the weights that its optimizer keeps for evaluation (a schedule-free one: their average).

    Afterwards the optimizer is in the mode it was in: training, or evaluation if the Trainer has just evaluated and
    left it so. All weights are equal to the bit. Switching the optimizer's mode twice rounds them, so they are restored
    from copies, which take as much memory as the trained parameters during the pass.

    Args:
        optimizer: None if there is no optimizer.
    """
    # The Trainer asks the same way, in `evaluation_loop`: only optimizers with two sets of weights have the method.
    if optimizer is None or not callable(getattr(optimizer.optimizer, "eval", None)):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    copies, settings = [parameter.detach().clone() for parameter in parameters], _read_settings(optimizer)
    optimizer.eval()
    was_training = _read_settings(optimizer) != settings
    if not was_training:
        # It showed these weights already, so nothing will be restored and the copies' memory is free for the round.
        copies.clear()
    try:
        yield
    finally:
        if was_training:
            # First the mode, which moves the weights; then the exact values.
            optimizer.train()
            with torch.no_grad():
                for parameter, value in zip(parameters, copies, strict=True):
                    parameter.copy_(value)


def _read_settings(optimizer: WrappedOptimizer) -> list[dict[str, object]]:
    """The settings of each parameter group. A schedule-free optimizer keeps its mode there (`train_mode`)."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def get_inner_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside the wrappers of PEFT and FSDP1, whose forwards take the same arguments."""
    model = unwrap_fsdp1(model)
    return cast(PreTrainedModel, model.get_base_model() if _is_peft(model) else model)


def get_attention_implementation(model: nn.Module) -> str | None:
    """The name of the attention function of a transformers model, such as `"sdpa"` or `"eager"`."""
    # Private, seen in transformers 5.23.0. The public `attn_implementation` can only be set, by `from_pretrained` and
    # `set_attn_implementation`; transformers' own models read this attribute in every attention layer.
    return get_inner_model(model).config._attn_implementation


def enters_autocast(model: nn.Module) -> bool:
    """Whether accelerate has put autocast into the forward of the model, or of the module inside FSDP1's wrapper."""
    # accelerate then also casts the outputs to float32, by an object of this class. Nothing else of it can be seen from
    # outside: parameters are in float32, and autocast is on in the forward only.
    forwards = (module.forward for module in (model, unwrap_fsdp1(model)))
    return any(isinstance(getattr(forward, "__wrapped__", None), ConvertOutputsToFp32) for forward in forwards)


def is_prompt_tuned(model: nn.Module) -> bool:
    """
    Whether PEFT puts virtual tokens before the input, which moves every position.

    Prefix tuning does not: its virtual tokens are keys and values of the attention.
    """
    if not _is_peft(model):
        return False
    config = model.active_peft_config
    return config.is_prompt_learning and config.peft_type != "PREFIX_TUNING"


def _is_peft(model: nn.Module) -> "TypeGuard[PeftModel]":
    # PEFT is an optional dependency.
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)
