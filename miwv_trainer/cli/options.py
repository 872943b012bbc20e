"""The options of the command `miwv`: how they are parsed, and into what.

What `MIWVConfig` has a field for is described there: its option takes help, choices and default from the field. An
option that was not typed is missing from the parsed result, so that a preset or a stored round replaces only values
that the user did not type.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from miwv_trainer.choices import CHOICES, DTYPES, SELECTION_FIELDS
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.columns import list_formats, parse_names
from miwv_trainer.export.destination import FORMATS, Format
from miwv_trainer.version import __version__

DEFAULT_OUTPUT = "miwv-output"
ARRAY_FILE = "An array is the name of a `.npy` file."
FIELDS = {field.name: field for field in fields(MIWVConfig)}


# How the pool is scored: options of `miwv score` alone, called as their fields are.
SCORING_FIELDS = ("exemplars_per_sample", "tokens_per_batch", "tokens_per_row", "logits_chunk")


def name_option(name: str) -> str:
    """The option that sets a field: `--loss-band` sets `loss_band`."""
    return "--" + name.replace("_", "-")


# What errors of the library call by the names of fields, and how it is typed. Some options are shorter than the field.
OPTIONS = {
    "embedder": "--embedder",
    "scoring_max_length": "--max-length",
    "refine_near_threshold=False": "--no-refine",
    "sampler_seed": "--seed",
    **{name: name_option(name) for name in (*SCORING_FIELDS, "scores_from", "match", "preset", *SELECTION_FIELDS)},
}


@dataclass(frozen=True)
class ScoreOptions:
    """
    What was typed after `miwv score`.

    Args:
        columns: The dataset's own names of what is read, such as `{"prompt": "question", "response": "answer"}`.
        settings: The fields of `MIWVConfig` that were typed, by name. A score may be the name of a function, and a
            score or an embedder that of a `.npy` file.
    """

    model: str
    dataset: str
    columns: dict[str, str] | None
    output: str
    dtype: str | None
    max_samples: int | None
    settings: dict[str, Any]


@dataclass(frozen=True)
class SelectOptions:
    """
    What was typed after `miwv select`.

    Args:
        scores: The folder that `miwv score` or a Trainer wrote to.
        columns: The dataset's own names of what is read.
        settings: The fields of `MIWVConfig` that were typed, by name; `fraction` always is.
        typed: The whole command line, for the dataset card.
    """

    scores: str
    dataset: str | None
    columns: dict[str, str] | None
    format: Format | None
    to: str | None
    with_scores: bool
    push_to_hub: str | None
    private: bool
    settings: dict[str, Any]
    typed: Sequence[str]


@dataclass(frozen=True)
class ReportOptions:
    """
    What was typed after `miwv report`.

    Args:
        columns: The dataset's own names of what is read.
    """

    run_folder: str
    dataset: str | None
    columns: dict[str, str] | None


class OptionParser(argparse.ArgumentParser):
    """
    Tells what is wrong with the options in one line, as every other error of `miwv` is told.

    argparse prints the usage before it: 40 lines for `miwv score`, after which the line was overlooked.
    """

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"miwv: {message}. `{self.prog} --help` lists the options.\n")


def parse_options(typed: Sequence[str]) -> ScoreOptions | SelectOptions | ReportOptions:
    """
    Parses the words after `miwv`.

    Raises:
        SystemExit: with status 2 for words that no subcommand takes, with 0 after `--help`; argparse has told which.
    """
    parsed = vars(make_parser().parse_args(typed))
    # argparse gives one flat namespace, in which a field of the configuration stands beside the command's own options.
    command = parsed.pop("command")
    settings = {name: parsed.pop(name) for name in FIELDS if name in parsed}
    if command == "score":
        return ScoreOptions(**parsed, settings=settings)
    if command == "select":
        return SelectOptions(**parsed, settings=settings, typed=typed)
    return ReportOptions(**parsed)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all three subcommands; what it parses has the subcommand's name as `command`."""
    parser = OptionParser(
        prog="miwv", description="Score instruction samples by Model Instruction Weakness Value, and select."
    )
    parser.add_argument("--version", action="version", version=f"miwv_trainer {__version__}")
    commands = parser.add_subparsers(required=True, dest="command", metavar="{score,select,report}")
    add_score_options(commands.add_parser("score", help="score a pool with a model and select the top fraction"))
    add_select_options(
        commands.add_parser(
            "select",
            help="select another fraction of scores that exist, or with other guards",
            description="Selects from the last round, as it was selected except for what is given here.",
        )
    )
    add_report_options(commands.add_parser("report", help="show the rounds of a run"))
    return parser


