"""From a file of any format to a selection of its own lines."""

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from miwv_trainer import load_rows, pool_from_rows
from miwv_trainer.cli.main import main
from miwv_trainer.data.formats import FORMATS
from tests.helpers.tiny import instruction_rows, save_tiny

ROWS = instruction_rows(12)
# What a table would change, in lines that Python would write otherwise.
ODD = '"at":  "2023-05-07T12:00:00Z", "id": 12345678901234567890123456789%d, "tags": ["\\u00e9", %s]'


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


def score(model_folder: Path, pool: Path, output: Path, *options: str) -> list[int]:
    """The numbers of the selected samples."""
    command = ["score", "--model", str(model_folder), "--dataset", str(pool), "--output", str(output), *options]
    assert main([*command, "--embedder", "tfidf", "--fraction", "0.34"]) == 0
    table = pq.read_table(output / "miwv" / "round-000" / "scores.parquet")
    return np.flatnonzero(table["selected"].to_numpy()).tolist()


def odd_lines() -> list[bytes]:
    """Lines of a file from Windows, whose rows differ in keys and in types; the last has no end."""
    lines = []
    for number, row in enumerate(ROWS):
        rest = ", " + ODD % (number, number if number % 2 else '"x"') if number % 3 else ""
        ask, said = json.dumps(f"{row['instruction']} {row['input']}"), json.dumps(row["output"])
        lines.append(f'{{"ask": {ask},"said" : {said}{rest}}}\r\n'.encode())
    lines[-1] = lines[-1].rstrip()
    return lines


def test_selected_samples_are_the_lines_of_their_file_byte_for_byte(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, pool = odd_lines(), tmp_path / "pool.jsonl"
    pool.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))  # blank lines between them, and a byte-order mark
    chosen = score(model_folder, pool, tmp_path, "--columns", "prompt=ask,response=said")
    written = b"".join(lines[number] if number < 11 else lines[number] + b"\n" for number in chosen)
    assert len(chosen) == 4 and (tmp_path / "selected.jsonl").read_bytes() == written

    select = ["select", "--scores", str(tmp_path), "--dataset", str(pool), "--fraction", "0.34"]
    (tmp_path / "selected.jsonl").unlink()
    assert main(select) == 0
    assert (tmp_path / "selected.jsonl").read_bytes() == written
    assert main([*select, "--with-scores"]) == 0
    with_scores = [json.loads(line) for line in (tmp_path / "selected.jsonl").read_text().splitlines()]
    assert [row["pool_index"] for row in with_scores] == chosen
    for row in with_scores:
        names = ("pool_index", "zero_shot_loss", "one_shot_loss", "miwv", "selection_score")
        scores = {name: row.pop(name) for name in names}
        assert scores["selection_score"] == scores["miwv"]
        assert row == json.loads(lines[scores["pool_index"]])
        assert scores["miwv"] == pytest.approx(scores["one_shot_loss"] - scores["zero_shot_loss"], abs=1e-5)

    # Parquet has columns: a missing key is null, and what no column holds is text.
    assert main([*select, "--format", "parquet", "--with-scores"]) == 0
    table = pq.read_table(tmp_path / "selected.parquet")
    assert table["ask"].to_pylist() == [json.loads(lines[number])["ask"] for number in chosen]
    ids = [json.loads(lines[number]).get("id") for number in chosen]
    assert table["id"].to_pylist() == [None if number is None else str(number) for number in ids]

    capsys.readouterr()
    assert main(["report", "--run", str(tmp_path), "--dataset", str(pool)]) == 0
    first = f"{ROWS[chosen[0]]['instruction']} {ROWS[chosen[0]]['input']}".strip()
    assert f"  {first}  " in capsys.readouterr().out


def turns(row: dict[str, str]) -> list[dict[str, Any]]:
    words = "\n\n".join(filter(None, [row["instruction"], row["input"]]))
    return [{"role": "user", "content": words}, {"role": "assistant", "content": row["output"]}]


