"""Models and their tokenizers, from a folder, the hub or a GGUF file."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from miwv_trainer.choices import DTYPES
from miwv_trainer.compat import make_gguf_options
from miwv_trainer.foreign_errors import take_first_line


def load_model(name: str, dtype: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Loads a causal language model and its tokenizer.

    Args:
        name: A hub name, a folder, or a folder that holds one GGUF file instead of a `config.json`.
        dtype: `"float32"`, `"bfloat16"`, or None for the one the model was saved in.

    Raises:
        ValueError: an unknown dtype, or a folder with several GGUF files.
        OSError: no model is found.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(map(repr, DTYPES))}, but got {dtype!r}.")
    torch_dtype = getattr(torch, dtype) if dtype is not None else "auto"
    gguf = _find_gguf(Path(name))
    # transformers would keep GGUF weights packed, and packed weights cannot be trained.
    unpacking = make_gguf_options(gguf) if gguf else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **({"gguf_file": gguf} if gguf else {}))
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch_dtype, **unpacking)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        # transformers' messages have up to ten lines, of which the first says what is missing.
        raise OSError(
            f"No model could be loaded from {name!r}: give a folder with a saved model or a GGUF file, or a hub name "
            f"that is reachable or cached. ({take_first_line(error)})"
        ) from error
    if gguf:
        # Otherwise training starts, and fails at its first checkpoint.
        _make_saveable(model)
    return model, tokenizer


def load_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside a model; None if there is none, as for a model that was made in this process."""
    if not name:
        return None
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError):
        return None


def _make_saveable(model: PreTrainedModel) -> None:
    """Removes the records that say that a model from GGUF is quantised: `save_pretrained` would refuse it."""
    model.hf_quantizer = None
    model.is_quantized = False
    vars(model.config).pop("quantization_config", None)


def _find_gguf(folder: Path) -> str | None:
    """The name of the GGUF file in a folder, if that is how the folder holds its model."""
    if not folder.is_dir() or (folder / "config.json").is_file():
        return None
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if len(files) > 1:
        raise ValueError(f"{folder} holds several GGUF files ({', '.join(files)}); keep one in a folder of its own.")
    return files[0] if files else None