def add_score_options(parser: argparse.ArgumentParser) -> None:
    """The options of `miwv score`."""
    parser.add_argument("--model", required=True, help="hub name, folder, or folder with a GGUF file")
    parser.add_argument(
        "--dataset",
        required=True,
        help="hub name, or a JSON, JSON Lines, CSV or Parquet file, or a folder of them; its columns: "
        f"{list_formats()}; docs/formats.md has an example of each",
    )
    add_columns(
        parser.add_argument,
        "which columns are read, if theirs are other names: prompt=...,response=..., or messages=..., or "
        "chosen=...,rejected=...; and where they have a column: input, system, history, tools, documents, "
        "chat_template_kwargs",
    )
    parser.add_argument("--output", default=DEFAULT_OUTPUT, help="folder to write to (default: %(default)s)")
    parser.add_argument("--dtype", type=choose_from(DTYPES), choices=DTYPES, help="default: as the model was saved")
    parser.add_argument("--max-samples", type=parse_count, help="score the first so many samples only")
    parser.add_argument(
        "--no-refine",
        dest="refine_near_threshold",
        action="store_false",
        default=argparse.SUPPRESS,
        help=f"sets `refine_near_threshold` to False: {describe('refine_near_threshold')}",
    )
    for name in ("fraction", "scoring_max_length", *SCORING_FIELDS, "layout", "attention"):
        add_setting(parser.add_argument, name, shows_default=True)
    add_setting(parser.add_argument, "embedder", shows_default=True, more=ARRAY_FILE)
    add_setting(parser.add_argument, "sampler_seed")
    add_setting(parser.add_argument, "scores_from")
    add_setting(parser.add_argument, "match", shows_default=True)
    group = parser.add_argument_group("what is selected, and how it is guarded")
    for name in list_selection_fields():
        add_setting(group.add_argument, name, shows_default=True)


def add_select_options(parser: argparse.ArgumentParser) -> None:
    """The options of `miwv select`."""
    parser.add_argument(
        "--scores", required=True, metavar="FOLDER", help="the folder that `miwv score` or a Trainer wrote to"
    )
    add_setting(parser.add_argument, "fraction", is_required=True)
    parser.add_argument("--dataset", help="the pool that was scored; without it, indices are printed")
    add_columns(parser.add_argument, "how the columns of a Trainer's dataset are named, as in `miwv score`")
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--format",
        type=choose_from(FORMATS),
        choices=FORMATS,
        help="JSON Lines, Parquet, or a folder with a dataset card that `load_dataset` reads (default: dataset with "
        "--push-to-hub, parquet if PATH ends in .parquet, else jsonl)",
    )
    group.add_argument(
        "--to",
        "--output",
        metavar="PATH",
        help="file or folder to write (default: selected.jsonl, selected.parquet or selected/ in FOLDER)",
    )
    group.add_argument("--with-scores", action="store_true", help="add each sample's number, losses, MIWV and score")
    group.add_argument("--push-to-hub", metavar="USER/NAME", help="upload the folder as a dataset")
    group.add_argument("--private", action="store_true", help="a dataset that --push-to-hub makes is private")
    group = parser.add_argument_group("what is selected, and how it is guarded")
    for name in list_selection_fields():
        if name != "extra_losses":  # `miwv score` measures them; a selection from stored scores cannot.
            add_setting(group.add_argument, name)


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """The options of `miwv report`."""
    parser.add_argument("--run", dest="run_folder", required=True, metavar="OUTPUT", help="the folder of the run")
    parser.add_argument("--dataset", help="the pool that was scored, to show its prompts")
    add_columns(parser.add_argument, "how the columns of a Trainer's dataset are named, as in `miwv score`")


