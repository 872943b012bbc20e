"""
Rotary positions whose factors depend on the length of the forward.

transformers (`modeling_rope_utils`) takes them from the largest position in the forward: "longrope" has one set of
factors up to `original_max_position_embeddings` and another beyond; "dynamic" has other factors for each length beyond
`max_position_embeddings`, and keeps those of the longest forward so far until a short one comes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from miwv_trainer.distributed.wrappers import get_inner_model
from miwv_trainer.scoring.sharing import Sharing


def read_rope_sharing(config: PretrainedConfig) -> Sharing:
    """Which rows may share a forward of a model with this configuration, as far as its rotary positions tell."""
    thresholds, beyond = [], []
    for parameters in _list_rope_parameters(config):
        kind = _read_rope_type(parameters)
        if kind == "longrope":
            # transformers falls back to the configuration's entry in the same way.
            given = parameters.get("original_max_position_embeddings")
            threshold = given or getattr(config, "original_max_position_embeddings", None)
            thresholds.append(int(threshold or config.max_position_embeddings))
        elif "dynamic" in kind:
            beyond.append(int(config.max_position_embeddings))
    return Sharing(min(thresholds, default=None), min(beyond, default=None))


def read_context_factor(config: PretrainedConfig) -> float:
    """How many times `max_position_embeddings` the context is: the factor of "dynamic" positions, else 1."""
    factors = [
        float(parameters.get("factor") or 1.0)
        for parameters in _list_rope_parameters(config)
        if "dynamic" in _read_rope_type(parameters)
    ]
    return max(1.0, min(factors, default=1.0))


def _list_rope_parameters(config: PretrainedConfig) -> list[Mapping[str, Any]]:
    """The parameters of the model's rotary positions: one mapping, or one for each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if not isinstance(parameters, Mapping):
        return []
    per_layer_type = [value for value in parameters.values() if isinstance(value, Mapping)]
    return per_layer_type or [parameters]


def _read_rope_type(parameters: Mapping[str, Any]) -> str:
    return str(parameters.get("rope_type") or parameters.get("type") or "default")


@contextmanager
def forget_longer_forwards(model: nn.Module) -> Iterator[None]:
    """
    Inside, one forward takes the "dynamic" factors of its own length, whatever was forwarded before. Afterwards the
    factors are those that training had. Changes nothing in models with other rotary positions.
    """
    inner = get_inner_model(model)
    # The modules of rotary positions have no common class. All of them keep the length under this name.
    modules = [module for module in inner.modules() if "max_seq_len_cached" in vars(module)]
    if not modules or read_rope_sharing(inner.config.get_text_config()).equal_beyond is None:
        yield
        return
    attributes = [{name: value for name, value in vars(module).items() if _is_state(name)} for module in modules]
    buffers = [{name: value for name, value in module.named_buffers() if "inv_freq" in name} for module in modules]
    for module, state in zip(modules, attributes, strict=True):
        # Any length is larger than 0, so the forward computes its own factors.
        for name in state:
            if name.endswith("max_seq_len_cached"):
                setattr(module, name, 0)
    try:
        yield
    finally:
        for module, state, kept in zip(modules, attributes, buffers, strict=True):
            for name, value in state.items():
                setattr(module, name, value)
            for name, buffer in kept.items():
                module.register_buffer(name, buffer, persistent=False)


def _is_state(name: str) -> bool:
    return name.endswith(("max_seq_len_cached", "attention_scaling"))
