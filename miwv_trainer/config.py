"""Every knob of the library, checked when it is constructed.

Defaults are the paper's (Jiang et al., AAAI 2026, arXiv 2511.07074) where it names one: the embedder is
BGE-large-en, the score is taken once. The default fraction is the 5 % at which the paper's selection was strongest
on Alpaca.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
import torch

DEFAULT_EMBEDDER = "BAAI/bge-large-en-v1.5"

RescoreStrategy = Literal["no", "epoch", "steps"]
Layout = Literal["auto", "tree", "padded"]


@dataclass
class MIWVConfig:
    """
    What to select and how to score.

    Usable with [`~transformers.HfArgumentParser`]: no name is one of `TrainingArguments` or of TRL's `SFTConfig`.

    Args:
        fraction (`float`, defaults to `0.05`):
            Share of the pool that is selected, in (0, 1]. `floor(fraction * N)` samples, at least one.
        rescore_strategy (`str`, defaults to `"no"`):
            `"no"` scores once, before the first step. `"epoch"` scores again before every later epoch, with the model
            as it then is; `"steps"` after every `rescore_steps` optimizer steps. A full rescore forwards the whole
            pool's tokens about twice in trees, three times in padded rows.
        rescore_steps (`int`, *optional*):
            Optimizer steps from one round to the next, with `rescore_strategy="steps"`. The new selection takes effect
            a few steps later, where no dataloader can have drawn samples yet; round.json says where.
        embedder (`str`, or array of shape `(N, d)`, defaults to `"BAAI/bge-large-en-v1.5"`):
            What decides which samples are similar. Any sentence-transformers name or folder; `"tfidf"` (needs no
            download); `"model"` (the mean of the prompt's last hidden states in the model being trained); or an array
            with one line per sample, in pool order.
        sampler_seed (`int`, *optional*):
            Seed of the order within an epoch. By default the Trainer's `data_seed`, else its `seed`.
        scoring_max_length (`int`, *optional*):
            Longest sequence, in tokens, that is forwarded. By default the model's `max_position_embeddings`.
        tokens_per_batch (`int`, *optional*):
            Upper bound on the tokens of one scoring forward, padding included. One longer row goes alone. By default
            4,096 on a CPU and 32,768 elsewhere, or as much as half of the free memory holds; less for a small pool, so
            that several ranks carry equal work.
        tokens_per_row (`int`, *optional*):
            Upper bound on the tokens of one row of trees. One longer sample behind its exemplar goes alone. Longer rows
            repeat fewer trunks; where rows have masks, they waste more attention on pairs that are masked. By default
            4,096, with masks 1,024 on a CPU and 2,048 elsewhere.
        logits_chunk (`int`, defaults to `256`):
            Number of positions whose logits exist at once.
        layout (`str`, defaults to `"auto"`):
            How samples share a forward: `"padded"` (one sequence a row, sorted by length), or `"tree"` (samples with
            the same exemplar behind one copy of it; two thirds of the tokens, for models with full attention).
            `"auto"` takes trees where the model can, after scoring a few samples both ways.
        refine_near_threshold (`bool`, defaults to `True`):
            Whether the samples near the selection's threshold are scored again in float32 arithmetic, where the model
            computes in lower precision. round.json says how many they were and what they cost.
        allow_identical_exemplars (`bool`, defaults to `False`):
            Whether a copy of a sample may be its exemplar, as in the letter of the paper. Off, because the copy's
            one-shot loss collapses and neither of the two is ever selected.
        scores_dir (`str`, *optional*):
            Folder that receives `miwv/`. By default the Trainer's `output_dir`.

    Raises:
        TypeError: an unknown key.
        ValueError: a value out of range; the message says what was given and what is allowed.
    """

    fraction: float = field(
        default=0.05, metadata={"help": "Share of the pool that is selected, above 0 and at most 1."}
    )
    rescore_strategy: RescoreStrategy = field(
        default="no",
        metadata={
            "help": "'no' scores once, 'epoch' again before every later epoch, 'steps' after every rescore_steps steps."
        },
    )
    rescore_steps: int | None = field(
        default=None, metadata={"help": "Optimizer steps between rounds, with rescore_strategy 'steps'."}
    )
    # An array is welcome too, but HfArgumentParser wants one plain type.
    embedder: str = field(
        default=DEFAULT_EMBEDDER,
        metadata={"help": "A sentence-transformers name or folder, 'tfidf', or 'model'."},
    )
    sampler_seed: int | None = field(
        default=None, metadata={"help": "Seed of the order within an epoch; by default the Trainer's."}
    )
    scoring_max_length: int | None = field(
        default=None, metadata={"help": "Longest sequence in tokens; by default the model's context."}
    )
    tokens_per_batch: int | None = field(
        default=None, metadata={"help": "Tokens of one scoring forward; by default what the free memory holds."}
    )
    tokens_per_row: int | None = field(
        default=None, metadata={"help": "Tokens of one row of trees; by default what pays on the device."}
    )
    logits_chunk: int = field(default=256, metadata={"help": "Positions whose logits exist at once."})
    layout: Layout = field(default="auto", metadata={"help": "How samples share a forward."})
    refine_near_threshold: bool = field(
        default=True,
        metadata={"help": "Whether samples near the threshold are scored again in float32, under lower precision."},
    )
    allow_identical_exemplars: bool = field(
        default=False, metadata={"help": "Whether a copy of a sample may be its exemplar."}
    )
    scores_dir: str | None = field(
        default=None, metadata={"help": "Folder that receives miwv/; by default the Trainer's output_dir."}
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> "MIWVConfig":
        # The generated __init__ would name an unknown key but not the known ones.
        _refuse_unknown_keys(cls, kwargs)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)
        _check_choice("rescore_strategy", self.rescore_strategy, get_args(RescoreStrategy))
        _check_rescore_steps(self.rescore_strategy, self.rescore_steps)
        _check_choice("layout", self.layout, get_args(Layout))
        _check_embedder(self.embedder)
        for name in ("refine_near_threshold", "allow_identical_exemplars"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be True or False, but got {getattr(self, name)!r}.")
        if self.scores_dir is not None and not (isinstance(self.scores_dir, str) and self.scores_dir):
            raise ValueError(f"`scores_dir` must be a folder's path as text, but got {self.scores_dir!r}.")
        _check_whole_number("logits_chunk", self.logits_chunk)
        for name in ("tokens_per_batch", "tokens_per_row", "scoring_max_length"):
            if getattr(self, name) is not None:
                _check_whole_number(name, getattr(self, name))
        if self.sampler_seed is not None:
            _check_whole_number("sampler_seed", self.sampler_seed, least=0)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MIWVConfig":
        """A configuration from a mapping of names to values. Raises `TypeError` on an unknown name."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON can hold them; an embedding array is described by its shape."""
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "embedder"}
        return {**shown, "embedder": describe_embedder(self.embedder)}


