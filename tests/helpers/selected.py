"""`miwv select` on a typed pool that a tiny model has scored, and what it must select, found by hand."""

from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from miwv_trainer.cli.main import main
from tests.helpers.tiny import instruction_rows

COUNT = 20
FEATURES = datasets.Features(
    {
        "instruction": datasets.Value("string"),
        "input": datasets.Value("large_string"),
        "output": datasets.Value("string"),
        "rating": datasets.Value("int16"),
        "price": datasets.Value("float64"),
        "written": datasets.Value("timestamp[ms]"),
        "kind": datasets.ClassLabel(names=["asked", "made"]),
        "words": datasets.Sequence(datasets.Value("string")),
        "source": {"page": datasets.Value("int64"), "line|column": datasets.Value("string")},
    }
)


def typed_rows() -> datasets.Dataset:
    rows = [
        {
            **row,
            "rating": index,
            "price": None if index % 4 == 0 else index / 3,
            "written": datetime(2026, 1, 1 + index),
            "kind": index % 2,
            "words": row["output"].split(),
            "source": {"page": index, "line|column": None if index % 3 == 0 else "a\n|é"},
        }
        for index, row in enumerate(instruction_rows(COUNT))
    ]
    return datasets.Dataset.from_list(rows, features=FEATURES)


def select(output: Path, pool: Path, *options: object) -> int:
    command = ["select", "--scores", output, "--dataset", pool, "--fraction", "0.3", *options]
    return main([str(word) for word in command])


def scores(output: Path) -> dict[str, list[Any]]:
    return pq.read_table(output / "miwv" / "round-000" / "scores.parquet").to_pydict()


def highest(output: Path, count: int = 6) -> list[int]:
    """Of those that the guard leaves, by hand."""
    found = scores(output)
    may = [index for index in range(COUNT) if found["response_tokens"][index] >= 8]
    return sorted(sorted(may, key=lambda index: (-found["miwv"][index], index))[:count])


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.rpartition("miwv: ")[2]
