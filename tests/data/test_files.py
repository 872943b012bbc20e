"""Rows of files and folders are what is written there, and what cannot be read is told by file and line."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from miwv_trainer import load_rows, pool_from_rows, tokenize
from miwv_trainer.compat import is_at_least
from miwv_trainer.data.groups import number_groups
from miwv_trainer.data.rows import JsonRows, to_dataset
from tests.helpers.tiny import instruction_rows, tiny_tokenizer

ROWS = instruction_rows(8)
# What a table's reader changes: a time, a number beyond int64, a missing key, values of two types, a key given twice.
ODD = [
    '{"prompt": "a", "completion": "b", "at": "2023-05-07T12:00:00Z", "id": 123456789012345678901234567890}',
    '{"completion": "b",   "prompt": "a", "id": "seven", "tags": {"x": 1.50, "y": [1, "two"]}}',
    '{"prompt": "\\u00e9", "completion": "b", "id": 9007199254740993, "tags": null, "id": 1}',
    '{"prompt": "a", "completion": "b", "at": 3, "tags": {"z": true}}',
]


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def as_lines(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    return "".join(json.dumps(row) + end for row in rows).encode()


def as_table(rows: list[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: write(path, as_lines(ROWS)),
    "a.jsonl.gz": lambda path: write(path, as_lines(ROWS)),
    "windows.jsonl": lambda path: write(path, as_lines(ROWS, "\r\n")),
    "marked.jsonl": lambda path: write(path, b"\xef\xbb\xbf" + as_lines(ROWS)),
    "gaps.jsonl": lambda path: write(path, b"\n \n" + as_lines(ROWS, "\n\n  \n").rstrip()),
    "lines.json": lambda path: write(path, as_lines(ROWS)),
    "a.json": lambda path: write(path, json.dumps(ROWS, indent=2).encode()),
    "a.json.gz": lambda path: write(path, json.dumps(ROWS).encode()),
    "marked.json": lambda path: write(path, b"\xef\xbb\xbf\n" + json.dumps(ROWS).encode()),
    "array.jsonl": lambda path: write(path, json.dumps(ROWS).encode()),
    "a.ndjson": lambda path: write(path, as_lines(ROWS)),
    "A.JSONL": lambda path: write(path, as_lines(ROWS)),
    "a.csv": lambda path: as_table(ROWS).to_csv(path, index=False),
    "marked.csv": lambda path: write(path, b"\xef\xbb\xbfinstruction,input,output\r\n" + write_csv(ROWS)),
    "a.parquet": lambda path: as_table(ROWS).to_parquet(path),
    "shards": lambda path: [write(path / f"{n}.jsonl", as_lines(ROWS[2 * n : 2 * n + 2])) for n in range(4)],
    "zipped": lambda path: [write(path / f"{n}.json.gz", json.dumps(ROWS[4 * n : 4 * n + 4]).encode()) for n in (0, 1)],
    "splits": lambda path: [write(path / "train.jsonl", as_lines(ROWS)), write(path / "test.jsonl", b'{"a": 1}\n')],
    "tables": lambda path: [as_table(ROWS[4 * n :][:4]).to_parquet(path / f"{n}.parquet") for n in (0, 1)],
    "cells": lambda path: [as_table(ROWS).to_csv(make(path) / "a.csv", index=False)],
    "saved": lambda path: as_table(ROWS).save_to_disk(path),
    "saved splits": lambda path: datasets.DatasetDict(train=as_table(ROWS), test=as_table(ROWS[:1])).save_to_disk(path),
}


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def write_csv(rows: list[dict[str, Any]]) -> bytes:
    return "".join(",".join(f'"{cell}"' for cell in row.values()) + "\r\n" for row in rows).encode()


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_source_gives_the_same_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tables").mkdir()
    WRITERS[name](tmp_path / name)
    rows = load_rows(str(tmp_path / name))
    assert list(rows) == ROWS
    assert list(load_rows(str(tmp_path / name), max_samples=3)) == ROWS[:3]
    assert list(load_rows(str(tmp_path / name), max_samples=999)) == ROWS
    monkeypatch.chdir(tmp_path)
    assert list(load_rows(name)) == ROWS
    assert rows.column_names == ["instruction", "input", "output"]
    assert list(rows.select([5, 0])) == [ROWS[5], ROWS[0]]
    assert list(rows.shuffle(seed=3)) == list(as_table(ROWS).shuffle(seed=3))


def test_json_lines_are_kept_as_they_are_written(tmp_path: Path) -> None:
    rows = load_rows(str(write(tmp_path / "a.jsonl", "\n".join(ODD).encode())))
    assert [rows.get_text(index).decode() for index in range(4)] == [line + "\n" for line in ODD]
    assert list(rows) == [json.loads(line) for line in ODD]
    assert rows[0]["id"] == 123456789012345678901234567890 and rows[0]["at"] == "2023-05-07T12:00:00Z"
    assert list(rows[1]) == ["completion", "prompt", "id", "tags"] and rows[2]["id"] == 1
    assert number_groups(rows, "at").tolist() == [0, 2, 2, 1]


def test_cells_of_csv_are_the_texts_that_stand_there(tmp_path: Path) -> None:
    lines = 'prompt,completion,id\na,None,007\nb,"1,5\n""x""",1e3\nc,,NA\n'
    rows = list(load_rows(str(write(tmp_path / "a.csv", lines.encode()))))
    assert [row["completion"] for row in rows] == ["None", '1,5\n"x"', ""]
    assert [row["id"] for row in rows] == ["007", "1e3", "NA"]
    long = "word " * 60_000
    limit = csv.field_size_limit()
    assert load_rows(str(write(tmp_path / "b.csv", f"a\n{long}\nb\n".encode())))[0] == {"a": long}
    assert csv.field_size_limit() == limit


