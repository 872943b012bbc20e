"""Numbers of a column, in any kind of dataset."""

import json
from decimal import Decimal
from typing import Any

import datasets
import numpy as np
import pytest

from miwv_trainer import JsonRows, load_rows
from miwv_trainer.data.own_columns import add_scores_of_column, read_scores
from tests.helpers.tokenized import IDS, MASKS, MapStyle, pool_of

VALUES: list[Any] = [0.5, 2, None, "-1e-3", " 7 ", "", True]
EXPECTED = [0.5, 2, np.nan, -1e-3, 7, np.nan, 1]
ROWS = [{"text": "a", "quality": value} for value in VALUES]
KINDS: dict[str, Any] = {
    "a list": list,
    "map-style": MapStyle,
    "JSON": lambda rows: JsonRows([json.dumps(row).encode() for row in rows]),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_column_holds_numbers_also_written_as_text_or_none(make: Any) -> None:
    np.testing.assert_array_equal(read_scores(make(ROWS), "quality"), np.float32(EXPECTED))


@pytest.mark.parametrize("kind", [None, "numpy", "torch"])
def test_a_dataset_of_columns_holds_the_same_numbers_in_any_format(kind: str | None) -> None:
    dataset = datasets.Dataset.from_dict({"quality": [0.5, 2.0, -1.0], "text": ["a", "b", "c"]}).with_format(kind)
    assert read_scores(dataset, "quality").tolist() == [0.5, 2.0, -1.0]


def test_numbers_of_csv_files_are_read(tmp_path: Any) -> None:
    (tmp_path / "pool.csv").write_text('instruction,output,quality\nask,tell,0.25\nsay,"a, b",\nsee,go,3\n')
    np.testing.assert_array_equal(read_scores(load_rows(str(tmp_path / "pool.csv")), "quality"), [0.25, np.nan, 3])


def test_decimals_of_parquet_are_read() -> None:
    assert read_scores([{"quality": Decimal("1.5")}, {}], "quality").tolist()[0] == 1.5


@pytest.mark.parametrize(
    "value, shown", [("good", "'good'"), ([0.5], r"\[0.5\]"), ({"a": 1}, r"\{'a': 1\}"), (1 + 2j, r"\(1\+2j\)")]
)
def test_what_is_no_number_is_refused_with_its_sample(value: Any, shown: str) -> None:
    words = f"`score_column` is 'quality', which holds {shown} in sample 1: give a number, or leave it empty"
    with pytest.raises(ValueError, match=words):
        read_scores([{"quality": 1}, {"quality": value}], "quality")


@pytest.mark.parametrize("value", ["inf", 10**400, "1e50"])
def test_what_float32_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="`score_column`"):
        read_scores([{"quality": 1}, {"quality": value}], "quality")


def test_a_column_that_is_not_there_is_refused_with_those_that_are() -> None:
    words = "`score_column` is 'grade', but the dataset has the columns text, quality. Give one of them"
    with pytest.raises(ValueError, match=words):
        read_scores(ROWS, "grade")


def test_a_pool_gets_scores_only_if_a_column_is_asked_for() -> None:
    pool = pool_of(IDS, MASKS)
    assert add_scores_of_column(pool, ROWS, None) is pool
    np.testing.assert_array_equal(add_scores_of_column(pool, ROWS, "quality").column_scores, np.float32(EXPECTED))
