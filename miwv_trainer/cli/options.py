"""The options of the command `miwv`."""

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from miwv_trainer.config import CHOICES, DEFAULT_EMBEDDER, SELECTION_FIELDS, Layout, MIWVConfig
from miwv_trainer.data.models import DTYPES
from miwv_trainer.export.destination import FORMATS

DEFAULT_OUTPUT = "miwv-output"


def option_of(name: str) -> str:
    return "--" + name.replace("_", "-")


# Where an option is called otherwise than what it configures.
OPTIONS = {
    "scoring_max_length": "--max-length",
    "refine_near_threshold=False": "--no-refine",
    "sampler_seed": "--seed",
    **{
        name: option_of(name)
        for name in ("tokens_per_batch", "tokens_per_row", "logits_chunk", "preset", *SELECTION_FIELDS)
    },
}
Command = Callable[[argparse.Namespace], None]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but got {value}")
    return value


def make_parser(score: Command, select: Command, report: Command) -> argparse.ArgumentParser:
    """The parser; what it parses has the function of its subcommand as `run`."""
    parser = argparse.ArgumentParser(
        prog="miwv", description="Score instruction samples by Model Instruction Weakness Value, and select."
    )
    commands = parser.add_subparsers(required=True, metavar="{score,select,report}")

    scoring = commands.add_parser("score", help="score a pool with a model and select the top fraction")
    scoring.set_defaults(run=score)
    scoring.add_argument("--model", required=True, help="hub name, folder, or folder with a GGUF file")
    scoring.add_argument("--dataset", required=True, help="hub name, or a JSON, JSON Lines, CSV or Parquet file")
    scoring.add_argument("--output", default=DEFAULT_OUTPUT, help="folder to write to (default: %(default)s)")
    scoring.add_argument(
        "--fraction", type=float, default=MIWVConfig.fraction, help="share that is selected (default: %(default)s)"
    )
    scoring.add_argument(
        "--embedder",
        default=DEFAULT_EMBEDDER,
        help="sentence-transformers name or folder, tfidf, model, or a .npy file (default: %(default)s)",
    )
    scoring.add_argument("--dtype", choices=list(DTYPES), help="default: as the model was saved")
    scoring.add_argument("--max-samples", type=_positive, help="score the first so many samples only")
    scoring.add_argument("--max-length", type=int, help="longest sequence in tokens (default: the model's context)")
    scoring.add_argument(
        "--tokens-per-batch",
        type=int,
        help="tokens of one forward, padding included (default: what the free memory holds)",
    )
    scoring.add_argument(
        "--tokens-per-row",
        type=int,
        help="tokens of one row in the tree layout (default: what pays on the device)",
    )
    scoring.add_argument(
        "--no-refine",
        dest="refine_near_threshold",
        action="store_false",
        help="do not score the samples near the threshold again in float32, under lower precision",
    )
    scoring.add_argument(
        "--logits-chunk",
        type=int,
        default=MIWVConfig.logits_chunk,
        help="positions whose logits exist at once (default: %(default)s)",
    )
    scoring.add_argument(
        "--layout",
        choices=list(get_args(Layout)),
        default=MIWVConfig.layout,
        help="how samples share a forward: tree (fewest tokens), padded (any model), or whichever the model takes "
        "(default: %(default)s)",
    )

    scoring.add_argument("--seed", type=int, help="of random scores (default: 0)")
    _add_selection_options(scoring)

    selecting = commands.add_parser(
        "select",
        help="select another fraction of scores that exist, or with other guards",
        description="Selects from the last round, as it was selected except for what is given here.",
    )
    selecting.set_defaults(run=select)
    selecting.add_argument("--scores", required=True, metavar="OUTPUT", help="the folder `miwv score` wrote to")
    selecting.add_argument("--fraction", type=float, required=True, help="share that is selected")
    selecting.add_argument("--dataset", help="the pool that was scored; without it, indices are printed")
    _add_writing_options(selecting)
    _add_selection_options(selecting)

    reporting = commands.add_parser("report", help="show the rounds of a run")
    reporting.set_defaults(run=report)
    reporting.add_argument("--run", dest="run_folder", required=True, metavar="OUTPUT", help="the folder of the run")
    reporting.add_argument("--dataset", help="the pool that was scored, to show its prompts")
    return parser


def _add_writing_options(parser: argparse.ArgumentParser) -> None:
    options = parser.add_argument_group("what is written")
    options.add_argument(
        "--format",
        choices=FORMATS,
        help="JSON Lines, Parquet, or a folder with a dataset card that `load_dataset` reads (default: jsonl; dataset "
        "with --push-to-hub)",
    )
    options.add_argument(
        "--to",
        metavar="PATH",
        help="file or folder to write (default: selected.jsonl, selected.parquet or selected/ in OUTPUT)",
    )
    options.add_argument("--with-scores", action="store_true", help="add each sample's number, losses and MIWV")
    options.add_argument("--push-to-hub", metavar="USER/NAME", help="upload the folder as a dataset")
    options.add_argument("--private", action="store_true", help="a dataset that --push-to-hub makes is private")


def _add_selection_options(parser: argparse.ArgumentParser) -> None:
    """One option for each field that decides what is selected; None where it is not typed."""
    options = parser.add_argument_group("what is selected, and how it is guarded")
    types = get_type_hints(MIWVConfig)
    for field in fields(MIWVConfig):
        if field.name not in ("preset", *SELECTION_FIELDS):
            continue
        settings: dict[str, Any] = {"help": field.metadata["help"]}
        if field.name in CHOICES:
            settings["choices"] = list(CHOICES[field.name])
        elif get_origin(types[field.name]) is list:
            settings |= {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
        else:
            settings["type"] = next(kind for kind in (int, float, str) if kind in _kinds(types[field.name]))
        options.add_argument(option_of(field.name), **settings)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """What a hint such as `str | None` allows."""
    return get_args(hint) or (hint,)