def embeds_text(embedder: Any) -> bool:
    """Whether an embedder looks at the instructions as text."""
    return isinstance(embedder, str) and embedder != "model"


def describe_embedder(embedder: Any) -> str:
    """The embedder's name, or `"array of shape (N, d)"`."""
    return embedder if isinstance(embedder, str) else f"array of shape {tuple(embedder.shape)}"


def _refuse_unknown_keys(cls: type, values: Mapping[str, Any]) -> None:
    allowed = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    unknown = [key for key in values if key not in allowed]
    if not unknown:
        return
    guesses = get_close_matches(unknown[0], allowed, n=1)
    hint = f" Did you mean `{guesses[0]}`?" if guesses else ""
    raise TypeError(
        f"Unknown configuration key{'s' if len(unknown) > 1 else ''}: {', '.join(map(repr, unknown))}.{hint} "
        f"Allowed: {', '.join(allowed)}."
    )


def _check_fraction(fraction: Any) -> None:
    is_number = isinstance(fraction, Real) and not isinstance(fraction, bool)
    if not is_number or math.isnan(fraction) or not 0 < fraction <= 1:
        raise ValueError(
            f"`fraction` must be a number above 0 and at most 1 (0.05 keeps 5 % of the pool), but got {fraction!r}."
        )


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, but got {value!r}.")


def _check_whole_number(name: str, value: Any, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}, but got {value!r}.")


def _check_rescore_steps(strategy: str, steps: Any) -> None:
    if strategy == "steps" and steps is None:
        raise ValueError(
            '`rescore_strategy="steps"` needs `rescore_steps`, the optimizer steps from one round to the next.'
        )
    if strategy != "steps" and steps is not None:
        raise ValueError(
            f'`rescore_steps` is {steps!r}, but it has a meaning with `rescore_strategy="steps"` only, and that is '
            f"{strategy!r}. Leave one of the two out, or set both."
        )
    if steps is not None:
        _check_whole_number("rescore_steps", steps)


def _check_embedder(embedder: Any) -> None:
    if isinstance(embedder, str) and embedder:
        return
    is_array = isinstance(embedder, np.ndarray | torch.Tensor)
    if is_array and embedder.ndim == 2 and embedder.shape[1] > 0:
        return
    given = f"an array of shape {tuple(embedder.shape)}" if is_array else repr(embedder)[:60]
    if isinstance(embedder, list | tuple):
        given = f"a {type(embedder).__name__}, which `numpy.asarray` turns into one"
    raise ValueError(
        "Unknown embedder: `embedder` must be a sentence-transformers name or folder, 'tfidf', 'model', or an array "
        f"of shape (N, d) with one line per sample, but got {given}."
    )
