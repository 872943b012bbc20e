"""Checks of single values: what was given, what is allowed, what to do."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from numbers import Real
from typing import Any

import numpy as np
import torch


def refuse_unknown_keys(cls: type, values: Mapping[str, Any]) -> None:
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


def check_share(name: str, value: Any, example: str) -> None:
    if not _is_number(value) or not 0 < value <= 1:
        raise ValueError(f"`{name}` must be a number above 0 and at most 1 ({example}), but got {value!r}.")


def check_number(name: str, value: Any, least: float, most: float = math.inf) -> None:
    if not _is_number(value) or not least <= value <= most:
        allowed = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"`{name}` must be a number {allowed}, but got {value!r}.")


def check_band(name: str, value: Any) -> list[float]:
    """Two quantiles as a list."""
    is_pair = isinstance(value, Sequence) and len(value) == 2 and all(map(_is_number, value))
    if not is_pair or not 0 <= value[0] < value[1] <= 1:
        raise ValueError(
            f"`{name}` must be two numbers from 0 to 1, the lower one first ([0, 0.95] leaves the highest 5 % out), "
            f"but got {value!r}."
        )
    return [float(each) for each in value]


def check_switch(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False, but got {value!r}.")


def check_text(name: str, value: Any, meaning: str) -> None:
    if value is not None and not (isinstance(value, str) and value):
        raise ValueError(f"`{name}` must be {meaning} as text, but got {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, but got {value!r}.")


def check_whole_number(name: str, value: Any, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}, but got {value!r}.")


def check_rescore_steps(strategy: str, steps: Any) -> None:
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
        check_whole_number("rescore_steps", steps)


def check_embedder(embedder: Any) -> None:
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
