"""Groups of samples (topics, sources), named by a column of the dataset."""

from dataclasses import replace

import numpy as np

from miwv_trainer.data.map_style import MapStyleDataset
from miwv_trainer.data.own_columns import read_column
from miwv_trainer.data.pool import Pool


def number_groups(dataset: MapStyleDataset, column: str) -> np.ndarray:
    """
    `(N,)` int64, the number of each sample's group, from 0. Values are compared as text.

    Raises:
        ValueError: the dataset has no such column.
    """
    values = read_column(dataset, column, "group_column")
    # As text, because one file may hold 1 where another holds "1", and values of mixed types cannot be sorted.
    _, numbers = np.unique([str(value) for value in values], return_inverse=True)
    return numbers.astype(np.int64)


def add_groups(pool: Pool, dataset: MapStyleDataset, column: str | None) -> Pool:
    """The pool with the groups that a column of its dataset names; the same pool if `column` is None."""
    return pool if column is None else replace(pool, groups=number_groups(dataset, column))
