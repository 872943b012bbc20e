"""The command `miwv`: score a pool, select from its scores, report on them."""

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from accelerate import PartialState

from miwv_trainer import __version__
from miwv_trainer.card import Origin
from miwv_trainer.config import SELECTION_FIELDS, MIWVConfig
from miwv_trainer.distributed import World
from miwv_trainer.drawing import write_pngs
from miwv_trainer.exemplars import find_exemplars
from miwv_trainer.export import (
    ENDINGS,
    SELECTED,
    check_destination,
    check_hub,
    push_folder,
    with_scores,
    write_folder,
    write_jsonl,
    write_parquet,
)
from miwv_trainer.fingerprints import Moment
from miwv_trainer.layout import check_layout
from miwv_trainer.loading import load_model, load_rows
from miwv_trainer.options import OPTIONS, make_parser, option_of
from miwv_trainer.outcome import no_candidate, threshold_words
from miwv_trainer.page import write_page
from miwv_trainer.pool import group_numbers, with_groups
from miwv_trainer.reasons import config_of
from miwv_trainer.rendering import pool_from_rows
from miwv_trainer.report import round_summary, score_table
from miwv_trainer.rounds import check_model, measured_of, run_round
from miwv_trainer.scores import Measured, seed_of_draw
from miwv_trainer.selection import Choice, choose
from miwv_trainer.store import Store, StoredRound
from miwv_trainer.texts import prompts_and_responses


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; bad input ends in one line on standard error and exit status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("miwv_trainer").setLevel(logging.INFO)
    typed = list(sys.argv[1:] if argv is None else argv)
    arguments = make_parser(score, select, report).parse_args(typed)
    arguments.typed = typed
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
        pool = with_groups(pool, rows, config.group_column)
        check_model(model, pool)
        check_layout(model, config)
    store = Store(arguments.output)
    with _told_by_rank_0(world, "claiming the output folder"):
        if world.is_main:
            store.claim()
    exemplars = find_exemplars(model, pool, config, store, world, reuse=False)
    notes = {
        "rows": rows_fingerprint(rows, len(rows)),
        "chat_template": template_fingerprint(tokenizer.chat_template),
        "library": __version__,
        "dataset": arguments.dataset,
    }
    finished = run_round(model, pool, exemplars, config, store, world, Moment(), notes)
    if world.is_main:
        selected = write_jsonl(store.output / SELECTED, rows, finished.selection)
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
    """`miwv select`: another fraction of scores that exist, or with other guards."""
    kind, target = _destination(arguments)
    latest = _rounds(arguments.scores)[-1]
    config = config_of(latest, **_typed(arguments), fraction=arguments.fraction)
    rows = _scored_rows(arguments.dataset, latest) if arguments.dataset is not None else None
    choice = _chosen(config, latest, rows, Store(arguments.scores))
    if config.allow_identical_exemplars and not latest.summary["config"].get("allow_identical_exemplars"):
        print("These scores were made without copies as exemplars, which --preset paper allows.", file=sys.stderr)
    if rows is None:
        print("\n".join(map(str, choice.selection.tolist())))
        return
    rows = with_scores(rows, latest) if arguments.with_scores else rows
    if kind == "dataset":
        origin = Origin(latest, config, choice, arguments.dataset, arguments.typed)
        write_folder(target, rows, origin, arguments.push_to_hub)
    else:
        {"jsonl": write_jsonl, "parquet": write_parquet}[kind](target, rows, choice.selection)
    print(f"{len(choice.selection)} of {len(choice.scores)} samples, {threshold_words(choice, config)}: {target}")
    for guard, count in choice.left_out.items():
        print(f"{guard} leaves out {count}")
    if arguments.push_to_hub is not None:
        print(f"on the hub: {push_folder(target, arguments.push_to_hub, arguments.private)}")


