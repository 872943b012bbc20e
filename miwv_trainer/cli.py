"""The command `miwv`: score a pool, select from its scores, report on them."""

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import datasets
import numpy as np
import torch
import transformers
from accelerate import PartialState

from miwv_trainer.config import DEFAULT_EMBEDDER, Layout, MIWVConfig
from miwv_trainer.distributed import World
from miwv_trainer.layout import check_layout
from miwv_trainer.loading import DTYPES, load_model, load_rows
from miwv_trainer.rendering import instruction_text, pool_from_rows
from miwv_trainer.report import round_summary, score_table
from miwv_trainer.rounds import Moment, check_model, find_exemplars, run_round
from miwv_trainer.selection import number_selected, select_top
from miwv_trainer.store import Store, StoredRound, write_text

DEFAULT_OUTPUT = "miwv-output"
SELECTED = "selected.jsonl"
# Where an option is called otherwise than what it configures.
OPTIONS = {
    "scoring_max_length": "--max-length",
    "tokens_per_batch": "--tokens-per-batch",
    "tokens_per_row": "--tokens-per-row",
    "logits_chunk": "--logits-chunk",
    "refine_near_threshold=False": "--no-refine",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; bad input ends in one line on standard error and exit status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("miwv_trainer").setLevel(logging.INFO)
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"\nmiwv: {_as_typed(str(error))}", file=sys.stderr)  # a progress bar may stand on the line
        return 2
    except KeyboardInterrupt:
        print("\nmiwv: interrupted", file=sys.stderr)
        return 130
    return 0


def score(arguments: argparse.Namespace) -> None:
    """`miwv score`: round 0 of a pool with a model, without training; on each process that a launcher started."""
    state = PartialState(cpu=not torch.cuda.is_available())
    world = World.current(state.device)
    if not world.is_main:
        _silence()
    with _told_by_rank_0(world, "reading the model and the pool"):
        config = _scoring_config(arguments)
        rows = load_rows(arguments.dataset, arguments.max_samples)
        model, tokenizer = load_model(arguments.model, arguments.dtype)
        model.to(state.device)
        pool = pool_from_rows(rows, tokenizer, show_progress=world.is_main)
        check_model(model, pool)
        check_layout(model, config)
    store = Store(arguments.output)
    with _told_by_rank_0(world, "claiming the output folder"):
        if world.is_main:
            store.claim()
    exemplars = find_exemplars(model, pool, config, store, world, reuse=False)
    notes = {"rows": rows_fingerprint(rows, len(rows))}
    finished = run_round(model, pool, exemplars, config, store, world, Moment(), notes)
    if world.is_main:
        selected = write_selected(store.output / SELECTED, rows, finished.selection)
        print(score_table(finished, pool.texts))
        print(round_summary([finished]))
        print(f"scores: {finished.folder / 'scores.parquet'}\nselected samples: {selected}")
        store.release()
    state.destroy_process_group()


def _check_output(output: Path) -> None:
    for path in (output, *output.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"`--output` must be a folder, but {path} is a file.")


def _as_typed(message: str) -> str:
    """An error of the library in the words of the command line."""
    for name, option in OPTIONS.items():
        message = message.replace(f"`{name}`", f"`{option}`")
    return message


def select(arguments: argparse.Namespace) -> None:
    """`miwv select`: another fraction of scores that exist."""
    config = MIWVConfig(fraction=arguments.fraction)
    latest = _rounds(arguments.scores)[-1]
    miwv = latest.column("miwv")
    selection = select_top(miwv, number_selected(config.fraction, len(miwv)))
    if arguments.dataset is None:
        print("\n".join(map(str, selection.tolist())))
        return
    rows = _scored_rows(arguments.dataset, latest)
    path = write_selected(Path(arguments.scores) / SELECTED, rows, selection)
    print(f"{len(selection)} of {len(miwv)} samples, MIWV {miwv[selection].min():.4f} and above: {path}")


