"""Rows of sources that are text (JSON, JSON Lines, CSV), kept as they are written."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import datasets
import numpy as np

from miwv_trainer.checks import check_argument
from miwv_trainer.compat import make_column
from miwv_trainer.foreign_errors import quote_error

logger = logging.getLogger(__name__)

DATASET_KINDS = "one `datasets.Dataset` (a split, `Dataset.from_list(rows)`), or what `load_rows(name)` reads"


class JsonRows:
    """
    Rows as JSON text, parsed when they are read.

    Nothing is inferred from the texts, as a table would: a time stays the text that it is, a number of 30 digits stays
    exact, a key that is missing stays missing, and rows may differ in their types. A million rows of 1 kB take 1 GB,
    about half of what they take parsed.

    Args:
        lines: One JSON object each, in UTF-8. Lines of a file keep the end that they have there.
    """

    def __init__(self, lines: Sequence[bytes]):
        self.lines = lines

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return json.loads(self.lines[index].decode())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def column_names(self) -> list[str]:
        """The keys of all rows, in the order in which they come."""
        return list(dict.fromkeys(key for row in self for key in row))

    def select(self, indices: Iterable[int]) -> "JsonRows":
        """The rows of these numbers, in their order."""
        return JsonRows([self.lines[index] for index in indices])

    def shuffle(self, seed: int) -> "JsonRows":
        """The rows in a random order, the one in which `datasets` would put them."""
        return self.select(np.random.default_rng(seed).permutation(len(self)))

    def get_text(self, index: int) -> bytes:
        """A row as it is written, with the end of its line."""
        line = self.lines[index]
        return line if line.endswith(b"\n") else line + b"\n"


def to_dataset(rows: datasets.Dataset | JsonRows) -> datasets.Dataset:
    """
    The rows in columns, for Trainers and for Parquet.

    A key that a row lacks is null there. Values of several types in one column become the type `Json` of `datasets`;
    what that cannot hold either, such as a number of 30 digits, becomes JSON text. Before 4.7 `datasets` has no such
    type, so that values of several types become JSON text as well.
    """
    if isinstance(rows, datasets.Dataset):
        return rows
    check_argument("to_dataset(rows)", "rows", rows, JsonRows, DATASET_KINDS)
    parsed = list(rows)
    return datasets.concatenate_datasets(
        [_make_column(name, [row.get(name) for row in parsed]) for name in rows.column_names], axis=1
    )


def _make_column(name: str, values: list[object]) -> datasets.Dataset:
    try:
        return make_column(name, values)
    except (ValueError, TypeError, OverflowError) as error:
        logger.warning(
            "The column `%s` becomes JSON text, because a table cannot hold it as it is: %s", name, quote_error(error)
        )
    texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return datasets.Dataset.from_dict({name: texts})
