"""The command line of `compare.py`."""

import argparse
import math
from collections.abc import Callable
from typing import Any

from quickstart import name_columns

from comparison.arms import parse_arm
from comparison.corruption import parse_corruptions
from miwv_trainer import MIWVConfig


def make_minimum(least: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers that are not smaller."""

    def parse_number(typed: str) -> int:
        if not typed.isdecimal() or int(typed) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, but got {typed}")
        return int(typed)

    return parse_number


def make_number(kind: str, below: float = 1.0) -> Callable[[str], float]:
    """A type for argparse: numbers above 0 and below `below`. `kind` says in an error what must be given."""

    def parse_number(typed: str) -> float:
        try:
            value = float(typed)
        except ValueError:
            value = 0.0
        if not 0 < value < below:
            raise argparse.ArgumentTypeError(f"must be {kind}, but got {typed}")
        return value

    return parse_number


class StoreDistinct(argparse.Action):
    """Stores learning rates, of which no two may be equal in the six digits by which their runs are named."""

    def __call__(self, parser: object, namespace: object, values: Any, option_string: str | None = None) -> None:
        names = [f"{value:g}" for value in values]
        for name in names:
            if names.count(name) > 1:
                raise argparse.ArgumentError(self, f"{name} is given twice; give each learning rate once")
        setattr(namespace, self.dest, values)


def parse_fraction(typed: str) -> float:
    """A type for argparse: what `MIWVConfig` takes as `fraction`."""
    try:
        value = float(typed)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number such as 0.1, but got {typed}") from None
    try:
        return MIWVConfig(fraction=value).fraction
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser; its defaults are those of a comparison of half an hour on two cores."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_data(parser.add_argument_group("data"))
    _add_arms(parser.add_argument_group("what is compared"))
    _add_training(parser.add_argument_group("training and evaluation"))
    return parser


def _add_data(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--model", help="hub name, folder, or folder with a GGUF file (default: SmolLM2-135M-Instruct)")
    add("--dataset", help="hub name, file or folder (default: Python's documentation strings)")
    add("--columns", type=name_columns, help="their names, as in prompt=question,response=answer")
    add("--output", default="comparison", help="folder to write to (default: %(default)s)")
    add(
        "--max-samples",
        type=make_minimum(0),
        default=240,
        help="most samples of pool and held out together; 0: all (default: %(default)s)",
    )
    add("--held-out", type=make_minimum(2), default=60, help="held-out samples of your dataset (default: %(default)s)")
    add("--longest", type=make_minimum(0), default=128, help="longest sample in tokens; 0: any (default: %(default)s)")
    add(
        "--evaluate",
        action="append",
        metavar="DATASET",
        help="another dataset on which every run is evaluated too: its first --held-out samples; may be given several "
        "times",
    )
    add(
        "--corrupt",
        action="append",
        type=parse_corruptions,
        metavar="KIND=SHARE",
        help="spoil a share of the pool: swapped=0.3, truncated=0.2 or duplicated=0.2; may be given several times",
    )
    add(
        "--known",
        type=make_number("a number above 0 and below 1"),
        metavar="SHARE",
        help="first train the model on this share of the pool, one pass, so that it knows a part of it",
    )


def _add_arms(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--arm",
        action="append",
        type=parse_arm,
        metavar='"NAME: KEY=VALUE, ..."',
        help="a configuration of MIWVConfig to compare; may be given several times (default: MIWV and four variants)",
    )
    add("--fraction", type=parse_fraction, default=0.1, help="share that is selected (default: %(default)s)")
    add("--embedder", default="tfidf", help="what finds exemplars (default: %(default)s)")
    add("--rescores", type=make_minimum(1), default=1, help='rounds after the first with rescore_strategy="steps"')
    add("--refine", action="store_true", help="score samples near the threshold again in float32, as `attach` does")


def _add_training(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--epochs",
        type=make_number("a number above 0", math.inf),
        default=3,
        help="epochs over a selection of --fraction (default: %(default)s)",
    )
    add("--batch-size", type=make_minimum(1), default=8, help="samples of a step (default: %(default)s)")
    add(
        "--micro-batch-size",
        type=make_minimum(1),
        help="samples of a forward, by which --batch-size can be divided (default: 2 on a CPU, else the whole batch)",
    )
    add(
        "--learning-rates",
        type=make_number("a learning rate such as 5e-4"),
        nargs="+",
        action=StoreDistinct,
        default=[5e-4],
        metavar="RATE",
        help="with several, every arm is trained at each of them, and compared at each and tuned (default: 5e-4)",
    )
    add("--seeds", type=make_minimum(1), default=3, help="runs of each arm (default: %(default)s)")
    add("--page-only", action="store_true", help="make no further runs; page and picture are of those that there are")
    add("--generations", type=make_minimum(0), default=0, help="held-out prompts to answer (default: %(default)s)")
    add("--max-new-tokens", type=make_minimum(1), default=48, help="longest answer (default: %(default)s)")
