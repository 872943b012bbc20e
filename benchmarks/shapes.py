"""Random models in the shapes of families, for benchmarks: their weights cost the same time as trained ones."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
)

# Vocabularies are those of SmolLM2's tokenizer, which benchmarks use, where a model is to be run on a CPU: the 262,144
# words of Gemma 3 would make its head dearer than all its layers. Windows are shorter than the longest sequences.
SHAPES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "llama-7b": (LlamaConfig, {}),
    "gemma-3-4b": (
        Gemma3TextConfig,
        {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8}
        | {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 1024, "vocab_size": 262208},
    ),
    "gemma-3": (
        Gemma3TextConfig,
        {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4}
        | {"num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512, "vocab_size": 49152},
    ),
    "mistral": (
        MistralConfig,
        {"hidden_size": 768, "intermediate_size": 2688, "num_hidden_layers": 12, "num_attention_heads": 12}
        | {"num_key_value_heads": 3, "head_dim": 64, "sliding_window": 256, "vocab_size": 49152},
    ),
    "tiny-llama": (
        LlamaConfig,
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"num_key_value_heads": 2},
    ),
    "tiny-gemma-3": (
        Gemma3TextConfig,
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64},
    ),
}


def make_shape(name: str, vocabulary: int) -> PretrainedConfig:
    """The configuration of a shape. Tiny ones take the vocabulary that they are given."""
    kind, values = SHAPES[name]
    # The ids of Gemma's special tokens may lie outside a vocabulary that is not its own.
    special = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    return kind(**{"vocab_size": vocabulary, **special, **values})


def make_random_model(config: PretrainedConfig, dtype: str, device: torch.device) -> PreTrainedModel:
    """A model with random weights, created on its device and in its dtype: 7B in float32 first would need 28 GB."""
    with torch.device(device), torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
