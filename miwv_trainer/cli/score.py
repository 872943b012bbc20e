"""`miwv score`: round 0 of a pool with a model, without training."""

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from accelerate import PartialState

from miwv_trainer.cli.shared import rows_fingerprint, template_fingerprint, typed_options
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.files import load_rows
from miwv_trainer.data.groups import add_groups
from miwv_trainer.data.models import load_model
from miwv_trainer.distributed.world import World
from miwv_trainer.export.writers import SELECTED, write_jsonl
from miwv_trainer.report.tables import format_rounds, format_scores
from miwv_trainer.rounds.exemplars import find_exemplars
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring.layout import check_layout
from miwv_trainer.scoring.model_checks import check_model
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.storage.store import Store
from miwv_trainer.version import __version__


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
        pool = add_groups(pool, rows, config.group_column)
        check_model(model, pool)
        check_layout(model, config)
    store = Store(arguments.output)
    with _told_by_rank_0(world, "claiming the output folder"):
        if world.is_main:
            store.claim()
    scorer = prepare_scorer(model, pool, config, world)
    exemplars = find_exemplars(scorer, store, reuse=False)
    notes = {
        "rows": rows_fingerprint(rows, len(rows)),
        "chat_template": template_fingerprint(tokenizer.chat_template),
        "library": __version__,
        "dataset": arguments.dataset,
    }
    finished = run_round(scorer, exemplars, store, notes=notes)
    if world.is_main:
        selected = write_jsonl(store.output / SELECTED, rows, finished.selection)
        print(format_scores(finished, pool.texts))
        print(format_rounds([finished]))
        print(f"scores: {finished.folder / 'scores.parquet'}\nselected samples: {selected}")
        store.release()
    state.destroy_process_group()


def _check_output(output: Path) -> None:
    for path in (output, *output.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"`--output` must be a folder, but {path} is a file.")


def _scoring_config(arguments: argparse.Namespace) -> MIWVConfig:
    _check_output(Path(arguments.output))
    return MIWVConfig(
        **typed_options(arguments),
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
        with world.run_together(doing):
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