def test_rows_that_a_table_can_hold_become_one_and_the_rest_json_text(caplog: pytest.LogCaptureFixture) -> None:
    rows = JsonRows([line.encode() for line in ODD])
    dataset = to_dataset(rows)
    assert dataset["prompt"][:] == ["a", "a", "é", "a"]
    mixed = {
        "at": ["2023-05-07T12:00:00Z", None, None, 3],
        "tags": [None, {"x": 1.5, "y": [1, "two"]}, None, {"z": True}],
    }
    has_json = is_at_least("datasets", "4.7")  # a type for values of several types
    for name, values in mixed.items():
        texts = [None if value is None else json.dumps(value) for value in values]
        assert dataset[name][:] == (values if has_json else texts)
    assert dataset["id"][:] == ["123456789012345678901234567890", '"seven"', "1", None]
    assert "column `id` becomes JSON text" in caplog.text and caplog.text.count("becomes") == (1 if has_json else 3)
    assert to_dataset(dataset) is dataset
    uniform = to_dataset(JsonRows([as_lines([row]) for row in ROWS]))
    assert uniform.to_list() == ROWS and list(uniform.features.values()) == [datasets.Value("string")] * 3


def test_rows_of_json_are_tokenized_as_a_table_of_them_is(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    rows = load_rows(str(write(tmp_path / "a.jsonl", as_lines([{**row, "id": n} for n, row in enumerate(ROWS)]))))
    expected = tokenize(as_table(ROWS), tokenizer)
    tokenized = tokenize(rows, tokenizer)
    assert tokenized.remove_columns("id").to_list() == expected.to_list()
    assert tokenized["id"][:] == list(range(8))
    # A turn without calls keeps none, though a table would fill the key with null.
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    chats = [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": calls}],
    ]
    template = "{% for m in messages %}{{ m.role }}{{ m.content if 'tool_calls' not in m else 'calls' }}{% endfor %}"
    mixed = JsonRows([as_lines([{"messages": chat}]) for chat in chats])
    words = [
        tiny_tokenizer().decode(row["input_ids"])
        for row in tokenize(mixed, tiny_tokenizer(template + "{# tool_calls #}"))
    ]
    assert words == ["useraassistantb", "useraassistantcalls"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_the_same_data_in_three_formats_is_one_pool(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    pool = pool_from_rows(load_rows(str(tmp_path / name)), tiny_tokenizer())
    assert pool.fingerprint == pool_from_rows(ROWS, tiny_tokenizer()).fingerprint


DEEP = b"[" * 100_000
BROKEN: dict[str, tuple[str, bytes, str]] = {
    "a number": ("a.jsonl", b'{"a": 1}\n7\n', "line 2 is no JSON object"),
    "an array a line": ("a.jsonl", b'["a"]\n["b"]\n', "begins as an array, but Extra data: line 2 column 1"),
    "an object over several lines": ("a.jsonl", b'{\n"a": 1}\n', "line 1 is no JSON"),
    "an array of texts": ("a.json", b'[{"a": 1}, "b"]', "element 1 of its array is no object"),
    "an array that is cut": ("a.json", b'\n[{"a": 1},\n', "begins as an array, but .*line 3"),
    "endless nesting": ("a.jsonl", b'{"a": 1}\n{"a": ' + DEEP, "line 2 is no JSON"),
    "an endless array": ("a.json", DEEP, "begins as an array, but"),
    "half of a character": ("a.jsonl", b'{"a": "b"}\n{"a": "\\ud83d"}\n', "line 2 holds half of a character"),
    "half of one in an array": ("a.json", b'[{"a": "\\uDE00"}]', "element 0 holds half of a character"),
    "blank lines only": ("a.jsonl", b"\n \n", "is empty: the pool needs at least two samples"),
    "an empty archive": ("a.jsonl.gz", b"", "is empty: the pool needs at least two samples"),
    "names only": ("a.csv", b"a,b\n", "is empty: the pool needs at least two samples"),
    "too few cells": ("a.csv", b"a,b\n1,2\n3\n", "line 3: it has 1 cells, but the first line names 2 columns"),
    "too many cells": ("a.csv", b'a,b\n"1\n",2,3\n', "line 3: it has 3 cells"),
    "a name twice": ("a.csv", b"a,a\n1,2\n", "line 1: a column is named twice"),
    "an open quote": ("a.csv", b'a,b\n1,"2\n', "could not be read as csv: line 2: unexpected end of data"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_told_by_its_line(case: str, tmp_path: Path) -> None:
    name, content, words = BROKEN[case]
    with pytest.raises(ValueError, match=f"{name}.* {words}"):
        load_rows(str(write(tmp_path / name, content)))


def test_both_halves_of_a_character_are_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"a": "\\ud83d\\ude00"}\n')
    assert load_rows(str(path))[0] == {"a": "😀"}
    assert load_rows(str(path)).get_text(0) == path.read_bytes()


def test_folders_that_cannot_be_read_are_told_with_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no file that can be read: give one file, or a folder with one kind"):
        load_rows(str(make(tmp_path / "empty")))
    write(tmp_path / "mixed" / "a.jsonl", as_lines(ROWS))
    write(tmp_path / "mixed" / "b.csv", b"a\n1\n")
    with pytest.raises(ValueError, match="holds csv files and json files: give one file"):
        load_rows(str(tmp_path / "mixed"))
    write(tmp_path / "tests" / "test.jsonl", as_lines(ROWS))
    with pytest.raises(ValueError, match="has the splits test, but no `train`, which is the one that is read"):
        load_rows(str(tmp_path / "tests"))
    assert len(load_rows(str(tmp_path / "tests" / "test.jsonl"))) == 8
    datasets.DatasetDict(valid=as_table(ROWS)).save_to_disk(tmp_path / "dict")
    with pytest.raises(ValueError, match="has the splits valid, but no `train`"):
        load_rows(str(tmp_path / "dict"))
    assert list(load_rows(str(tmp_path / "dict" / "valid"))) == ROWS
    as_table(ROWS).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "data-00000-of-00001.arrow").write_bytes(b"cut")
    with pytest.raises(ValueError, match="saved could not be read as what `save_to_disk` wrote"):
        load_rows(str(tmp_path / "saved"))
    with pytest.raises(FileNotFoundError, match=r"There is no file '\.\./none', and no folder of that name"):
        load_rows("../none")


def test_what_describes_a_dataset_and_hidden_files_are_no_rows(tmp_path: Path) -> None:
    write(tmp_path / "pool" / "a.jsonl", as_lines(ROWS))
    for name in ("dataset_infos.json", ".cache/b.csv", ".hidden.parquet", "README.md"):
        write(tmp_path / "pool" / name, b"---\n---\n" if name == "README.md" else b"{}")
    assert list(load_rows(str(tmp_path / "pool"))) == ROWS