def _destination(arguments: argparse.Namespace) -> tuple[str, Path]:
    """The format and where it goes, refused before anything is read or written."""
    pushed = arguments.push_to_hub
    kind = arguments.format or ("jsonl" if pushed is None else "dataset")
    if arguments.dataset is None:
        for option in ("format", "to", "with_scores", "push_to_hub"):
            if getattr(arguments, option):
                raise ValueError(f"`{option_of(option)}` is about samples: give the pool as `--dataset`.")
    if pushed is None and arguments.private:
        raise ValueError("`--private` is about a dataset on the hub: give its name as `--push-to-hub`.")
    if pushed is not None and kind != "dataset":
        raise ValueError(f"`--push-to-hub` uploads a folder: give `--format dataset`, or none, not {kind}.")
    target = Path(arguments.to or Path(arguments.scores) / f"selected{ENDINGS[kind]}")
    if arguments.dataset is not None:
        check_destination(kind, target, arguments.dataset)
    if pushed is not None:
        check_hub(pushed)
    return kind, target


def _chosen(config: MIWVConfig, scored: StoredRound, rows: datasets.Dataset | None, store: Store) -> Choice:
    measured = measured_of(scored, seed_of_draw(config, scored.number))
    groups = None
    if config.group_column is not None:
        if rows is None:
            raise ValueError(
                f"Samples are selected by groups, as `group_column` {config.group_column!r} says, which is a column of "
                "the pool: give that as `--dataset`."
            )
        groups = group_numbers(rows, config.group_column)
    embeddings = None
    if config.needs_embeddings:
        embeddings = store.read_embeddings({})
        if embeddings is None:
            raise FileNotFoundError(
                f"There are no embeddings in {store.folder}, by which `diversity` and `max_selected_similarity` "
                "choose. Score the pool again."
            )
    is_complete = (measured.response_tokens > 0) & (scored.column("prompt_tokens") > 0)
    choice = choose(measured, is_complete, config, groups, embeddings)
    if not len(choice.selection):
        raise ValueError(f"{no_candidate(choice.left_out)} The scores in {scored.folder} are of {_known(measured)}.")
    return choice


def _known(measured: Measured) -> str:
    named = {"zero-shot losses": measured.zero_shot_loss, "one-shot losses": measured.one_shot_loss}
    return " and ".join(name for name, losses in named.items() if np.isfinite(losses).any()) or "no forward"


def _typed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of the options that decide the selection that were typed."""
    values = {name: getattr(arguments, name) for name in ("preset", *SELECTION_FIELDS)}
    return {name: value for name, value in values.items() if value is not None}


def report(arguments: argparse.Namespace) -> None:
    """`miwv report`: the rounds of a run as text, as a page and as pictures."""
    rounds = _rounds(arguments.run_folder)
    texts = None
    if arguments.dataset is not None:
        texts = prompts_and_responses(_scored_rows(arguments.dataset, rounds[-1]))
    print(round_summary(rounds))
    print(score_table(rounds[-1], texts[0] if texts is not None else None))
    page, charts = write_page(Path(arguments.run_folder), rounds, texts)
    print(f"page: {page}")
    try:
        write_pngs(charts, page.parent)
    except ImportError:
        print("The charts as PNG files need matplotlib: pip install 'miwv-trainer[report]'.")


def rows_fingerprint(rows: datasets.Dataset, count: int) -> str:
    """A hash of the first `count` rows as they came."""
    digest = hashlib.sha256()
    for row in rows.select(range(count)):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def template_fingerprint(chat_template: Any) -> str | None:
    """A hash of a tokenizer's chat template; None where it has none."""
    if chat_template is None:
        return None
    return hashlib.sha256(json.dumps(chat_template, sort_keys=True).encode()).hexdigest()[:16]


def _scoring_config(arguments: argparse.Namespace) -> MIWVConfig:
    _check_output(Path(arguments.output))
    return MIWVConfig(
        **_typed(arguments),
        fraction=arguments.fraction,
        sampler_seed=arguments.seed,
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
