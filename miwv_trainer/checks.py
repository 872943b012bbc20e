"""Checks of single values. Each error says what was given, what is allowed and what to do.

They are written out instead of taken from a validation library, because people read these messages far more often than
this file: a message names the argument as it was typed and gives an example of a value that would do.
"""

import math
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import TypeGuard

import numpy as np


def refuse_unknown_keys(given: Iterable[str], allowed: Sequence[str]) -> None:
    """Raises `TypeError` if a name is not among the allowed ones, with the nearest of them as a guess."""
    unknown = [key for key in given if key not in allowed]
    if not unknown:
        return
    guesses = get_close_matches(unknown[0], allowed, n=1)
    hint = f" Did you mean `{guesses[0]}`?" if guesses else ""
    raise TypeError(
        f"Unknown configuration key{'s' if len(unknown) > 1 else ''}: {', '.join(map(repr, unknown))}.{hint} "
        f"Allowed: {', '.join(allowed)}."
    )


def check_argument(call: str, name: str, value: object, kinds: type | tuple[type, ...], what: str) -> None:
    """
    Raises `TypeError` unless an argument of a public function is of its kind: two of them are easily exchanged.

    Args:
        call: How the function is called, such as `"tokenize(dataset, tokenizer)"`.
        what: What the argument must be, in words.
    """
    if not isinstance(value, kinds):
        raise TypeError(explain_argument(call, name, value, what))


def explain_argument(call: str, name: str, value: object, what: str) -> str:
    """The error if an argument of a public function is of another kind than it must be."""
    return f"`{name}` in `{call}` must be {what}, but got {describe_given(value)}."


def describe_given(value: object) -> str:
    """A value in an error: names and numbers as they are, of others the kind: the text of a model fills a screen."""
    if value is None or isinstance(value, str | int | float):
        return repr(value)
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def check_share(name: str, value: object, example: str) -> None:
    """Raises `ValueError` unless the value is a number in (0, 1]."""
    if not _is_number(value) or not 0 < value <= 1:
        raise ValueError(f"`{name}` must be a number above 0 and at most 1 ({example}), but got {value!r}.")


def check_number(name: str, value: object, least: float, most: float = math.inf) -> None:
    """Raises `ValueError` unless the value is a finite number from `least` to `most`, both included."""
    if not _is_number(value) or not least <= value <= most:
        allowed = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"`{name}` must be a number {allowed}, but got {value!r}.")


def check_band(name: str, value: object) -> list[float]:
    """Two quantiles as a new list. Raises `ValueError` unless they ascend within [0, 1]."""
    if isinstance(value, Sequence) and len(value) == 2 and all(map(_is_number, value)):
        low, high = float(value[0]), float(value[1])
        if 0 <= low < high <= 1:
            return [low, high]
    raise ValueError(
        f"`{name}` must be two numbers from 0 to 1, the lower one first ([0, 0.95] leaves the highest 5 % out), "
        f"but got {value!r}."
    )


def check_switch(name: str, value: object) -> None:
    """Raises `ValueError` unless the value is True or False; 0 and 1 are refused as likely mistakes."""
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False, but got {value!r}.")


def check_text(name: str, value: object, meaning: str) -> None:
    """Raises `ValueError` unless the value is None or text that is not empty."""
    if value is not None and not (isinstance(value, str) and value):
        raise ValueError(f"`{name}` must be {meaning} as text, but got {value!r}.")


