"""`miwv select`: another fraction of scores that exist, or with other guards."""

import sys
from collections.abc import Sequence
from pathlib import Path

from miwv_trainer.cli.options import SelectOptions, name_option
from miwv_trainer.cli.own_values import load_settings
from miwv_trainer.cli.shared import find_scored_rows
from miwv_trainer.data.rows import to_dataset
from miwv_trainer.export.dataset_card import Origin
from miwv_trainer.export.destination import ENDINGS, Format, check_destination
from miwv_trainer.export.hub import check_hub_name, push_folder
from miwv_trainer.export.writers import add_scores, write_folder, write_jsonl, write_parquet
from miwv_trainer.rounds.messages import describe_threshold
from miwv_trainer.rounds.stored_config import restore_config
from miwv_trainer.rounds.without_training import select_again
from miwv_trainer.storage.store import read_rounds


def select(options: SelectOptions) -> None:
    """Selects from the last round of a run and writes the selection, or prints its indices where no pool is given."""
    kind, target = choose_destination(options)
    latest = read_rounds(options.scores)[-1]
    config = restore_config(latest, **load_settings(options.settings))
    if config.group_column is not None and options.dataset is None:
        raise ValueError(
            f"Samples are selected by groups, as `group_column` {config.group_column!r} says, which is a column of the "
            "pool: give that as `--dataset`."
        )
    column = config.score_column
    is_new_column = column is not None and column != latest.summary["config"].get("score_column")
    if is_new_column and options.dataset is None:
        raise ValueError(
            f"Samples are ranked by `score_column` {column!r}, which is a column of the pool: give that as `--dataset`."
        )
    found = find_scored_rows(options.dataset, latest, options.columns) if options.dataset is not None else None
    # These columns are read of every sample, so each must have its row.
    reads_columns = config.group_column is not None or is_new_column
    choice = select_again(latest, config, found.align() if found is not None and reads_columns else None)
    # A warning and no error: the selection is right for these scores, only that they are not those of the paper.
    if config.allow_identical_exemplars and not latest.summary["config"].get("allow_identical_exemplars"):
        print("These scores were made without copies as exemplars, which --preset paper allows.", file=sys.stderr)
    if found is None or options.dataset is None:
        # Nothing but the indices, one a line, so that another program can read them.
        print("\n".join(map(str, choice.selection.tolist())))
        return
    print("\n".join(found.notes), end="\n" if found.notes else "")
    aligned = found.align(choice.selection)
    rows = aligned if kind == "jsonl" else to_dataset(aligned)
    rows = add_scores(rows, latest, choice.scores) if options.with_scores else rows
    if kind == "jsonl":
        write_jsonl(target, rows, choice.selection)
    elif kind == "parquet":
        write_parquet(target, to_dataset(rows), choice.selection)
    else:
        origin = Origin(latest, config, choice, options.dataset, options.typed)
        write_folder(target, to_dataset(rows), origin, options.push_to_hub)
    print(f"{len(choice.selection)} of {len(choice.scores)} samples, {describe_threshold(choice, config)}: {target}")
    for guard, count in choice.left_out.items():
        print(f"{guard} leaves out {count}")
    if options.push_to_hub is not None:
        print(f"on the hub: {push_folder(target, options.push_to_hub, options.private)}")


def choose_destination(options: SelectOptions) -> tuple[Format, Path]:
    """
    The format, and the file or folder that is written.

    Called before anything else: whoever mistypes a path is told at once, not after a pool was read.

    Raises:
        ValueError: options that exclude each other, or a place that must not be written to.
    """
    pushed = options.push_to_hub
    kind, place = choose_format(options), name_place(options.typed)
    if options.dataset is None:
        about_samples = {
            "format": options.format, place: options.to, "with_scores": options.with_scores, "push_to_hub": pushed,
            "columns": options.columns,
        }  # fmt: skip
        for name, value in about_samples.items():
            if value:
                raise ValueError(f"`{name_option(name)}` is about samples: give the pool as `--dataset`.")
    if pushed is None and options.private:
        raise ValueError("`--private` is about a dataset on the hub: give its name as `--push-to-hub`.")
    if pushed is not None and kind != "dataset":
        raise ValueError(f"`--push-to-hub` uploads a folder: give `--format dataset`, or none, not {kind}.")
    target = Path(options.to or Path(options.scores) / f"selected{ENDINGS[kind]}")
    if options.dataset is not None:
        check_destination(kind, target, options.dataset, name_option(place))
    if pushed is not None:
        check_hub_name(pushed)
    return kind, target


def choose_format(options: SelectOptions) -> Format:
    """The format that was typed, or the one that fits what else was typed."""
    if options.format is not None:
        return options.format
    if options.push_to_hub is not None:
        return "dataset"
    return "parquet" if options.to is not None and Path(options.to).suffix == ENDINGS["parquet"] else "jsonl"


def name_place(typed: Sequence[str]) -> str:
    """By which of its two names the place was typed, for messages: `--output` may be shortened to `--o`."""
    return "output" if any(word.startswith("--o") for word in typed) else "to"
