"""How a Trainer holds its model: what is scored through, what cannot be, and what comes back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.state import AcceleratorState, DistributedType
from accelerate.utils import extract_model_from_parallel, is_compiled_module
from torch import nn
from transformers import TrainingArguments
from transformers.utils import is_peft_available

from miwv_trainer.distributed.sharding import fsdp_root_inside

PARALLELISMS = {
    "tp_size": ("tensor parallelism", "the ranks of a group hold parts of one layer and need the very same rows"),
    "cp_size": ("context parallelism", "the ranks of a group hold parts of one sequence"),
    "sp_size": ("sequence parallelism", "the ranks of a group hold parts of one sequence"),
}


def check_parallelism(args: TrainingArguments, model: nn.Module) -> None:
    """
    Raises `ValueError` where ranks do not each hold rows of their own, which scoring deals among them, or where the
    model is not sharded as the arguments say.
    """
    state = AcceleratorState()
    for name, degree in _degrees(args, state, model).items():
        if degree > 1:
            what, why = PARALLELISMS[name]
            raise ValueError(
                f"The training uses {what} ({name}={degree}): {why}, but scoring deals each rank rows of its own. Use "
                f"data parallelism (DDP, ZeRO or FSDP2; {name}=1), or score before training with `miwv score`."
            )
    if args.fsdp and state.distributed_type != DistributedType.FSDP:
        raise ValueError(
            f"FSDP was asked for (`fsdp={args.fsdp!r}`), but is not active: accelerate runs as "
            f"{state.distributed_type.value}. It needs GPUs and a launcher (`accelerate launch --use_fsdp`, or "
            "torchrun); leave `fsdp` out to train without it."
        )


def _degrees(args: TrainingArguments, state: AcceleratorState, model: nn.Module) -> dict[str, int]:
    """Ranks in a group of each kind, wherever that may be said."""
    degrees = dict.fromkeys(PARALLELISMS, 1)
    for config in (args.parallelism_config, state.parallelism_config):
        if config is not None:
            for name in degrees:
                degrees[name] = max(degrees[name], getattr(config, name) or 1)
    inner = inner_model(model)
    degrees["tp_size"] = max(degrees["tp_size"], inner.tp_size or 1)
    if state.distributed_type == DistributedType.DEEPSPEED:
        config = state.deepspeed_plugin.deepspeed_config
        degrees["tp_size"] = max(degrees["tp_size"], config.get("tensor_parallel", {}).get("autotp_size", 1))
        degrees["sp_size"] = max(degrees["sp_size"], config.get("sequence_parallel_size", 1))
    return degrees


def unwrapped(model: nn.Module) -> Any:
    """
    The module inside DataParallel, DistributedDataParallel, a DeepSpeed engine or `torch.compile`, which shares its
    weights. What FSDP made stays: its forward gathers the parameters.
    """
    # `torch.compile` holds the module that it was given as its only child.
    as_it_was: Any = next(model.children()) if is_compiled_module(model) else model
    if fsdp_root_inside(as_it_was) is not as_it_was:
        return as_it_was
    return extract_model_from_parallel(model, keep_torch_compile=False)


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """
    Inside, what `torch.compile` made of the model runs as it was before: rows of a hundred lengths would be compiled a
    hundred times. Flex attention, which is compiled by itself, is left alone.
    """
    if attention_implementation(model) == "flex_attention":
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def evaluating(optimizer: Any) -> Iterator[None]:
    """
    Inside, an optimizer that has weights of its own for evaluation (schedule-free) shows them, as the Trainer does when
    it evaluates. Afterwards it is in the mode in which it was (the Trainer's own evaluation leaves it showing them),
    and all weights are what they were to the bit: back and forth, its arithmetic would round.

    Args:
        optimizer: accelerate's wrapper, as the Trainer hands it to callbacks; None where there is no optimizer.
    """
    if optimizer is None or not callable(getattr(optimizer.optimizer, "eval", None)):
        yield
        return
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before, mode = [parameter.detach().clone() for parameter in held], _settings(optimizer)
    optimizer.eval()
    was_training = _settings(optimizer) != mode
    if not was_training:
        before.clear()
    try:
        yield
    finally:
        if was_training:
            optimizer.train()
            with torch.no_grad():
                for parameter, value in zip(held, before, strict=True):
                    parameter.copy_(value)


def _settings(optimizer: Any) -> list[dict[str, Any]]:
    """What an optimizer notes about its groups of parameters, its mode among it."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def inner_model(model: Any) -> Any:
    """The transformers model inside the wrappers of PEFT and FSDP1, which hand their arguments through."""
    model = fsdp_root_inside(model)
    return model.get_base_model() if _is_peft(model) else model


def attention_implementation(model: nn.Module) -> str | None:
    """The name of the attention function of a transformers model, such as `"sdpa"` or `"eager"`."""
    # Private, seen in transformers 5.23.0. The public `attn_implementation` can only be set, by `from_pretrained` and
    # `set_attn_implementation`; transformers' own models read this attribute in every attention layer.
    return inner_model(model).config._attn_implementation


def is_prompt_tuned(model: Any) -> bool:
    """Whether PEFT puts virtual tokens before the input. (Prefix tuning's are keys and values, which shift nothing.)"""
    if not _is_peft(model):
        return False
    config = model.active_peft_config
    return config.is_prompt_learning and config.peft_type != "PREFIX_TUNING"


def _is_peft(model: nn.Module) -> bool:
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)
