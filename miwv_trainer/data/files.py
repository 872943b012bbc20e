"""Dataset files, folders of them, and datasets on the hub, to rows."""

from itertools import chain
from pathlib import Path
from typing import TypeAlias

import datasets

from miwv_trainer.data.rows import JsonRows
from miwv_trainer.data.text_files import read_csv, read_json
from miwv_trainer.foreign_errors import describe_error, quote_error

Rows: TypeAlias = datasets.Dataset | JsonRows

READERS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".parquet": "parquet"}
TEXT_READERS = {"json": read_json, "csv": read_csv}
SPLIT = "train"
# Files with one of the names that are read, in which datasets and models describe themselves.
DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json")


def load_rows(name: str, max_samples: int | None = None) -> Rows:
    """
    Loads the rows of a pool.

    Args:
        name: A local JSON, JSON Lines, CSV (all also gzipped) or Parquet file; a folder of such files, or one that
            `save_to_disk` or `miwv select --format dataset` wrote; or a dataset on the hub. Of several splits `train`
            is taken.
        max_samples: Number of rows to keep, from the first.

    Returns:
        Rows of JSON and CSV as they are written; anything else as a `datasets.Dataset`.

    Raises:
        ValueError: a file of another kind, one that cannot be read, or no split `train`.
        FileNotFoundError: neither a file or folder here nor a dataset that the hub gives.
    """
    path = Path(name).expanduser()
    is_here = path.is_file() or path.is_dir()
    if not is_here and (path.suffix in (*READERS, ".gz") or path.is_absolute() or name.startswith((".", "~"))):
        # The hub is not asked for a path that is mistyped: its retries take a minute.
        raise FileNotFoundError(f"There is no file {name!r}, and no folder of that name.")
    if path.is_dir():
        rows = _read_folder(path)
    else:
        rows = _read_file(path) if is_here else _read_hub(name)
    return rows.select(range(min(max_samples, len(rows)))) if max_samples is not None else rows


def is_folder(name: str) -> bool:
    """Whether a name is that of a local folder, not one on the hub."""
    return Path(name).is_dir()


def _read_file(path: Path) -> Rows:
    kind = _get_kind(path)
    if kind is None:
        raise ValueError(
            f"{path} is not a kind of file that can be read; allowed: {', '.join(READERS)}, also with .gz."
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: the pool needs at least two samples.")
    if kind not in TEXT_READERS:
        return _read_tables(path, kind, [str(path)])
    lines = TEXT_READERS[kind](path)
    if not lines:
        raise ValueError(f"{path} is empty: the pool needs at least two samples.")
    return JsonRows(lines)


def _get_kind(path: Path) -> str | None:
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return READERS.get(suffixes[-1].lower()) if suffixes else None


def _read_tables(path: Path, kind: str, files: list[str]) -> datasets.Dataset:
    try:
        return datasets.load_dataset(kind, data_files=files, split="train")
    except Exception as error:
        raise ValueError(f"{path} could not be read as {kind}: {quote_error(error.__cause__ or error)}") from error


def _read_folder(path: Path) -> Rows:
    if (path / "dataset_dict.json").is_file():
        splits = [folder.name for folder in sorted(path.iterdir()) if (folder / "state.json").is_file()]
        _check_split(path, splits)
        path = path / SPLIT
    if (path / "state.json").is_file():
        try:
            return datasets.Dataset.load_from_disk(str(path))
        except Exception as error:
            raise ValueError(f"{path} could not be read as what `save_to_disk` wrote: {quote_error(error)}") from error
    kind, files = _find_shards(path)
    if kind not in TEXT_READERS:
        return _read_tables(path, kind, files)
    return JsonRows(list(chain.from_iterable(TEXT_READERS[kind](Path(file)) for file in files)))


def _find_shards(path: Path) -> tuple[str, list[str]]:
    """The kind of a folder's files and those of its split `train`, as `datasets` tells splits by names and card."""
    files = [file for file in path.rglob("*") if file.is_file() and not _is_hidden(file.relative_to(path))]
    found = {file.resolve(): _get_kind(file) for file in files if file.name not in DESCRIPTIONS}
    kinds = sorted({kind for kind in found.values() if kind is not None})
    if len(kinds) != 1:
        raise ValueError(
            f"The folder {path} holds {' and '.join(f'{kind} files' for kind in kinds) or 'no file that can be read'}: "
            f"give one file, or a folder with one kind of {', '.join(READERS)}."
        )
    try:
        splits = datasets.load_dataset_builder(str(path)).config.data_files or {}
    except Exception as error:
        raise ValueError(f"The folder {path} could not be read: {quote_error(error)}") from error
    _check_split(path, [str(split) for split in splits])
    return kinds[0], [str(file) for file in splits[SPLIT] if found.get(Path(file).resolve()) == kinds[0]]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _check_split(path: Path, splits: list[str]) -> None:
    if SPLIT not in splits:
        raise ValueError(
            f"{path} has the splits {', '.join(splits) or 'none'}, but no `{SPLIT}`, which is the one that is read: "
            "give the folder or file of a split."
        )


def _read_hub(name: str) -> datasets.Dataset:
    try:
        return datasets.load_dataset(name, split=SPLIT)
    except Exception as error:
        raise FileNotFoundError(
            f"{name!r} is no file here and could not be loaded from the hub ({describe_error(error)}). Give a "
            "local JSON, JSON Lines, CSV or Parquet file, or a hub name that is reachable or cached."
        ) from error
