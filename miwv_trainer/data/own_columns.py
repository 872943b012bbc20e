"""Columns of the dataset that the configuration names: the numbers of a score of the user's own."""

from dataclasses import replace
from decimal import Decimal
from numbers import Real

import datasets
import numpy as np

from miwv_trainer.data.map_style import MapStyleDataset
from miwv_trainer.data.pool import Pool
from miwv_trainer.data.rows import JsonRows
from miwv_trainer.own_scores import validate_scores


def read_column(dataset: MapStyleDataset, column: str, setting: str) -> list[object]:
    """
    The N values of a column; None where a row lacks it.

    Args:
        setting: The field of the configuration that names the column.

    Raises:
        ValueError: the dataset has no such column.
    """
    columns = dataset.column_names if isinstance(dataset, JsonRows) else list(dataset[0])
    if column not in columns:
        raise ValueError(
            f"`{setting}` is {column!r}, but the dataset has the columns {', '.join(columns)}. Give one of them, "
            f"and keep it when you tokenise; a MIWVCallback made by hand needs a `pool` with it."
        )
    if isinstance(dataset, datasets.Dataset):
        return list(dataset[column])  # a row taken by its number would be decoded with all its columns
    return [dataset[index].get(column) for index in range(len(dataset))]


def read_scores(dataset: MapStyleDataset, column: str) -> np.ndarray:
    """
    `(N,)` float32, the numbers of a column; NaN where a row has none.

    Numbers may be written as text, as in CSV files.

    Raises:
        ValueError: the dataset has no such column, or a value is no number.
    """
    values = [
        _read_number(value, index, column) for index, value in enumerate(read_column(dataset, column, "score_column"))
    ]
    return validate_scores(np.asarray(values, dtype=np.float64), len(values), f"`score_column` {column!r}")


def _read_number(value: object, index: int, column: str) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        return np.nan
    try:
        if isinstance(value, str | Real | Decimal | np.bool_):
            return float(value)
        if getattr(value, "shape", None) == ():  # a row of a dataset in torch's or NumPy's format
            return float(np.asarray(value))
    except (ValueError, TypeError, OverflowError):
        pass
    raise ValueError(
        f"`score_column` is {column!r}, which holds {repr(value)[:40]} in sample {index}: give a number, or leave it "
        "empty for a sample that is not to be selected."
    )


def add_scores_of_column(pool: Pool, dataset: MapStyleDataset, column: str | None) -> Pool:
    """The pool with the scores that a column of its dataset holds; the same pool if `column` is None."""
    return pool if column is None else replace(pool, column_scores=read_scores(dataset, column))
