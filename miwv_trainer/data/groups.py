"""Groups of samples (topics, sources), named by a column of the dataset."""

from dataclasses import replace

import datasets
import numpy as np

from miwv_trainer.data.map_style import MapStyleDataset
from miwv_trainer.data.pool import Pool
from miwv_trainer.data.rows import JsonRows


def number_groups(dataset: MapStyleDataset, column: str) -> np.ndarray:
    """
    `(N,)` int64, the number of each sample's group, from 0. Values are compared as text.

    Raises:
        ValueError: the dataset has no such column.
    """
    columns = dataset.column_names if isinstance(dataset, JsonRows) else list(dataset[0])
    if column not in columns:
        raise ValueError(
            f"`group_column` is {column!r}, but the dataset has the columns {', '.join(columns)}. Give one of them, "
            "and keep it when you tokenise; a MIWVCallback made by hand needs a `pool` with groups."
        )
    if isinstance(dataset, datasets.Dataset):
        values = dataset[column]  # a row taken by its number would be decoded with all its columns
    else:
        values = [dataset[index].get(column) for index in range(len(dataset))]
    # As text, because one file may hold 1 where another holds "1", and values of mixed types cannot be sorted.
    _, numbers = np.unique([str(value) for value in values], return_inverse=True)
    return numbers.astype(np.int64)


def add_groups(pool: Pool, dataset: MapStyleDataset, column: str | None) -> Pool:
    """The pool with the groups that a column of its dataset names; the same pool if `column` is None."""
    return pool if column is None else replace(pool, groups=number_groups(dataset, column))