def test_the_same_data_in_three_formats_of_columns_and_of_files_is_the_same_selection(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chats = [{"messages": turns(row)} for row in ROWS]
    shared = [
        {"conversations": [{"from": "human", "value": user["content"]}, {"from": "gpt", "value": answer["content"]}]}
        for user, answer in map(turns, ROWS)
    ]
    (tmp_path / "alpaca.json").write_text(json.dumps(ROWS))
    (tmp_path / "shards").mkdir()
    for number in range(3):
        lines = "".join(json.dumps(row) + "\n" for row in chats[4 * number : 4 * number + 4])
        (tmp_path / "shards" / f"{number}.jsonl").write_text(lines)
    datasets.Dataset.from_list(shared).save_to_disk(tmp_path / "saved")
    outputs = [tmp_path / f"of {name}" for name in ("alpaca.json", "shards", "saved")]
    chosen = [score(model_folder, tmp_path / output.name[3:], output) for output in outputs]
    assert chosen[0] == chosen[1] == chosen[2] and len(chosen[0]) == 4
    scores = [pq.read_table(output / "miwv" / "round-000" / "scores.parquet")["miwv"].to_pylist() for output in outputs]
    assert scores[0] == scores[1] == scores[2]
    for output, rows in zip(outputs, (ROWS, chats, shared), strict=True):
        selected = [json.loads(line) for line in (output / "selected.jsonl").read_text().splitlines()]
        assert selected == [rows[number] for number in chosen[0]]
    # What is selected as a folder is a pool again.
    select = ["select", "--scores", str(outputs[1]), "--dataset", str(tmp_path / "shards"), "--fraction", "0.34"]
    assert main([*select, "--to", str(tmp_path / "shards" / "chosen.jsonl")]) == 2
    assert "chosen.jsonl lies in" in capsys.readouterr().err and not (tmp_path / "shards" / "chosen.jsonl").exists()
    assert main([*select, "--format", "dataset"]) == 0
    again = score(model_folder, outputs[1] / "selected", tmp_path / "again")
    assert len(again) == 1


@pytest.mark.parametrize("columns", ["alpaca", "prompt and completion", "messages"])
def test_the_same_rows_as_lines_csv_and_parquet_are_the_same_pool_and_selection(
    columns: str, model_folder: Path, tmp_path: Path
) -> None:
    """A cell of CSV is text; there, turns are JSON."""
    rows: list[dict[str, Any]] = [dict(row) for row in ROWS]
    if columns == "prompt and completion":
        rows = [{"prompt": f"{row['instruction']} {row['input']}", "completion": row["output"]} for row in ROWS]
    if columns == "messages":
        rows = [{"messages": turns(row)} for row in ROWS]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "pool.parquet")
    files = ["pool.jsonl", "pool.parquet"]
    if columns != "messages":
        with (tmp_path / "pool.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        files.append("pool.csv")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    pools = [pool_from_rows(load_rows(str(tmp_path / name)), tokenizer) for name in files]
    assert len({pool.fingerprint for pool in pools}) == 1
    # By hand: what the tokenizer makes of the columns in one call.
    first = rows[0]["prompt"] if "prompt" in rows[0] else turns(ROWS[0])[0]["content"]
    assert first in tokenizer.decode(pools[0].prompt(0))
    chosen = [score(model_folder, tmp_path / name, tmp_path / f"of {name}") for name in files]
    assert len(chosen[0]) == 4 and all(each == chosen[0] for each in chosen)
    selected = [json.loads(line) for line in (tmp_path / "of pool.parquet" / "selected.jsonl").read_text().splitlines()]
    assert selected == [rows[number] for number in chosen[0]]


def test_preference_data_is_scored_and_selected_by_its_chosen_answers(model_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"chosen": turns(row), "rejected": [*turns(row)[:1], {"role": "assistant", "content": "No."}]} for row in ROWS
    ]
    for name, written in (("pairs", rows), ("plain", [{"messages": row["chosen"]} for row in rows])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    chosen = score(model_folder, tmp_path / "pairs.jsonl", tmp_path / "of pairs")
    assert chosen == score(model_folder, tmp_path / "plain.jsonl", tmp_path / "of plain")
    selected = [json.loads(line) for line in (tmp_path / "of pairs" / "selected.jsonl").read_text().splitlines()]
    assert selected == [rows[number] for number in chosen]


def test_the_help_names_the_columns_that_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(column in said for form in FORMATS for column in form.columns)
    assert "prompt=...,response=..." in said


def test_names_of_columns_are_checked_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main("score --model M --dataset D --columns prompt=a".split())
    assert "argument --columns: `columns` names prompt; allowed are" in capsys.readouterr().err
