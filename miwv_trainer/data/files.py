"""Dataset files, and datasets on the hub, to rows."""

import gzip
import json
import zlib
from pathlib import Path
from typing import IO

import datasets

READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def load_rows(name: str, max_samples: int | None = None) -> datasets.Dataset:
    """
    Loads the rows of a pool.

    Args:
        name: A local JSON, JSON Lines (also gzipped), CSV or Parquet file, or a dataset on the hub, of which the
            `train` split is taken.
        max_samples: Number of rows to keep, from the first.

    Raises:
        ValueError: a file of another kind, or one that cannot be read.
        FileNotFoundError: neither a file here nor a dataset that the hub gives.
    """
    path = Path(name).expanduser()
    if not path.is_file() and (path.suffix in (*READERS, ".gz") or path.is_absolute() or name.startswith((".", "~"))):
        # The hub is not asked for a path that is mistyped: its retries take a minute.
        raise FileNotFoundError(f"There is no file {name!r}.")
    rows = _read_file(path) if path.is_file() else _read_hub(name)
    return rows.select(range(min(max_samples, len(rows)))) if max_samples is not None else rows


def is_folder(name: str) -> bool:
    """Whether a name is that of a local folder, not one on the hub."""
    return Path(name).is_dir()


def _read_file(path: Path) -> datasets.Dataset:
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    kind = READERS.get(suffixes[-1]) if suffixes else None
    if kind is None:
        raise ValueError(
            f"{path} is not a kind of file that can be read; allowed: {', '.join(READERS)}, also with .gz."
        )
    # The JSON reader meets an empty file with a StopIteration without words.
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: the pool needs at least two samples.")
    if kind != "parquet":
        _check_text(path)
    try:
        # pandas would read the answers "None" and "NA" as missing values, and an empty cell too.
        options = {"keep_default_na": False} if kind == "csv" else {}
        return datasets.load_dataset(kind, data_files=str(path), split="train", **options)
    except Exception as error:
        # Errors of pandas, pyarrow, json and gzip come through here, and no class is common to them.
        where = _describe_broken_line(path) if ".jsonl" in suffixes else None
        raise ValueError(f"{path} could not be read as {kind}: {where or error.__cause__ or error}") from error


def _describe_broken_line(path: Path) -> str | None:
    """Describes the first bad line of a JSON Lines file. The reader's own error counts lines within a block."""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                if line.strip() and not isinstance(json.loads(line), dict):
                    return f"line {number} is no JSON object"
            except ValueError as error:
                return f"line {number} is no JSON ({error})"
    return None


def _check_text(path: Path) -> None:
    """Raises `ValueError` if a file cannot be unpacked or is not UTF-8 (the readers accept it and damage the text)."""
    # Line by line: the file may be larger than the memory, and the line is named in the error.
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):  # noqa: B007
                line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"Line {number} of {path} is not UTF-8 ({error}): save the file in UTF-8.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} could not be read: {error}") from error


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _read_hub(name: str) -> datasets.Dataset:
    try:
        return datasets.load_dataset(name, split="train")
    except Exception as error:
        raise FileNotFoundError(
            f"{name!r} is no file here and could not be loaded from the hub ({type(error).__name__}: {error}). Give a "
            "local JSON, JSON Lines, CSV or Parquet file, or a hub name that is reachable or cached."
        ) from error
