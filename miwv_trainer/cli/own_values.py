"""What the command line takes for objects of Python: arrays from `.npy` files, functions by their names."""

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from inspect import getmembers, isfunction
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from miwv_trainer.foreign_errors import describe_error
from miwv_trainer.own_scores import ScoreFunction, is_function


def load_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """
    The settings that were typed, with the arrays and the function that names stand for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no array, or a function cannot be found by its name.
    """
    loaded = dict(settings)
    if "score" in loaded:
        loaded["score"] = _load_score(loaded["score"])
    if loaded.get("embedder", "").endswith(".npy"):
        loaded["embedder"] = _load_array("embedder", loaded["embedder"])
    return loaded


def _load_score(typed: str) -> str | np.ndarray | ScoreFunction:
    if typed.endswith(".npy"):
        return _load_array("score", typed)
    return _load_function(typed) if ":" in typed else typed


def _load_array(setting: str, name: str) -> np.ndarray:
    if not Path(name).is_file():
        raise FileNotFoundError(f"`{setting}` is {name!r}, but there is no such file.")
    try:
        # An array of Python objects would run code of whoever wrote the file.
        array: np.ndarray = np.load(name, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} could not be read as an array of numbers: give a file that `numpy.save` wrote."
        ) from error
    return array


def _load_function(typed: str) -> ScoreFunction:
    """The function that `package.module:name` stands for, the name by which a round calls it too."""
    place, _, name = typed.partition(":")
    # A console script begins without the current folder, where `python -m miwv_trainer` finds modules.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = import_module(place)
    # Whatever the lines of the user's module raise.
    except Exception as error:
        raise ValueError(
            f"`score` is {typed!r}, but the module {place!r} could not be imported ({describe_error(error)}). "
            "Give package.module:function, with a module of the current folder or of an installed package."
        ) from error
    try:
        found = attrgetter(name)(module)
    except AttributeError as error:
        raise ValueError(f"`score` is {typed!r}, but {place} has no {name!r}. {_list_functions(module)}") from error
    if not is_function(found):
        raise ValueError(
            f"`score` is {typed!r}, which is no function but of type {type(found).__name__}. {_list_functions(module)}"
        )
    return found


def _list_functions(module: ModuleType) -> str:
    names = [name for name, each in getmembers(module, isfunction) if each.__module__ == module.__name__]
    return f"Its functions: {', '.join(names)}." if names else "It defines no function."
