"""Scores of the user's own in arms, as the command line of `miwv` takes them: `module:function` and `scores.npy`."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from miwv_trainer.cli.own_values import load_settings


@dataclass(frozen=True)
class Places:
    """
    Where the pool's samples stand in the user's dataset, of which the comparison takes a part in another order.

    Args:
        dataset: Its name, as it was typed.
        rows: Number of its rows.
        indices: `(N,)` the row of each sample of the pool; of a copy, that of the sample that it is a copy of.
    """

    dataset: str
    rows: int
    indices: np.ndarray

    def take(self, numbers: np.ndarray, name: str) -> np.ndarray:
        """`(N,)` the numbers of the pool's samples, of `(rows,)` numbers."""
        if len(numbers) != self.rows:
            raise ValueError(
                f"`score` is {name!r}, an array of shape {numbers.shape}, but {self.dataset} has {self.rows} rows: "
                "give one number for each row, in their order, also for those that are held out."
            )
        return numbers[self.indices]


def load_own_score(settings: Mapping[str, Any]) -> dict[str, Any]:
    """
    The settings with the function or the array that their `score` names.

    Raises:
        OSError: there is no such file.
        ValueError: it is no array, or a function cannot be found by its name.
    """
    return {**settings, "score": _load(settings["score"])} if has_typed_score(settings) else dict(settings)


def take_own_score(settings: Mapping[str, Any], places: Places | None) -> dict[str, Any]:
    """
    The settings with the function, or with the array's numbers of the pool's samples.

    Raises:
        ValueError: the array has another length than the dataset, or the pool is no dataset of the user's.
    """
    loaded = load_own_score(settings)
    if not isinstance(loaded.get("score"), np.ndarray):
        return loaded
    name = settings["score"]
    if places is None:
        raise ValueError(
            f"`score` is {name!r}, an array, but the pool is Python's documentation strings: give --dataset, of which "
            "it has one number a row."
        )
    return {**loaded, "score": places.take(loaded["score"], name)}


def describe_numbers(settings: Mapping[str, Any]) -> dict[str, str]:
    """What an array holds, as a part of what its arm is known by: its file may be written again."""
    score = load_own_score(settings).get("score")
    if not isinstance(score, np.ndarray):
        return {}
    return {"numbers": hashlib.sha256(np.ascontiguousarray(score).tobytes()).hexdigest()[:16]}


def has_typed_score(settings: Mapping[str, Any]) -> bool:
    """Whether the score is named as a function or a file is."""
    score = settings.get("score")
    return isinstance(score, str) and (":" in score or score.endswith(".npy"))


@cache
def _load(typed: str) -> object:
    return load_settings({"score": typed})["score"]
