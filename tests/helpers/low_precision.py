"""Models in bfloat16, and everything in a model that scoring must leave as it was."""

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from tests.helpers.tiny import tiny_model


def bfloat16_model(config: PretrainedConfig | None = None, seed: int = 0) -> Any:
    return tiny_model(config, seed).to(torch.bfloat16)


def state(model: nn.Module) -> list[Any]:
    """Everything a trace could be left in."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return [
        [(name, id(t), t.data_ptr(), t.dtype, t.requires_grad, id(t.grad)) for name, t in tensors],
        [(len(m._forward_pre_hooks), len(m._forward_hooks), list(vars(m))) for m in model.modules()],
        torch.is_autocast_enabled("cpu"),
    ]
