"""Datasets with a length and an index, as a Trainer and the command line hold them, and their rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import torch

from miwv_trainer.data.conversation import Row

# One call renders or reads this many rows: reading them one by one takes ten times as long.
ROWS_AT_ONCE = 512
ROWS_COMPARED_AT_ONCE = 10_000


class MapStyleDataset(Protocol):
    """A dataset with a length whose rows can be taken by their number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...


def check_map_style(dataset: object) -> None:
    """Raises `TypeError` unless the dataset has a length and can be indexed."""
    # `load_dataset` without `split` gives a dictionary of splits. It has a length and can be indexed, by names.
    if isinstance(dataset, dict):
        raise TypeError(
            f"The pool is a dictionary of splits ({', '.join(map(str, dataset))}); pass one of them, such as "
            f"dataset[{next(iter(dataset), 'train')!r}]."
        )
    if isinstance(dataset, str):
        raise TypeError(f"The pool must be a dataset, but got the name {dataset!r}: load it first.")
    # Looked up on the type, as `len` does: a wrapper may answer for any attribute of its instances. torch's own
    # IterableDataset inherits `__getitem__`, which only raises.
    is_iterable_only = isinstance(dataset, torch.utils.data.IterableDataset)
    if is_iterable_only or not (hasattr(type(dataset), "__len__") and hasattr(type(dataset), "__getitem__")):
        raise TypeError(
            f"The pool must be a map-style dataset, one with a length and indexing, but got {type(dataset).__name__}. "
            "Samples of an IterableDataset cannot be chosen by index: load it without `streaming=True`, or "
            "materialise it with `Dataset.from_generator`."
        )


def has_own_columns(dataset: MapStyleDataset) -> bool:
    """Whether the rows of a dataset hold its own columns, not those that a transform makes of them."""
    return isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom"


def find_name(dataset: MapStyleDataset) -> str | None:
    """The name that `load_dataset` gave a dataset: of its repository or its folder. None if it has no such name."""
    info = dataset.info if isinstance(dataset, datasets.Dataset) else None
    # Of files that are given as `data_files`, `datasets` keeps only the reader's name, such as "json", as both.
    return info.dataset_name if info is not None and info.dataset_name != info.builder_name else None


def list_columns(dataset: MapStyleDataset) -> list[str]:
    """
    The names of the columns: under a transform, those that it yields.

    Raises:
        ValueError: the first sample is no dictionary.
    """
    if isinstance(dataset, datasets.Dataset) and has_own_columns(dataset):
        return dataset.column_names
    # Other datasets have no list of columns, so the first sample stands for all; each is checked when it is read.
    first = dataset[0]
    if not isinstance(first, dict) and not hasattr(first, "keys"):
        raise ValueError(
            "Samples of the pool must be dictionaries with `input_ids` and `labels`, but the first is a "
            f"{type(first).__name__}."
        )
    return list(first.keys())


def has_values(dataset: MapStyleDataset, column: str) -> bool:
    """
    Whether a column holds more than nulls and empty lists in any row. Of rows that are made on request, the first
    stands for all.
    """
    if not isinstance(dataset, datasets.Dataset) or not has_own_columns(dataset):
        value = dataset[0][column]
        return value is not None and not (isinstance(value, list | tuple) and not value)
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=ROWS_COMPARED_AT_ONCE):
        values = table[column].drop_null()
        is_list = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
        if len(values) and not (is_list and pc.max(pc.list_value_length(values)).as_py() == 0):
            return True
    return False


def iterate_rows(dataset: MapStyleDataset) -> Iterator[Row]:
    """All rows in order."""
    if not isinstance(dataset, datasets.Dataset):
        yield from (dataset[index] for index in range(len(dataset)))
    elif dataset.format["type"] is not None:
        # A format or a transform makes its own rows, of which columns taken many at a time know nothing.
        yield from dataset
    else:
        for columns in dataset.iter(batch_size=ROWS_AT_ONCE):
            yield from transpose(columns)


def transpose(columns: Mapping[str, Sequence[object]]) -> Iterator[Row]:
    """Rows from columns of one length."""
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
