"""A selection as others take it up: JSON Lines, Parquet, a folder for `load_dataset`, a dataset on the hub."""

import json
import os
import shutil
from math import ceil
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
from huggingface_hub.utils import validate_repo_id

from miwv_trainer.export.dataset_card import TAG, Origin, dataset_card
from miwv_trainer.storage.atomic import atomic_path, write_text
from miwv_trainer.storage.store import StoredRound

SELECTED = "selected.jsonl"
FORMATS = ("jsonl", "parquet", "dataset")
ENDINGS = {"jsonl": ".jsonl", "parquet": ".parquet", "dataset": ""}
# As large as the hub's own shards.
SHARD_BYTES = 500_000_000
CARD_FILE = "README.md"
# What `--with-scores` adds, and the columns of the scores that it is.
SCORE_COLUMNS = {
    "pool_index": "index",
    "zero_shot_loss": "zero_shot_loss",
    "one_shot_loss": "one_shot_loss",
    "miwv": "miwv",
}


def check_destination(kind: str, target: Path, dataset: str) -> None:
    """
    Raises `ValueError` where a selection cannot be written to `target`: the name does not say its kind, the pool lies
    there, or something that is none of ours.
    """
    if target.suffix != ENDINGS[kind] and kind != "dataset":
        raise ValueError(f"`--to` must end in {ENDINGS[kind]} with `--format {kind}`, but got {target}.")
    if target.exists() and Path(dataset).exists() and target.samefile(dataset):
        raise ValueError(f"{target} is the pool itself: give another file as `--to`.")
    if kind == "dataset":
        _check_folder(target)
    elif target.is_dir():
        raise ValueError(f"{target} is a folder: give a file as `--to`, or `--format dataset`.")


def _check_folder(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file, but `--format dataset` writes a folder: give another one as `--to`.")
    found = {path.relative_to(target).as_posix() for path in target.rglob("*")}
    others = sorted(name for name in found if name not in (CARD_FILE, "data") and not name.startswith("data/train-"))
    is_ours = not others and CARD_FILE in found and f"- {TAG}\n" in (target / CARD_FILE).read_text(encoding="utf-8")
    if found and not is_ours:
        raise ValueError(
            f"{target} holds {', '.join((others or sorted(found))[:3])}, which this command did not write: give an "
            "empty or a new folder as `--to`."
        )


def check_hub(name: str) -> None:
    """
    What can be known before anything is written.

    Raises:
        ValueError: no name that the hub allows, or no token.
    """
    validate_repo_id(name)
    if huggingface_hub.get_token() is None:
        raise ValueError(
            f"{name} cannot be written to the hub without a token: run `hf auth login`, or set HF_TOKEN to one that "
            "may write."
        )


def with_scores(rows: datasets.Dataset, scored: StoredRound) -> datasets.Dataset:
    """
    The rows of a pool with `pool_index`, both losses and MIWV beside them; null where there is none.

    Raises:
        ValueError: the pool has a column of such a name.
    """
    taken = sorted(SCORE_COLUMNS.keys() & set(rows.column_names))
    if taken:
        raise ValueError(f"The pool has a column `{taken[0]}` already: leave `--with-scores` away, or rename it.")
    scores = scored.scores.select(list(SCORE_COLUMNS.values())).rename_columns(list(SCORE_COLUMNS))
    return datasets.concatenate_datasets([rows, datasets.Dataset(scores)], axis=1)


def write_jsonl(path: Path, rows: datasets.Dataset, selection: np.ndarray) -> Path:
    """Writes the chosen samples as they came, one JSON object a line, in pool order."""
    lines = [json.dumps(rows[int(index)], ensure_ascii=False, default=str) for index in selection]
    write_text(path, "".join(line + "\n" for line in lines))
    return path


def write_parquet(path: Path, rows: datasets.Dataset, selection: np.ndarray) -> Path:
    """Writes the chosen samples with the types of their columns, in pool order."""
    with atomic_path(path) as temporary:
        rows.select(selection).to_parquet(temporary)
    return path


def write_folder(target: Path, rows: datasets.Dataset, origin: Origin, loaded_as: str | None = None) -> Path:
    """
    Writes a folder that `load_dataset` reads: README.md, the dataset's card, and Parquet files in data/.

    It is written beside `target` and takes its name when it is whole; a folder of an earlier selection is replaced.

    Args:
        target: A folder that is new, empty, or of this function (`check_destination`).
        rows: The pool.
        origin: What was selected of it, and with what.
        loaded_as: What the card gives to `load_dataset`; None: the folder's name.

    Raises:
        OSError: it could not be written.
    """
    selection = origin.choice.selection
    partial, old = (target.with_name(f".{target.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        bytes_selected = rows.data.nbytes * len(selection) / max(len(rows.data), 1)
        shards = min(len(selection), ceil(bytes_selected / SHARD_BYTES)) or 1
        for shard, indices in enumerate(np.array_split(selection, shards)):
            write_parquet(partial / "data" / f"train-{shard:05d}-of-{shards:05d}.parquet", rows, indices)
        write_text(partial / CARD_FILE, dataset_card(origin, loaded_as or target.name))
        if target.exists():
            os.replace(target, old)
        os.replace(partial, target)
    finally:
        if old.exists() and not target.exists():
            os.replace(old, target)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return target


def push_folder(folder: Path, name: str, private: bool) -> str:
    """
    Uploads a folder of `write_folder` as the dataset `name`, which is made where there is none. Returns its address.

    Raises:
        OSError: the hub could not be reached, or refused it; the folder stays.
    """
    try:
        return _push(folder, name, private)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"{name} could not be written to the hub ({type(error).__name__}: {reason}). {folder} is whole: try again, "
            f"or run `hf upload {name} {folder} --repo-type dataset`."
        ) from error


def _push(folder: Path, name: str, private: bool) -> str:
    api = huggingface_hub.HfApi()
    api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
    # Of an earlier selection: it may have had more shards.
    commit = api.upload_folder(
        repo_id=name,
        repo_type="dataset",
        folder_path=folder,
        delete_patterns="data/train-*.parquet",
        commit_message="A selection by miwv_trainer",
    )
    return str(commit.repo_url)
