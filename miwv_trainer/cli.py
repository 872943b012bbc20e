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

from miwv_trainer.config import SELECTION_FIELDS, MIWVConfig
from miwv_trainer.distributed import World
from miwv_trainer.drawing import write_pngs
from miwv_trainer.exemplars import find_exemplars
from miwv_trainer.export import Origin, check_token, push, write_dataset, write_jsonl, write_parquet
from miwv_trainer.fingerprints import Moment
from miwv_trainer.layout import check_layout
from miwv_trainer.loading import load_model, load_rows
from miwv_trainer.options import OPTIONS, make_parser, option_of
from miwv_trainer.outcome import no_candidate
from miwv_trainer.page import write_page
from miwv_trainer.pool import group_numbers, with_groups
from miwv_trainer.rendering import pool_from_rows
from miwv_trainer.report import round_summary, score_table
from miwv_trainer.rounds import check_model, measured_of, run_round
from miwv_trainer.scores import Measured, seed_of_draw
from miwv_trainer.selection import Choice, choose
from miwv_trainer.store import Store, StoredRound
from miwv_trainer.texts import prompts_and_responses

WRITTEN = {"jsonl": "selected.jsonl", "parquet": "selected.parquet", "dataset": "selected"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; bad input ends in one line on standard error and exit status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("miwv_trainer").setLevel(logging.INFO)
    arguments = make_parser(score, select, report).parse_args(argv)
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
    notes = {"rows": rows_fingerprint(rows, len(rows)), **_scored_with(arguments, tokenizer)}
    finished = run_round(model, pool, exemplars, config, store, world, Moment(), notes)
    if world.is_main:
        selected = write_jsonl(store.output / WRITTEN["jsonl"], rows, finished.selection)
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
    _check_export(arguments)
    latest = _rounds(arguments.scores)[-1]
    config = _selecting_config(arguments, latest)
    rows = _scored_rows(arguments.dataset, latest) if arguments.dataset is not None else None
    choice = _chosen(config, latest, rows, Store(arguments.scores))
    if rows is None:
        print("\n".join(map(str, choice.selection.tolist())))
        return
    threshold = float(choice.scores[choice.selection].min())
    path = _write_choice(arguments, rows, choice, Origin(latest, arguments.dataset, config, threshold))
    named = "MIWV" if config.score == "miwv" else config.score
    print(f"{len(choice.selection)} of {len(choice.scores)} samples, {named} {threshold:.4f} and above: {path}")
    for guard, count in choice.left_out.items():
        print(f"{guard} leaves out {count}")
    if arguments.push_to_hub is not None:
        print(f"pushed: {push(path, arguments.push_to_hub, arguments.private)}")


def _write_choice(arguments: argparse.Namespace, rows: datasets.Dataset, choice: Choice, origin: Origin) -> Path:
    """In the format that was asked for, where it was asked for or beside the scores."""
    kind = arguments.format or ("jsonl" if arguments.push_to_hub is None else "dataset")
    path = Path(arguments.to or Path(arguments.scores) / WRITTEN[kind])
    if kind == "dataset":
        name = arguments.push_to_hub or str(path)
        return write_dataset(path, rows, choice.selection, origin, name)
    return (write_jsonl if kind == "jsonl" else write_parquet)(path, rows, choice.selection)


def _check_export(arguments: argparse.Namespace) -> None:
    """Raises `ValueError` where what was typed does not go together, before anything is written."""
    if arguments.dataset is None:
        for option in ("format", "to", "push_to_hub"):
            if getattr(arguments, option) is not None:
                raise ValueError(f"`{option_of(option)}` writes the samples themselves: give the pool as `--dataset`.")
    if arguments.push_to_hub is not None:
        if arguments.format not in (None, "dataset"):
            raise ValueError(f"`--push-to-hub` uploads a dataset folder: leave `--format {arguments.format}` out.")
        check_token(arguments.push_to_hub)
    elif arguments.private:
        raise ValueError("`--private` says how a dataset is pushed: give `--push-to-hub NAME`, or leave it out.")


def _selecting_config(arguments: argparse.Namespace, scored: StoredRound) -> MIWVConfig:
    """What the round was selected by, except for what was typed."""
    before = scored.summary["config"]
    typed = _typed(arguments)
    kept = {name: before[name] for name in SELECTION_FIELDS if name in before}
    if "preset" in typed:
        kept = {}
    return MIWVConfig(**{**kept, **typed, "fraction": arguments.fraction, "sampler_seed": before.get("sampler_seed")})


def _chosen(config: MIWVConfig, scored: StoredRound, rows: datasets.Dataset | None, store: Store) -> Choice:
    measured = measured_of(scored, seed_of_draw(config, scored.number))
    groups = None
    if config.group_column is not None:
        if rows is None:
            raise ValueError("`group_column` is a column of the pool: give it as `--dataset`.")
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


def _scored_with(arguments: argparse.Namespace, tokenizer: Any) -> dict[str, str]:
    """Names for people; what tells rounds apart are the fingerprints."""
    template = tokenizer.chat_template
    digest = None if template is None else hashlib.sha256(str(template).encode()).hexdigest()[:16]
    named = "Alpaca's, the tokenizer has none" if digest is None else f"the tokenizer's, sha256 {digest}"
    return {"model_name": arguments.model, "dataset": arguments.dataset, "chat_template": named}


def rows_fingerprint(rows: datasets.Dataset, count: int) -> str:
    """A hash of the first `count` rows as they came."""
    digest = hashlib.sha256()
    for row in rows.select(range(count)):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


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
