"""`miwv select`: another fraction of scores that exist, or with other guards."""

import argparse
import sys
from pathlib import Path

import datasets
import numpy as np

from miwv_trainer.cli.options import option_of
from miwv_trainer.cli.shared import read_rounds, read_scored_rows, typed_options
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.groups import number_groups
from miwv_trainer.data.pool import find_complete_samples
from miwv_trainer.export.dataset_card import Origin
from miwv_trainer.export.destination import ENDINGS, Format, check_destination, check_hub_name
from miwv_trainer.export.hub import push_folder
from miwv_trainer.export.writers import add_scores, write_folder, write_jsonl, write_parquet
from miwv_trainer.rounds.inputs import measured_of
from miwv_trainer.rounds.messages import no_candidate, threshold_words
from miwv_trainer.rounds.stored_config import restore_config
from miwv_trainer.selection.choose import Choice, choose
from miwv_trainer.selection.scores import Measured, get_draw_seed
from miwv_trainer.storage.store import Store, StoredRound


def select(arguments: argparse.Namespace) -> None:
    """`miwv select`: another fraction of scores that exist, or with other guards."""
    kind, target = _destination(arguments)
    latest = read_rounds(arguments.scores)[-1]
    config = restore_config(latest, **typed_options(arguments), fraction=arguments.fraction)
    rows = read_scored_rows(arguments.dataset, latest) if arguments.dataset is not None else None
    choice = _chosen(config, latest, rows, Store(arguments.scores))
    if config.allow_identical_exemplars and not latest.summary["config"].get("allow_identical_exemplars"):
        print("These scores were made without copies as exemplars, which --preset paper allows.", file=sys.stderr)
    if rows is None:
        print("\n".join(map(str, choice.selection.tolist())))
        return
    rows = add_scores(rows, latest) if arguments.with_scores else rows
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


def _destination(arguments: argparse.Namespace) -> tuple[Format, Path]:
    """The format and where it goes, refused before anything is read or written."""
    pushed = arguments.push_to_hub
    kind: Format = arguments.format or ("jsonl" if pushed is None else "dataset")
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
        check_hub_name(pushed)
    return kind, target


def _chosen(config: MIWVConfig, scored: StoredRound, rows: datasets.Dataset | None, store: Store) -> Choice:
    measured = measured_of(scored, get_draw_seed(config, scored.number))
    groups = None
    if config.group_column is not None:
        if rows is None:
            raise ValueError(
                f"Samples are selected by groups, as `group_column` {config.group_column!r} says, which is a column of "
                "the pool: give that as `--dataset`."
            )
        groups = number_groups(rows, config.group_column)
    embeddings = None
    if config.needs_embeddings:
        embeddings = store.read_embeddings({})
        if embeddings is None:
            raise FileNotFoundError(
                f"There are no embeddings in {store.folder}, by which `diversity` and `max_selected_similarity` "
                "choose. Score the pool again."
            )
    is_complete = find_complete_samples(scored.column("prompt_tokens"), measured.response_tokens)
    choice = choose(measured, is_complete, config, groups, embeddings)
    if not len(choice.selection):
        raise ValueError(f"{no_candidate(choice.left_out)} The scores in {scored.folder} are of {_known(measured)}.")
    return choice


def _known(measured: Measured) -> str:
    named = {"zero-shot losses": measured.zero_shot_loss, "one-shot losses": measured.one_shot_loss}
    return " and ".join(name for name, losses in named.items() if np.isfinite(losses).any()) or "no forward"
