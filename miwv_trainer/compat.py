"""
What differs between the versions of other libraries that this package runs on: one name for each difference.

No other file asks for a version. Each entry says from which version on a library does what the package would like it to
do everywhere, with the public change. The lowest versions are in setup.py; docs/versions.md says which were run.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol, cast

from packaging.version import Version

if TYPE_CHECKING:  # seconds to import, and the command line shows its help without them
    import datasets
    import torch

FIRST_TORCH_WITH_VARLEN = "2.12"


def is_at_least(library: str, lowest: str) -> bool:
    """Whether the installed version of a library is this one or a later one."""
    return Version(version(library)) >= Version(lowest)


class Parallelism(Protocol):
    """The part of accelerate's ParallelismConfig that says how many ranks share rows."""

    tp_size: int
    cp_size: int
    sp_size: int


def read_parallelism(config: Parallelism) -> dict[str, int]:
    """
    The number of ranks in a group of each kind of parallelism, by the name of accelerate's field.

    accelerate has sequence parallelism (`sp_size`) from 1.12 on (accelerate#3817).
    """
    names = ["tp_size", "cp_size", *(["sp_size"] if is_at_least("accelerate", "1.12") else [])]
    return {name: getattr(config, name) or 1 for name in names}


class SamplingArguments(Protocol):
    """The part of transformers' training arguments that says in which order samples are trained."""

    train_sampling_strategy: str
    group_by_length: bool


def read_sampling_strategy(args: SamplingArguments) -> str:
    """
    The Trainer's `train_sampling_strategy`.

    transformers has it from 5.2 on (transformers#43138). Before, `group_by_length` says whether samples of like length
    are put together, and there is no sequential order.
    """
    if is_at_least("transformers", "5.2"):
        return args.train_sampling_strategy
    return "group_by_length" if args.group_by_length else "random"


def make_gguf_options(file: str) -> dict[str, Any]:
    """
    The arguments of `from_pretrained` that load a GGUF file's weights as plain floats.

    From 5.17 on, transformers keeps them packed unless a `GgufConfig` says otherwise (transformers#47779). Before,
    it always unpacks them, and has no such class.
    """
    if not is_at_least("transformers", "5.17"):
        return {"gguf_file": file}
    from transformers import GgufConfig

    return {"gguf_file": file, "quantization_config": GgufConfig(dequantize=True)}


def make_column(name: str, values: list[object]) -> "datasets.Dataset":
    """
    A table of one column.

    From 4.7 on, `datasets` holds values of several types in a column of the type `Json` (datasets#8027). Before, it
    refuses them, and fills the keys that one of several objects lacks with nulls.

    Raises:
        ValueError, TypeError, OverflowError: a table cannot hold the values.
    """
    import datasets

    options: dict[str, Any] = {"on_mixed_types": "use_json"} if is_at_least("datasets", "4.7") else {}
    return datasets.Dataset.from_dict({name: values}, **options)


def masks_prompts_of_conversations() -> bool:
    """
    Whether TRL's SFTTrainer tells prompts from completions where they are turns of a conversation.

    Before 0.27.1 it does so with transformers 4 only: with transformers 5 it takes the number of the encoding's fields
    for the number of the prompt's tokens, and its mask leaves out these two or three tokens alone (trl#4880).
    """
    try:
        return is_at_least("trl", "0.27.1") or not is_at_least("transformers", "5.0")
    except PackageNotFoundError:
        return True  # TRL is no requirement.


def computes_registered_attention(family: str) -> bool:
    """
    Whether a family, by its `model_type`, computes what a registered attention function returns.

    GPT-2 before transformers 5.0 gives other losses with one, by 0.004 nats for a tiny model of small weights.
    """
    return family != "gpt2" or is_at_least("transformers", "5.0")


def computes_loss_past_the_head(forward: Callable[..., object]) -> bool:
    """
    Whether TRL's SFTTrainer has given a model this forward, which multiplies by the head's weight itself.

    TRL did so for `loss_type="chunked_nll"`, its default then, from 1.4 to 1.14. From 1.15 on its fused head is another
    forward, which scoring takes too.
    """
    return getattr(forward, "__name__", "") == "_chunked_ce_forward"


def load_varlen_attention() -> "Callable[..., torch.Tensor] | None":
    """
    torch's variable-length attention; None where it takes no window, no scale or no grouped heads.

    `torch.nn.attention.varlen` came with 2.10. Its documentation has all three arguments from 2.12 on.
    """
    if not is_at_least("torch", FIRST_TORCH_WITH_VARLEN):
        return None
    from torch.nn.attention.varlen import varlen_attn

    # It returns a second tensor only where one is asked for.
    return cast("Callable[..., torch.Tensor]", varlen_attn)
