"""What `miwv select` and `miwv report` say of a Trainer's samples that they look for in a file, and refuse."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from miwv_trainer import MIWVConfig, attach, tokenize
from miwv_trainer.cli.main import main
from miwv_trainer.compat import is_at_least
from tests.helpers.chats import sft_trainer
from tests.helpers.found import (
    COUNT,
    Rows,
    alpaca,
    by_sft,
    conversations_with_system,
    ids_of,
    numbered,
    qwen,
    read_page,
    read_selected,
    rendered,
    select,
    texts,
    write_lines,
    write_run,
)
from tests.helpers.rounds import made_columns, write_round
from tests.helpers.tiny import tiny_tokenizer


def prepare_run(folder: Path, **config: Any) -> tuple[datasets.Dataset, np.ndarray, Rows]:
    rows, tokenizer = alpaca(), tiny_tokenizer()
    dataset = tokenize(datasets.Dataset.from_list(rows).shuffle(seed=1), tokenizer)
    return dataset, write_run(folder, dataset, tokenizer, **config), rows


@pytest.mark.parametrize("command", ["select", "report"])
@pytest.mark.parametrize("kept", [0, 9])
def test_a_dataset_that_holds_less_than_half_of_the_samples_is_refused(
    kept: int, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, rows = prepare_run(tmp_path)
    others = numbered([{**row, "instruction": f"Sing of {row['instruction']}", "output": "la"} for row in rows[kept:]])
    file = write_lines(tmp_path / "pool.jsonl", rows[:kept] + others)
    options = ["--scores", str(tmp_path), "--fraction", "0.4"] if command == "select" else ["--run", str(tmp_path)]
    assert main([command, *options, "--dataset", str(file)]) == 2
    said = capsys.readouterr().err
    assert f"holds scores of: {kept or 'none'} of 20 samples" in said and "found among its 20 rows" in said
    assert not (tmp_path / "selected.jsonl").exists() and not (tmp_path / "report").exists()


def test_a_selected_sample_without_a_row_is_named_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, selection, rows = prepare_run(tmp_path)
    gone = ids_of(dataset, selection[[1, 4]])
    file = write_lines(tmp_path / "pool.jsonl", [row for row in rows if row["id"] not in gone])
    assert select(tmp_path, file) == 2
    told = capsys.readouterr()
    assert (
        f"2 of the 8 samples that are needed have no row in {file} (samples {selection[1]}, {selection[4]})" in told.err
    )
    assert "so nothing is written" in told.err
    assert (
        "18 of 20 samples are found" in told.out
        and f"not found: 2 (samples {selection[1]}, {selection[4]})" in told.out
    )
    assert not (tmp_path / "selected.jsonl").exists()


def test_a_sample_without_a_row_that_is_not_selected_is_said_and_no_reason_to_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, selection, rows = prepare_run(tmp_path)
    other = next(index for index in range(COUNT) if index not in selection)
    gone = dataset[other]["id"]
    file = write_lines(tmp_path / "pool.jsonl", [row for row in rows if row["id"] != gone])
    assert select(tmp_path, file) == 0
    assert f"not found: 1 (sample {other})" in capsys.readouterr().out
    assert [json.loads(line)["id"] for line in read_selected(tmp_path)] == ids_of(dataset, selection)


def test_groups_need_the_row_of_every_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, _, rows = prepare_run(tmp_path)
    topics = [{**row, "topic": row["id"] % 2} for row in rows]
    file = write_lines(tmp_path / "whole.jsonl", topics)
    assert select(tmp_path, file, "--group-column", "topic") == 0
    written = [json.loads(line)["topic"] for line in read_selected(tmp_path)]
    assert sorted(written) == [0] * 4 + [1] * 4
    file = write_lines(tmp_path / "less.jsonl", topics[1:])
    assert select(tmp_path, file, "--group-column", "topic") == 2
    assert "1 of the 20 samples that are needed have no row" in capsys.readouterr().err


def test_what_was_edited_since_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, tokenizer = conversations_with_system()[::2], qwen()
    write_run(tmp_path, tokenize(datasets.Dataset.from_list(rows), tokenizer), tokenizer)
    rows[4]["system"] = "You are somebody else."
    rows[6]["conversations"][0]["value"] = "A question that nobody asked."
    rows[6]["conversations"][1]["value"] = "An answer that is long enough."
    assert select(tmp_path, write_lines(tmp_path / "pool.jsonl", rows)) in (0, 2)
    told = capsys.readouterr().out
    assert "9 of 10 samples are found" in told and "not found: 1 (sample 6)" in told
    assert "by the last question and the answers alone, because other turns or columns differ: 1 (sample 4)" in told


def test_with_scores_and_in_columns_each_sample_keeps_its_own(tmp_path: Path) -> None:
    dataset, selection, rows = prepare_run(tmp_path)
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "pool.parquet")
    target = tmp_path / "chosen.parquet"
    options = ["--format", "parquet", "--to", str(target), "--with-scores"]
    assert select(tmp_path, tmp_path / "pool.parquet", *options) == 0
    written, scores = pq.read_table(target), pq.read_table(tmp_path / "miwv" / "round-000" / "scores.parquet")
    assert written["id"].to_pylist() == ids_of(dataset, selection)
    assert written["pool_index"].to_pylist() == selection.tolist()
    assert written["miwv"].to_pylist() == [scores["miwv"].to_pylist()[index] for index in selection]


def test_columns_of_other_names_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": row["id"], "ask": row["instruction"], "reply": row["output"]} for row in alpaca()]
    file, tokenizer, names = write_lines(tmp_path / "pool.jsonl", rows), tiny_tokenizer(), "prompt=ask,response=reply"
    columns = dict(pair.split("=") for pair in names.split(","))
    dataset = tokenize(datasets.Dataset.from_list(rows).shuffle(seed=1), tokenizer, columns)
    selection = write_run(tmp_path, dataset, tokenizer)
    assert select(tmp_path, file) == 2
    assert "Columns of uncommon names are named with `--columns`" in capsys.readouterr().err
    assert select(tmp_path, file, "--columns", names) == 0
    assert [json.loads(line)["id"] for line in read_selected(tmp_path)] == ids_of(dataset, selection)


def test_a_run_without_hashes_of_texts_is_read_by_position_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an earlier version, or without a tokenizer and text columns."""
    columns = made_columns(COUNT)
    write_round(tmp_path / "old", columns, range(8))
    rows, tokenizer = alpaca(), tiny_tokenizer()
    tokenized = tokenize(datasets.Dataset.from_list(rows), tokenizer).select_columns(["input_ids", "labels"])
    write_run(tmp_path / "ids", tokenized, None)
    file = write_lines(tmp_path / "pool.jsonl", rows)
    for run in ("old", "ids"):
        assert select(tmp_path / run, file) == 0
        highest = np.sort(np.argsort(-columns["miwv"], kind="stable")[:8]).tolist()
        assert [json.loads(line)["id"] for line in read_selected(tmp_path / run)] == highest
        told = capsys.readouterr().out
        assert "does not say what its samples are" in told and "taken for the first 20 of 20 rows" in told
    assert main(["report", "--run", str(tmp_path / "old"), "--dataset", str(file)]) == 0
    assert "does not say what its samples are" in capsys.readouterr().out


