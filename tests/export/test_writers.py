"""What `miwv select` writes for others to load: JSON Lines, Parquet, a folder for `load_dataset`."""

import json
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from miwv_trainer.cli.main import main
from miwv_trainer.export import writers as export
from tests.helpers.selected import COUNT, FEATURES, highest, refused, scores, select, typed_rows
from tests.helpers.tiny import instruction_rows


def test_a_parquet_file_holds_the_chosen_samples_as_they_came(output: Path, pool: Path) -> None:
    assert select(output, pool, "--format", "parquet") == 0
    found = datasets.Dataset.from_parquet(str(output / "selected.parquet"))
    assert found.features == FEATURES
    assert found.to_list() == [typed_rows()[index] for index in highest(output)]


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("shards", [1, 4])
def test_a_folder_is_loaded_as_it_is(
    shards: int, output: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = typed_rows().data.nbytes * 6 / COUNT
    monkeypatch.setattr(export, "SHARD_BYTES", whole / (shards - 0.5))
    assert select(output, pool, "--format", "dataset", "--to", tmp_path / "chosen") == 0
    names = sorted(path.relative_to(tmp_path / "chosen").as_posix() for path in (tmp_path / "chosen").rglob("*.*"))
    assert names == ["README.md", *(f"data/train-{shard:05d}-of-{shards:05d}.parquet" for shard in range(shards))]
    found = datasets.load_dataset(str(tmp_path / "chosen"))
    assert list(found) == ["train"]
    assert found["train"].features == FEATURES
    assert found["train"].to_list() == [typed_rows()[index] for index in highest(output)]


def test_more_shards_than_samples_are_not_made(
    output: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "SHARD_BYTES", 1)
    assert select(output, pool, "--format", "dataset", "--to", tmp_path / "chosen") == 0
    lengths = [pq.read_metadata(path).num_rows for path in (tmp_path / "chosen" / "data").iterdir()]
    assert lengths == [1] * 6


@pytest.mark.parametrize(("kind", "name"), [("jsonl", "a.jsonl"), ("parquet", "a.parquet"), ("dataset", "a")])
def test_scores_stand_beside_the_samples_in_every_format(
    kind: str, name: str, output: Path, pool: Path, tmp_path: Path
) -> None:
    assert select(output, pool, "--format", kind, "--to", tmp_path / name, "--with-scores") == 0
    files = list(tmp_path.rglob("*.jsonl" if kind == "jsonl" else "*.parquet"))
    read = datasets.Dataset.from_json if kind == "jsonl" else datasets.Dataset.from_parquet
    found = read(str(files[0]))
    expected = scores(output)
    assert found["pool_index"] == highest(output)
    for column in ("zero_shot_loss", "one_shot_loss", "miwv"):
        np.testing.assert_allclose(found[column], [expected[column][i] for i in highest(output)], rtol=1e-6)
    np.testing.assert_array_equal(found["selection_score"], found["miwv"])
    assert [row["instruction"] for row in found] == [typed_rows()[i]["instruction"] for i in highest(output)]


def test_losses_that_are_not_known_are_nulls(pool: Path, output: Path, tmp_path: Path) -> None:
    command = f"score --model {pool.parent / 'tiny-model'} --dataset {pool} --output {tmp_path} --score longest"
    assert main(command.split()) == 0
    assert select(tmp_path, pool, "--format", "parquet", "--with-scores") == 0
    written = pq.read_table(tmp_path / "selected.parquet")
    assert written["miwv"].null_count == 6
    tokens = scores(tmp_path)["response_tokens"]
    assert written["selection_score"].to_pylist() == [tokens[index] for index in written["pool_index"].to_pylist()]
    assert select(tmp_path, pool, "--format", "dataset") == 0
    assert "tiny-model; nothing was forwarded" in (tmp_path / "selected" / "README.md").read_text()


@pytest.mark.usefixtures("empty_cache")
def test_another_selection_under_the_same_name_is_loaded_and_not_the_cached_one(
    output: Path, pool: Path, tmp_path: Path
) -> None:
    """`load_dataset` keeps what it has loaded, by the folder's name and, if the card lists no configs, its files."""
    for folder in ("a", "b"):
        for fraction, count in (("0.3", 6), ("0.1", 2), ("0.3", 6)):
            to = ("--format", "dataset", "--to", tmp_path / folder / "selected")
            assert select(output, pool, *to, "--fraction", fraction) == 0
            found = datasets.load_dataset(str(tmp_path / folder / "selected"), split="train")
            assert found.to_list() == [typed_rows()[index] for index in highest(output, count)]


def test_the_threshold_is_said_in_the_scores_own_direction(
    output: Path, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scores(output)
    may = sorted(found["miwv"][index] for index in range(COUNT) if found["response_tokens"][index] >= 8)
    assert select(output, pool, "--score", "low_miwv") == 0
    assert f"6 of 20 samples, MIWV {may[5]:.4f} and below: " in capsys.readouterr().out
    assert select(output, pool, "--score", "longest") == 0
    longest = sorted(found["response_tokens"])[-6]
    assert f"6 of 20 samples, longest {longest:.4f} and above: " in capsys.readouterr().out


def test_no_threshold_is_claimed_where_samples_above_it_are_passed_over(
    output: Path, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scores(output)
    assert select(output, pool, "--max-selected-similarity", "0.3") == 0
    said = capsys.readouterr().out
    chosen = [json.loads(line)["rating"] for line in (output / "selected.jsonl").read_text().splitlines()]
    lowest = min(found["miwv"][index] for index in chosen)
    left = [found["miwv"][i] for i in range(COUNT) if found["response_tokens"][i] >= 8 and i not in chosen]
    assert max(left) > lowest
    assert f"6 of 20 samples, lowest MIWV {lowest:.4f}: " in said


def test_an_earlier_selection_is_replaced_as_a_whole(
    output: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = ("--format", "dataset", "--to", tmp_path / "chosen")
    monkeypatch.setattr(export, "SHARD_BYTES", 1)
    assert select(output, pool, *to) == 0
    monkeypatch.undo()
    assert select(output, pool, *to, "--fraction", "0.1") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["chosen"]
    assert [path.name for path in (tmp_path / "chosen" / "data").iterdir()] == ["train-00000-of-00001.parquet"]


def test_what_stood_there_stays_where_writing_fails(
    output: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert select(output, pool, "--format", "dataset", "--to", tmp_path / "chosen") == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    rename = os.replace
    for number in range(1, 5):  # of the Parquet file, of the card, of the old folder, of the new one
        calls = []

        def fail(source: Any, target: Any, number: int = number, calls: list[Any] = calls) -> None:
            calls.append(source)
            if len(calls) == number:
                raise OSError("no space left")
            rename(source, target)

        monkeypatch.setattr(os, "replace", fail)
        assert select(output, pool, "--format", "dataset", "--to", tmp_path / "chosen", "--fraction", "0.1") == 2
        assert len(calls) >= number
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before, number


def test_a_pool_with_such_a_column_is_refused(pool: Path, output: Path, tmp_path: Path, capsys: Any) -> None:
    rows = [{**row, "miwv": 1.0} for row in instruction_rows(4)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"score --model {pool.parent / 'tiny-model'} --dataset {tmp_path / 'pool.jsonl'} --score longest"
    assert main([*command.split(), "--output", str(tmp_path)]) == 0
    assert select(tmp_path, tmp_path / "pool.jsonl", "--with-scores") == 2
    assert "has a column `miwv` already: leave `--with-scores` away" in refused(capsys)
