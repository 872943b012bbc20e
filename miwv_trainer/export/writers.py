"""Writes a selection for others to load: JSON Lines, Parquet, or a folder for `load_dataset`."""

import json
from math import ceil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from miwv_trainer.data.files import Rows
from miwv_trainer.data.rows import JsonRows
from miwv_trainer.export.dataset_card import Origin, build_card
from miwv_trainer.export.destination import CARD_FILE
from miwv_trainer.storage.atomic import atomic_folder, atomic_path, write_bytes, write_text
from miwv_trainer.storage.stored_round import StoredRound

SELECTED = "selected.jsonl"
SHARD_BYTES = 500_000_000  # the default of `datasets` itself
# Columns that `--with-scores` adds beside what was ranked, and those of scores.parquet that they are taken from.
SCORE_COLUMNS = {
    "pool_index": "index",
    "zero_shot_loss": "zero_shot_loss",
    "one_shot_loss": "one_shot_loss",
    "miwv": "miwv",
}
RANKED = "selection_score"


def add_scores(rows: Rows, scored: StoredRound, ranked: np.ndarray) -> Rows:
    """
    Adds the columns of [`SCORE_COLUMNS`] and `selection_score`, what was ranked, to the rows of a pool.

    Unknown numbers are null. A row of JSON is written anew, with its own keys first.

    Args:
        ranked: `(N,)` what the samples were ranked by, the highest first.

    Raises:
        ValueError: the pool has a column of one of these names.
    """
    taken = sorted({*SCORE_COLUMNS, RANKED} & set(rows.column_names))
    if taken:
        raise ValueError(f"The pool has a column `{taken[0]}` already: leave `--with-scores` away, or rename it.")
    # Put side by side, not joined: rows and scores are both in pool order.
    scores = scored.scores.select(list(SCORE_COLUMNS.values())).rename_columns(list(SCORE_COLUMNS))
    scores = scores.append_column(RANKED, pa.array(ranked, mask=np.isnan(ranked)))
    if isinstance(rows, JsonRows):
        scored_rows = ({**row, **added} for row, added in zip(rows, scores.to_pylist(), strict=True))
        return JsonRows([json.dumps(row, ensure_ascii=False).encode() for row in scored_rows])
    return datasets.concatenate_datasets([rows, datasets.Dataset(scores)], axis=1)


def write_jsonl(path: Path, rows: Rows, selection: np.ndarray) -> Path:
    """
    Writes the rows of the selected samples unchanged, one JSON object a line, in pool order.

    Lines of a JSON Lines file are copied byte for byte.
    """
    if isinstance(rows, JsonRows):
        lines = [rows.get_text(int(index)) for index in selection]
    else:
        # Parquet pools may hold values that JSON does not have, such as dates: they are written as text.
        texts = (json.dumps(rows[int(index)], ensure_ascii=False, default=str) for index in selection)
        lines = [text.encode() + b"\n" for text in texts]
    write_bytes(path, b"".join(lines))
    return path


def write_parquet(path: Path, rows: datasets.Dataset, selection: np.ndarray) -> Path:
    """Writes the rows of the selected samples with the types of their columns, in pool order."""
    with atomic_path(path) as temporary:
        rows.select(selection).to_parquet(temporary)
    return path


def write_folder(target: Path, rows: datasets.Dataset, origin: Origin, loaded_as: str | None = None) -> Path:
    """
    Writes a folder that `load_dataset` reads: the dataset card as README.md, and Parquet files in data/.

    The folder is written beside `target` and renamed when it is complete. A folder of an earlier selection is replaced
    as a whole, because shards of both would else be loaded as one dataset.

    Args:
        target: A folder that is new, empty, or written by this function (see `check_destination`).
        rows: The pool.
        origin: What was selected from it, and by what.
        loaded_as: What the card tells readers to give to `load_dataset`; None means the folder's name.

    Raises:
        OSError: it could not be written; what stood at `target` before is unchanged.
    """
    with atomic_folder(target) as partial:
        _write_shards(partial / "data", rows, origin.choice.selection)
        write_text(partial / CARD_FILE, build_card(origin, loaded_as or target.name))
    return target


def _write_shards(folder: Path, rows: datasets.Dataset, selection: np.ndarray) -> None:
    """Splits the selection into Parquet files of about `SHARD_BYTES`, none of them empty unless the selection is."""
    # Estimated from the whole pool: measuring the selection would mean to copy it.
    bytes_selected = rows.data.nbytes * len(selection) / max(len(rows.data), 1)
    shards = min(len(selection), ceil(bytes_selected / SHARD_BYTES)) or 1
    for shard, indices in enumerate(np.array_split(selection, shards)):
        write_parquet(folder / f"train-{shard:05d}-of-{shards:05d}.parquet", rows, indices)