def test_the_page_shows_the_texts_of_each_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, _, rows = prepare_run(tmp_path)
    gone = dataset[7]["id"]
    file = write_lines(tmp_path / "pool.jsonl", [row for row in rows if row["id"] != gone])
    assert main(["report", "--run", str(tmp_path), "--dataset", str(file)]) == 0
    assert "19 of 20 samples are found" in capsys.readouterr().out
    page = read_page(tmp_path)
    for index in page["shared"]["index"]:
        row = dataset[index]
        asked = "\n\n".join(filter(None, [row["instruction"], row["input"]]))
        expected = (asked, row["output"]) if index != 7 else ("(not found in the dataset)", "")
        assert (page["texts"]["prompt"][index], page["texts"]["response"][index]) == expected


def test_the_page_of_rendered_texts_shows_them(tmp_path: Path) -> None:
    rows, tokenizer = rendered(), qwen()
    dataset = by_sft(shuffle_dataset=True)(rows, tokenizer, tmp_path)
    write_run(tmp_path, dataset, tokenizer)
    file = write_lines(tmp_path / "pool.jsonl", rows)
    assert main(["report", "--run", str(tmp_path), "--dataset", str(file)]) == 0
    assert read_page(tmp_path)["texts"]["prompt"] == [rows[row["id"]]["text"] for row in dataset]


def test_after_a_training_the_lines_are_those_that_were_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SFTTrainer drops three samples (as of TRL 1.9) and shuffles the others; the whole file is given."""
    rows, number = texts(), 17 if is_at_least("trl", "1.9") else 20
    options = {"num_train_epochs": 1, "save_strategy": "no", "disable_tqdm": True}
    trainer = sft_trainer(tmp_path, rows, qwen(), max_length=64, shuffle_dataset=True, **options)
    callback = attach(trainer, MIWVConfig(fraction=0.4, embedder="tfidf"))
    trainer.train()
    file = write_lines(tmp_path / "pool.jsonl", rows)
    assert select(tmp_path, file) == 0
    trained = ids_of(trainer.train_dataset, callback.rounds[0].selection)
    assert read_selected(tmp_path) == [file.read_text().splitlines()[identity] for identity in trained]
    assert f"{number} of {number} samples are found among the 20 rows" in capsys.readouterr().out
    assert select(tmp_path, file, "--format", "dataset", "--to", str(tmp_path / "chosen")) == 0
    assert datasets.load_dataset(str(tmp_path / "chosen"), split="train")["id"][:] == trained
    summary = json.loads((tmp_path / "miwv" / "round-000" / "round.json").read_text())
    assert summary["texts_from"] == "columns"
