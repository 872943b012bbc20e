"""`miwv score`: round 0 of a pool with a model, without training."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import transformers

from miwv_trainer.cli.options import ScoreOptions
from miwv_trainer.cli.own_values import load_settings
from miwv_trainer.cli.shared import fingerprint_rows, fingerprint_template
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.files import load_rows
from miwv_trainer.data.groups import add_groups
from miwv_trainer.data.models import load_model
from miwv_trainer.data.own_columns import add_scores_of_column
from miwv_trainer.distributed.agreement import check_same_pool
from miwv_trainer.distributed.launched import join_launched, leave_launched
from miwv_trainer.distributed.world import World
from miwv_trainer.embeddings.embedders import get_embedder
from miwv_trainer.export.destination import check_outside
from miwv_trainer.export.writers import SELECTED, write_jsonl
from miwv_trainer.report.tables import format_rounds, format_scores
from miwv_trainer.rounds.exemplars import find_exemplars
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring.layout import check_layout
from miwv_trainer.scoring.model_checks import check_model
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import RoundNotes


def score(options: ScoreOptions) -> None:
    """Scores a pool with a model as it is and writes round 0; on each process that a launcher started."""
    world = join_launched()
    try:
        _score_together(options, world)
    finally:
        leave_launched(world)


def _score_together(options: ScoreOptions, world: World) -> None:
    """Scores and selects on all ranks, and writes and prints on rank 0."""
    if not world.is_main:
        silence()
    # Everything that can be wrong with the input is found here, before the output folder is touched: an earlier run in
    # it is moved aside only for one that can begin.
    with tell_errors_once(world, "reading the model and the pool"):
        check_output(Path(options.output))
        check_outside(Path(options.output), options.dataset, "--output")
        config = MIWVConfig.from_dict(load_settings(options.settings))
        get_embedder(config.embedder)  # raises for a mistyped name, before the model is loaded
        rows = load_rows(options.dataset, options.max_samples)
        model, tokenizer = load_model(options.model, options.dtype)
        model.to(world.device)
        pool = pool_from_rows(rows, tokenizer, show_progress=world.is_main, columns=options.columns)
        pool = add_scores_of_column(add_groups(pool, rows, config.group_column), rows, config.score_column)
        check_model(model, pool)
        check_layout(model, config, world.device)
    check_same_pool(pool, world)
    store = Store(options.output)
    with tell_errors_once(world, "claiming the output folder"):
        if world.is_main:
            store.claim()
    scorer = prepare_scorer(model, pool, config, world)
    exemplars = find_exemplars(scorer, store, reuse=False)
    # `miwv select` and `miwv report` refuse other rows by their hash, and the dataset card states the rest.
    notes: RoundNotes = {
        "rows": fingerprint_rows(rows, len(rows)),
        "chat_template": fingerprint_template(tokenizer.chat_template),
        "dataset": options.dataset,
        "columns": options.columns,
    }
    finished = run_round(scorer, exemplars, store, notes=notes)
    # The others wait for rank 0: a launcher ends all processes when one exits with an error.
    with tell_errors_once(world, "writing the selected samples"):
        if world.is_main:
            selected = write_jsonl(store.output / SELECTED, rows, finished.selection)
            print(format_scores(finished, pool.texts))
            print(format_rounds([finished]))
            print(f"scores: {finished.folder / 'scores.parquet'}\nselected samples: {selected}")
            # Only now: another run in the same folder would move the round aside that selected.jsonl belongs to.
            store.release()


def check_output(output: Path) -> None:
    """
    Raises `ValueError` where a file stands in the way of the output folder.

    Making the folder would find that too, but after the model was loaded, which takes minutes.
    """
    for path in (output, *output.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"`--output` must be a folder, but {path} is a file.")


@contextmanager
def tell_errors_once(world: World, task: str) -> Iterator[None]:
    """
    Like `world.run_together`, but only rank 0 tells an error; the others end with the same exit status.

    Most errors are the same on every rank, and a command on eight processes would tell each of them eight times.
    """
    try:
        with world.run_together(task):
            yield
    except Exception as error:
        if world.is_main:
            raise
        raise SystemExit(2) from error


def silence() -> None:
    """Leaves logs and progress bars to rank 0."""
    logging.getLogger("miwv_trainer").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