def report(arguments: argparse.Namespace) -> None:
    """`miwv report`: the rounds of a run as text."""
    rounds = _rounds(arguments.run_folder)
    texts = None
    if arguments.dataset is not None:
        texts = [instruction_text(row) or "" for row in _scored_rows(arguments.dataset, rounds[-1])]
    print(round_summary(rounds))
    print(score_table(rounds[-1], texts))


def write_selected(path: Path, rows: datasets.Dataset, selection: np.ndarray) -> Path:
    """Writes the chosen samples as they came, one JSON object a line, in pool order."""
    lines = [json.dumps(rows[int(index)], ensure_ascii=False, default=str) for index in selection]
    write_text(path, "".join(line + "\n" for line in lines))
    return path


def rows_fingerprint(rows: datasets.Dataset, count: int) -> str:
    """A hash of the first `count` rows as they came."""
    digest = hashlib.sha256()
    for row in rows.select(range(count)):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _scoring_config(arguments: argparse.Namespace) -> MIWVConfig:
    _check_output(Path(arguments.output))
    return MIWVConfig(
        fraction=arguments.fraction,
        embedder=_embedder(arguments.embedder),
        layout=arguments.layout,
        scoring_max_length=arguments.max_length,
        tokens_per_batch=arguments.tokens_per_batch,
        tokens_per_row=arguments.tokens_per_row,
        logits_chunk=arguments.logits_chunk,
        refine_near_threshold=arguments.refine_near_threshold,
    )


@contextmanager
def _told_by_rank_0(world: World, doing: str) -> Iterator[None]:
    """Like `world.together`, but one line tells an error, not one a process: most are the same on each of them."""
    try:
        with world.together(doing):
            yield
    except Exception as error:
        if world.is_main:
            raise
        raise SystemExit(2) from error


def _silence() -> None:
    """Leaves logs and progress bars to rank 0."""
    logging.getLogger("miwv_trainer").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def _scored_rows(dataset: str, scored: StoredRound) -> datasets.Dataset:
    """The rows of a dataset, refused if they are not those that were scored."""
    rows, count = load_rows(dataset), len(scored.scores)
    if len(rows) < count:
        raise ValueError(
            f"{dataset} has {len(rows)} samples, but {scored.folder} holds scores of {count}: give the dataset that "
            "was scored."
        )
    expected = scored.summary.get("rows")  # a Trainer's rounds know token ids only
    if expected is not None and rows_fingerprint(rows, count) != expected:
        raise ValueError(
            f"The first {count} samples of {dataset} are not those that {scored.folder} holds scores of: give the "
            "dataset that was scored, as it was."
        )
    return rows.select(range(count))


def _rounds(output: str) -> list[StoredRound]:
    store = Store(output)
    numbers = store.rounds()
    if not numbers:
        raise FileNotFoundError(
            f"There are no scores in {store.folder}. Give the folder that `miwv score --output` or the Trainer wrote "
            "to."
        )
    return [store.read_round(number) for number in numbers]


def _embedder(name: str) -> Any:
    """A `.npy` file stands for the array in it."""
    if not name.endswith(".npy"):
        return name
    try:
        return np.load(name, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} could not be read as an array of numbers: give a file that `numpy.save` wrote."
        ) from error


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but got {value}")
    return value


def _parser() -> argparse.ArgumentParser:
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

    selecting = commands.add_parser("select", help="select another fraction of scores that exist")
    selecting.set_defaults(run=select)
    selecting.add_argument("--scores", required=True, metavar="OUTPUT", help="the folder `miwv score` wrote to")
    selecting.add_argument("--fraction", type=float, required=True, help="share that is selected")
    selecting.add_argument("--dataset", help="the pool that was scored; without it, indices are printed")

    reporting = commands.add_parser("report", help="show the rounds of a run")
    reporting.set_defaults(run=report)
    reporting.add_argument("--run", dest="run_folder", required=True, metavar="OUTPUT", help="the folder of the run")
    reporting.add_argument("--dataset", help="the pool that was scored, to show its prompts")
    return parser
