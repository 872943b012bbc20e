"""Scores of the user's own: how a function and an array are named, and checks of the numbers that they give.

A function is known by its module and its qualified name, because a fingerprint must be the same in the process that
resumes a run. So a lambda, which has neither, is refused.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np

from miwv_trainer.foreign_errors import join_lines

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
GivenScores: TypeAlias = "np.ndarray | torch.Tensor"  # `(N,)`
# From what is known of N samples (`Measured`) to `(N,)` scores.
ScoreFunction = Callable[[Any], np.ndarray]
_warned: set[str] = set()


@dataclass(frozen=True)
class StoredScore:
    """
    Stands in the configuration of a stored round for a function or an array, whose values lie in the round.

    Args:
        name: What the round's file calls it.
    """

    name: str


def is_function(score: object) -> TypeGuard[ScoreFunction]:
    return isinstance(score, FunctionType | BuiltinFunctionType | MethodType)


def is_array(score: object) -> "TypeGuard[GivenScores]":
    if isinstance(score, str):
        return False
    # Here and not above: a configuration with the name of a score is made without torch, which takes seconds to import.
    import torch

    return isinstance(score, np.ndarray | torch.Tensor)


def check_own_score(score: object, names: tuple[str, ...]) -> None:
    """Raises `ValueError` unless a score that is no name is a function with a name, or an array of one dimension."""
    if isinstance(score, StoredScore) or (is_array(score) and score.ndim == 1):
        return
    if is_function(score) and "<lambda>" not in score.__qualname__:
        return
    if is_function(score):
        given = "a lambda, which has no name by which a resumed run could know it: define it with `def`"
    elif is_array(score):
        given = f"an array of shape {tuple(score.shape)}"
    elif isinstance(score, Collection) and not isinstance(score, str | Mapping | Set):  # A list, a Series of pandas.
        given = f"a {type(score).__name__}, which `numpy.asarray` turns into an array"
    elif callable(score):
        given = f"an object of type {type(score).__name__}: call it in a function that is defined with `def`"
    else:
        given = join_lines(repr(score))[:60]
    raise ValueError(
        f"`score` must be one of {', '.join(map(repr, names))}, a function, or an array of shape (N,) with one number "
        f"a sample, but got {given}."
    )


def describe_score(score: object) -> str:
    """The score's name; of a function its module and qualified name, of an array its shape."""
    if isinstance(score, StoredScore):
        return score.name
    if is_array(score):
        return f"array of shape {tuple(score.shape)}"
    return f"{score.__module__}:{score.__qualname__}" if is_function(score) else str(score)


def validate_scores(values: object, count: int, name: str) -> np.ndarray:
    """
    Returns `(count,)` float32 scores, NaN where a sample has none.

    Args:
        values: What the user gave, or what the user's function has returned.
        count: Samples of the pool.
        name: Where they come from, for errors.

    Raises:
        ValueError: they are of another shape, no numbers, infinite, or too large for float32.
    """
    array = _to_numpy(values)
    if array.shape != (count,) or array.dtype.kind not in "fiub":
        raise ValueError(
            f"{name} must give one number for each of the pool's {count} samples, an array of shape ({count},), but "
            f"gave shape {array.shape} of {array.dtype}."
        )
    with np.errstate(over="ignore"):
        scores = array.astype(np.float32)
    infinite = int(np.isinf(scores).sum())
    if infinite:
        raise ValueError(
            f"{name} gave infinity, or numbers that float32 cannot hold, for {infinite} of {count} samples. Give NaN "
            "for a sample that is not to be selected."
        )
    distinct, kept = (len(np.unique(each[~np.isnan(scores)])) for each in (array, scores))
    # A function is called several times in a round; one warning is enough.
    if kept < distinct and name not in _warned:
        _warned.add(name)
        # scores.parquet stores float32. Times in seconds, say, would tie in groups of 128.
        logger.warning(
            "%s gave %d distinct numbers, of which float32 tells %d apart: samples that it does not are ranked in the "
            "order of the pool. Ranks instead of the numbers keep the order.", name, distinct, kept,
        )  # fmt: skip
    return scores


def _to_numpy(values: object) -> np.ndarray:
    """As an array, with NaN for what a masked array masks. NumPy knows neither bfloat16 nor gradients."""
    import torch

    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() and values.itemsize < 4 else values).numpy()
    if isinstance(values, np.ma.MaskedArray) and values.dtype.kind in "fiub":
        return np.asarray(np.ma.filled(values.astype(np.float64), np.nan))
    return np.asarray(values)
