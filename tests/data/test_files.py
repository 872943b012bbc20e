"""Files to rows: every kind gives the same ones, and texts stay as they are."""

import gzip
import json
from pathlib import Path

import datasets

from miwv_trainer import load_rows
from tests.helpers.tiny import instruction_rows

ROWS = instruction_rows(20)


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(lines)
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    datasets.Dataset.from_list(ROWS).to_csv(tmp_path / "a.csv", index=False)
    for name in ("a.jsonl", "a.json", "a.jsonl.gz", "a.parquet", "a.csv"):
        rows = load_rows(str(tmp_path / name)).to_list()
        assert [{key: value or "" for key, value in row.items()} for row in rows] == ROWS, name


def test_words_that_pandas_takes_for_nothing_are_answers_in_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion\na,None\nb,NA\nc,\n")
    assert load_rows(str(tmp_path / "a.csv"))["completion"] == ["None", "NA", ""]


def test_the_first_rows_are_kept_and_no_more_than_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert load_rows(str(tmp_path / "a.jsonl"), 3).to_list() == ROWS[:3]
    assert load_rows(str(tmp_path / "a.jsonl"), 999).to_list() == ROWS