def add_columns(add_argument: Callable[..., argparse.Action], description: str) -> None:
    """Adds the option that names a dataset's columns."""
    add_argument("--columns", type=parse_columns, metavar="NAME=COLUMN,...", help=description)


def list_selection_fields() -> list[str]:
    """The fields that decide what is selected, in the order of the configuration."""
    return [name for name in FIELDS if name in ("preset", *SELECTION_FIELDS)]


def add_setting(
    add_argument: Callable[..., argparse.Action],
    name: str,
    shows_default: bool = False,
    is_required: bool = False,
    more: str = "",
) -> None:
    """
    Adds the option that sets a field of `MIWVConfig`.

    Args:
        add_argument: The method of the parser, or of the group of options, that the option is added to.
        shows_default: Whether the field's default is in force where the option is not typed.
        more: What the help says after the field's description.
    """
    hint, default = get_type_hints(MIWVConfig)[name], FIELDS[name].default
    is_pair = get_origin(hint) is list  # the only lists are bands: two quantiles
    kind: Callable[[str], object] = next((kind for kind in (int, float) if kind in (hint, *get_args(hint))), str)
    if name == "score":
        kind, more = parse_score, f"One of {', '.join(CHOICES[name])}; or a function, package.module:name. {ARRAY_FILE}"
    choices = CHOICES.get(name) if kind is str else None
    if choices:
        kind = choose_from(choices)
    parts = [describe(name), more]
    if shows_default and default is not None and default is not MISSING:
        parts.append(f"(default: {default})")
    option = OPTIONS.get(name, name_option(name))
    # `dest` is the field's name, and argparse would show that where the option is called otherwise.
    shown = None if choices else option.lstrip("-").replace("-", "_").upper()
    add_argument(
        option,
        dest=name,
        default=argparse.SUPPRESS,
        required=is_required,
        type=kind,
        choices=choices,
        nargs=2 if is_pair else None,
        metavar=("LOW", "HIGH") if is_pair else shown,
        help=" ".join(filter(None, parts)).replace("%", "%%"),  # argparse formats help with %
    )


def describe(name: str) -> str:
    """The first sentence of a field's description; empty under `python -OO`, which removes docstrings."""
    return FIELDS[name].metadata.get("help", "")


def parse_score(text: str) -> str:
    """The name of a score, of a function or of a file. Raises `argparse.ArgumentTypeError` for anything else."""
    names = CHOICES["score"]
    if text in names or ":" in text or text.endswith(".npy"):
        return text
    raise argparse.ArgumentTypeError(
        f"must be one of {', '.join(names)}, a function as package.module:name, or the name of a .npy file, but got "
        f"{text!r}{guess_name(text, names)}"
    )


def choose_from(names: Sequence[str]) -> Callable[[str], str]:
    """Parses one of a few names. argparse's own error for another one has no guess."""

    def parse(text: str) -> str:
        if text in names:
            return text
        raise argparse.ArgumentTypeError(
            f"must be one of {', '.join(names)}, but got {text!r}{guess_name(text, names)}"
        )

    return parse


def guess_name(text: str, names: Sequence[str]) -> str:
    """The nearest of the names, in words; empty if none is near."""
    return next((f" (did you mean {each}?)" for each in get_close_matches(text, names, n=1)), "")


def parse_columns(text: str) -> dict[str, str]:
    """The columns that are read, by name. Raises `argparse.ArgumentTypeError` for anything else."""
    try:
        return parse_names(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_count(text: str) -> int:
    """A whole number of at least 1. Raises `argparse.ArgumentTypeError` for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but got {text}")
    return int(text)