def _is_number(value: object) -> TypeGuard[float]:
    # True is a number to Python, and NaN compares false with every bound.
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raises `ValueError` unless the value is one of the allowed names."""
    # Looking into a tuple works for any value; a set would raise on a list that was given by mistake.
    if value not in allowed:
        guesses = get_close_matches(value, allowed, n=1) if isinstance(value, str) else []
        hint = f" Did you mean {guesses[0]!r}?" if guesses else ""
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, but got {value!r}.{hint}")


def is_nearly(text: str, name: str) -> bool:
    """
    Whether a text is a mistyped name: one letter more, less or other, or two neighbours exchanged.

    Case, hyphens and underscores do not count.
    """
    first, second = sorted((re.sub("[-_]", "", each.lower()) for each in (text, name)), key=len)
    same = next(
        (place for place, pair in enumerate(zip(first, second, strict=False)) if len(set(pair)) > 1), len(first)
    )
    rest, other = first[same:], second[same:]
    is_exchanged = rest[:2] == other[:2][::-1] and rest[2:] == other[2:]
    return rest == other[1:] or rest[1:] == other[1:] or is_exchanged


def check_whole_number(name: str, value: object, least: int = 1) -> None:
    """Raises `ValueError` unless the value is an `int` of at least `least`; 2.0 is refused."""
    # A float is refused even where it is whole: 0.5 of something was probably meant as a share.
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}, but got {value!r}.")


def check_rescore_steps(strategy: str, steps: object) -> None:
    """Raises `ValueError` unless the number of steps is there exactly where the strategy asks for it."""
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


def check_attention(attention: str, layout: str) -> None:
    """Raises `ValueError` if a way to attend in rows of trees is chosen and there are to be none."""
    if attention != "auto" and layout == "padded":
        raise ValueError(
            f'`attention` is {attention!r}, but it has a meaning in rows of trees only, and `layout` is "padded". '
            "Leave one of the two out."
        )


def check_resampling(selection: str, strategy: str) -> None:
    """Raises `ValueError` unless epochs between two rounds can draw anew from the scores of the first."""
    if selection != "sample":
        raise ValueError(
            f"`resample_each_epoch` draws anew in each epoch, but `selection` is {selection!r}, which takes the same "
            'samples again. Set `selection="sample"`, or leave it out.'
        )
    if strategy != "no":
        raise ValueError(
            f"`resample_each_epoch` draws from the scores of one round, but `rescore_strategy` is {strategy!r}, whose "
            "rounds draw anew themselves. Leave one of the two out."
        )


def explain_more_exemplars(count: int, score: str) -> str:
    """The error if samples are to be scored behind several exemplars by a score that compares with the nearest."""
    return (
        f'`exemplars_per_sample` is {count}, but more than 1 is for `score="influence"`, and `score` is {score!r}, '
        "which compares each sample with its nearest exemplar only. Leave it out, or use that score."
    )


def explain_match_without_source(match: str) -> str:
    """The error if samples of another run are to be matched and none is named."""
    return (
        f"`match` is {match!r}, but it says how the samples of another run are found, and `scores_from` names none. "
        "Leave it out, or name the run's folder."
    )


def explain_source_without_losses(folder: str, score: str) -> str:
    """The error if losses are to be read from another run and the score needs none."""
    return (
        f"`scores_from` is {folder!r}, but `score={score!r}` needs no loss that could be read there. Leave it out, or "
        "use another score."
    )


def explain_band_without_losses(band: Sequence[float], score: str, preset: str | None) -> str:
    """
    The error if `loss_band` is set for a score that measures no losses.

    Args:
        score: The setting that names the score.
        preset: The preset that has set the band, if one has. Somebody who typed it has never heard of the band.
    """
    if preset is not None:
        return (
            f"The `preset` {preset!r} sets `loss_band` to {band}, but {score} makes no forward, so that there are no "
            "losses. Use another score, or leave the preset out and give those of its values that you want, or measure "
            'losses with `extra_losses="zero_shot"`.'
        )
    return (
        f"`loss_band` is {band}, but {score} makes no forward, so that there are no losses. Leave it out, use another "
        'score, or measure losses with `extra_losses="zero_shot"`.'
    )


def check_embedder(embedder: object) -> None:
    """Raises `ValueError` unless the embedder is a name or an array with one line per sample."""
    if isinstance(embedder, str) and embedder:
        return
    # Here and not above: a configuration with the name of an embedder, such as the one whose defaults `miwv --help`
    # shows, is made without torch, which takes seconds to import.
    import torch

    if isinstance(embedder, np.ndarray | torch.Tensor):
        if embedder.ndim == 2 and embedder.shape[1] > 0:
            return
        given = f"an array of shape {tuple(embedder.shape)}"
    elif isinstance(embedder, list | tuple):
        given = f"a {type(embedder).__name__}, which `numpy.asarray` turns into one"
    else:
        given = repr(embedder)[:60]  # of a model, say, the whole text would fill the screen
    raise ValueError(
        "Unknown embedder: `embedder` must be a sentence-transformers name or folder, 'tfidf', 'model', or an array "
        f"of shape (N, d) with one line per sample, but got {given}."
    )
