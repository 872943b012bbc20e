"""The arms of a comparison: configurations of `MIWVConfig` by name, and what they are held against."""

import argparse
import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from comparison.own_scores import Places, load_own_score, take_own_score
from miwv_trainer import MIWVConfig

FULL, RANDOM, LONGEST, UNTRAINED = "full set", "random", "longest", "untrained"
# Set by the comparison itself.
RESERVED = ("sampler_seed", "scores_dir")
DEFAULT = {
    "MIWV": {},
    "MIWV rescored": {"rescore_strategy": "steps"},
    "MIWV by tokens": {"selection_budget": "tokens"},
    "lowest MIWV": {"score": "low_miwv"},
    "highest one-shot loss": {"score": "one_shot_loss"},
}


@dataclass(frozen=True)
class Arm:
    """
    A name and the fields of `MIWVConfig` that were given for it. The full set has none.

    Args:
        target: Tokens, a trained one counted three times, that a random draw may cost. None: the steps of all arms.
        passes: How often such a draw sees each of its samples. None: as often as arms of `--fraction` do.
        is_draw: Whether the comparison itself made it, as the random draws of its size. A random draw that the user
            typed is an arm like any other.
    """

    name: str
    settings: dict[str, Any] | None
    target: int | None = None
    passes: float | None = None
    is_draw: bool = field(default=False, compare=False)

    @property
    def slug(self) -> str:
        """The name as a part of a file's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def is_baseline(self) -> bool:
        """Whether it is there to hold others against: the full set, or a random draw that the comparison made."""
        # No arm of the user's can have the name of the random draws.
        return self.settings is None or self.target is not None or self.is_draw or self.name == RANDOM

    def find_size(self, fraction: float | None = None) -> tuple[float | None, str]:
        """
        How much is selected, also where a preset says it. Arms of one size are held against the same draws.

        Args:
            fraction: What arms have that give none.
        """
        given = self.settings or {}
        own = given.get("fraction", fraction)
        return None if own is None else float(own), read_settings(given).selection_budget


def parse_arm(typed: str) -> Arm:
    """
    An arm from `"name: key=value, key=value"`.

    Values are numbers, `true`, `false`, `none`, lists in brackets, or text, quoted or not. A `score` may be the name of
    a function or of an array's file, and stays that name.

    Raises:
        argparse.ArgumentTypeError: there is no name, a part is no `key=value`, a key is unknown or reserved, or its
            value is none that `MIWVConfig` takes. The message names arm and key.
    """
    name, separator, rest = (part.strip() for part in typed.partition(":"))
    if not separator or not name or not re.search(r"[a-z0-9]", name.lower()):
        raise argparse.ArgumentTypeError(f'must be "name: key=value, ...", but got {typed!r}')
    settings: dict[str, Any] = {}
    for part in split_outside_brackets(rest):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not key:
            raise argparse.ArgumentTypeError(f"arm {name!r}: {part!r} is no key=value")
        if key in settings:
            raise argparse.ArgumentTypeError(f"arm {name!r}: {key!r} is given twice")
        if key in RESERVED:
            raise argparse.ArgumentTypeError(f"arm {name!r}: {key!r} is set by the comparison itself; leave it out")
        settings[key] = parse_value(value)
    try:
        read_settings(settings)
    except (OSError, TypeError, ValueError) as error:  # it names the key, what was given and what is allowed
        raise argparse.ArgumentTypeError(f"arm {name!r}: {error}") from error
    return Arm(name, settings)


def split_outside_brackets(typed: str) -> list[str]:
    """The parts between commas that are not within brackets or quotes."""
    parts = re.findall(r"""(?:\[[^\]]*\]|"[^"]*"|'[^']*'|[^,\["'])+""", typed)
    return [part.strip() for part in parts if part.strip()]


def parse_value(typed: str) -> object:
    """What was typed as a value of Python: JSON's words and Python's are both understood, all else is text."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if typed.lower() in words:
        return words[typed.lower()]
    try:
        return ast.literal_eval(typed)
    except (ValueError, SyntaxError):
        return typed


def make_config(arm: Arm, common: dict[str, Any], rescore_steps: int, places: Places | None = None) -> MIWVConfig:
    """
    The configuration of an arm.

    Args:
        common: What all arms have that do not say otherwise.
        rescore_steps: What an arm has that is rescored by steps and does not say otherwise.
        places: Of the samples in the dataset; None if it is none of the user's.

    Raises:
        SystemExit: its values exclude each other, or what all arms have, or do not fit the dataset; the message names
            the arm.
    """
    try:
        settings = {**common, **take_own_score(arm.settings or {}, places)}
        return MIWVConfig(**fill_settings(settings, rescore_steps))
    except (TypeError, ValueError) as error:
        typed = ", ".join(f"{key}={json.dumps(value)}" for key, value in (arm.settings or {}).items())
        raise SystemExit(f'--arm "{arm.name}: {typed}": {error}') from error


def read_settings(settings: dict[str, Any]) -> MIWVConfig:
    """What the settings of an arm say by themselves, before it is known which pool they are for."""
    return MIWVConfig(**fill_settings(load_own_score(settings), rescore_steps=1))


def fill_settings(settings: dict[str, Any], rescore_steps: int) -> dict[str, Any]:
    """The settings with the steps between two rounds, where they are needed."""
    return {"rescore_steps": rescore_steps, **settings} if settings.get("rescore_strategy") == "steps" else settings


def list_arms(given: Sequence[Arm] | None, fraction: float | None = None) -> list[Arm]:
    """
    The full set, random draws, the longest responses, and the given arms; each other size has random draws too.

    Args:
        fraction: What arms have that give none.

    Raises:
        SystemExit: two arms have one name, or the name of an arm that is always there.
    """
    chosen = list(given) if given else [Arm(name, settings) for name, settings in DEFAULT.items()]
    always = [Arm(FULL, None), make_random(None, MIWVConfig.selection_budget), Arm(LONGEST, {"score": LONGEST})]
    usual = always[0].find_size(fraction)
    sizes = dict.fromkeys(arm.find_size(fraction) for arm in chosen)
    always += [make_random(None if own == usual[0] else own, budget) for own, budget in sizes if (own, budget) != usual]
    arms = always + chosen
    slugs = [arm.slug for arm in arms]
    for arm in arms:
        if slugs.count(arm.slug) > 1 or arm.slug == UNTRAINED:
            raise SystemExit(f"Two arms are named {arm.name!r} (or {arm.slug!r}, as a file). Give one another name.")
    return arms


def make_random(fraction: float | None, budget: str) -> Arm:
    """Random draws, of another size than the default one if one is given."""
    name: str = RANDOM
    settings: dict[str, Any] = {"score": RANDOM}
    if fraction is not None:
        name, settings = f"{name}, {100 * fraction:g} %", {**settings, "fraction": fraction}
    if budget != MIWVConfig.selection_budget:
        name, settings = f"{name}, equal {budget}", {**settings, "selection_budget": budget}
    return Arm(name, settings, is_draw=True)


def find_random(arm: Arm, arms: Sequence[Arm], fraction: float | None = None) -> Arm:
    """The random draws, of those that the comparison made, that select as much as an arm does."""
    draws = [other for other in arms if other.is_baseline and other.target is None and other.settings is not None]
    size = arm.find_size(fraction)
    return next((other for other in draws if other.find_size(fraction) == size), draws[0])
