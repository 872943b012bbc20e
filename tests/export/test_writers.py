"""`miwv select` into files that others take up: JSON Lines, Parquet, a folder for `load_dataset`, the hub."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from miwv_trainer import __version__
from miwv_trainer.cli import shared
from miwv_trainer.cli.main import main
from miwv_trainer.export import writers as export
from miwv_trainer.export.dataset_card import size_category
from tests.helpers.hub import start_hub
from tests.helpers.launch import ROOT
from tests.helpers.tiny import instruction_rows, save_tiny

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
        "words": datasets.List(datasets.Value("string")),
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


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret-folder") / "pool.parquet"
    typed_rows().to_parquet(path)
    return path


@pytest.fixture(scope="module")
def output(pool: Path) -> Path:
    save_tiny(pool.parent / "tiny-model")
    command = f"score --model {pool.parent / 'tiny-model'} --dataset {pool} --output {pool.parent / 'O'} --fraction 0.2"
    assert main([*command.split(), "--embedder", "tfidf", "--min-response-tokens", "8"]) == 0
    return pool.parent / "O"


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_dataset` reads the files, not what it made of others before."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


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


def test_the_card_says_what_was_scored_and_with_what(output: Path, pool: Path, tmp_path: Path) -> None:
    assert select(output, pool, "--format", "dataset", "--to", tmp_path / "chosen") == 0
    card = DatasetCard.load(tmp_path / "chosen" / "README.md")
    assert card.data.size_categories == "n<1K"
    assert {"miwv_trainer", "miwv"} <= set(card.data.tags)
    summary = json.loads((output / "miwv" / "round-000" / "round.json").read_text())
    cells = dict(re.findall(r"^\| (.+?) \| (.+) \|$", card.text, re.MULTILINE))
    threshold = min(scores(output)["miwv"][index] for index in highest(output))
    template = (pool.parent / "tiny-model" / "chat_template.jinja").read_text()
    expected = {
        "pool": "pool.parquet: 20 samples, 0 without a score",
        "fingerprint of its tokens": f"`{summary['fingerprint']['pool']}`",
        "model": f"tiny-model, float32, configuration `{summary['fingerprint']['model']['config']}`",
        "chat template": f"`{hashlib.sha256(json.dumps(template).encode()).hexdigest()[:16]}`",
        "embedder": "tfidf",
        "context": "512 tokens",
        "scores": "round 0, after 0 steps of training",
        "selected": f"6, MIWV {threshold:.4f} and above",
        "fraction": "0.3 of its samples",
        "guards": "min_response_tokens = 8",
        "left out": f"{sum(tokens < 8 for tokens in scores(output)['response_tokens'])} by min_response_tokens=8",
        "seed": "0",
        "miwv_trainer": f"{__version__}; scored with {__version__}",
        "date": datetime.now(UTC).date().isoformat(),
    }
    assert cells == expected
    assert 'load_dataset("chosen", split="train")' in card.text
    assert "miwv select --scores O --dataset pool.parquet --fraction 0.3 --format dataset --to chosen" in card.text
    # A card is published: nothing of the machine is in it.
    assert "secret-folder" not in card.text and str(tmp_path) not in card.text


def test_a_card_of_scores_that_a_trainer_or_an_older_version_wrote(output: Path, pool: Path, tmp_path: Path) -> None:
    shutil.copytree(output, tmp_path / "old")
    file = tmp_path / "old" / "miwv" / "round-000" / "round.json"
    summary = json.loads(file.read_text())
    for name in ("model", "chat_template", "library", "rows"):
        del summary[name]
    file.write_text(json.dumps(summary))
    assert select(tmp_path / "old", pool, "--format", "dataset") == 0
    text = (tmp_path / "old" / "selected" / "README.md").read_text()
    assert "| model | not recorded, float32, configuration `" in text
    assert "| chat template | not recorded: the pool was tokenised before |" in text


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
    assert [row["instruction"] for row in found] == [typed_rows()[i]["instruction"] for i in highest(output)]


def test_losses_that_are_not_known_are_nulls(pool: Path, output: Path, tmp_path: Path) -> None:
    command = f"score --model {pool.parent / 'tiny-model'} --dataset {pool} --output {tmp_path} --score longest"
    assert main(command.split()) == 0
    assert select(tmp_path, pool, "--format", "parquet", "--with-scores") == 0
    assert pq.read_table(tmp_path / "selected.parquet")["miwv"].null_count == 6
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


def test_a_path_behind_an_equals_sign_is_not_published_either(output: Path, pool: Path, tmp_path: Path) -> None:
    words = [
        f"--scores={output}",
        f"--dataset={pool}",
        "--fraction=0.3",
        "--format=dataset",
        f"--to={tmp_path / 'x=y'}",
    ]
    assert main(["select", *words]) == 0
    text = (tmp_path / "x=y" / "README.md").read_text()
    assert "miwv select --scores=O --dataset=pool.parquet --fraction=0.3 --format=dataset --to=x=y" in text
    assert "secret-folder" not in text and str(tmp_path) not in text


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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--format dataset --to {tmp}/other", "holds notes.txt, which this command did not write"),
        ("--format dataset --to {tmp}/card", "holds README.md, which this command did not write"),
        ("--format dataset --to {tmp}/file", "is a file, but `--format dataset` writes a folder"),
        ("--format parquet --to {tmp}/out.jsonl", "`--to` must end in .parquet with `--format parquet`"),
        ("--to {tmp}/out.csv", "`--to` must end in .jsonl with `--format jsonl`"),
        ("--format parquet --to {pool}", "is the pool itself"),
        ("--to {tmp}/folder.jsonl", "is a folder: give a file as `--to`"),
        ("--private", "`--private` is about a dataset on the hub"),
        ("--format parquet --push-to-hub a/b", "`--push-to-hub` uploads a folder: give `--format dataset`"),
        ("--push-to-hub a/b/c", "Repo id must be in the form"),
        ("--push-to-hub a/b", "without a token: run `hf auth login`, or set HF_TOKEN"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is(
    options: str,
    words: str,
    output: Path,
    pool: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("other", "card", "folder.jsonl"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    (tmp_path / "card" / "README.md").write_text("mine")
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(shared, "load_rows", lambda *_: pytest.fail("read"))
    files = sorted([*tmp_path.rglob("*"), *output.rglob("*")])
    assert select(output, pool, *options.format(tmp=tmp_path, pool=pool).split()) == 2
    assert words in refused(capsys)
    assert sorted([*tmp_path.rglob("*"), *output.rglob("*")]) == files


@pytest.mark.parametrize("option", ["--format parquet", "--to a.jsonl", "--with-scores", "--push-to-hub a/b"])
def test_what_is_about_samples_needs_them(option: str, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"select --scores {output} --fraction 0.1 {option}".split()) == 2
    assert f"`{option.split()[0]}` is about samples: give the pool as `--dataset`" in refused(capsys)


def test_a_pool_with_such_a_column_is_refused(pool: Path, output: Path, tmp_path: Path, capsys: Any) -> None:
    rows = [{**row, "miwv": 1.0} for row in instruction_rows(4)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"score --model {pool.parent / 'tiny-model'} --dataset {tmp_path / 'pool.jsonl'} --score longest"
    assert main([*command.split(), "--output", str(tmp_path)]) == 0
    assert select(tmp_path, tmp_path / "pool.jsonl", "--with-scores") == 2
    assert "has a column `miwv` already: leave `--with-scores` away" in refused(capsys)


@pytest.mark.parametrize(
    ("count", "category"), [(999, "n<1K"), (1_000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**7, "10M<n<100M")]
)
def test_sizes_have_the_hubs_names(count: int, category: str) -> None:
    assert size_category(count) == category


def pushed(address: str, output: Path, pool: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads these variables when it is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": address, "HF_TOKEN": "hf_of_a_test", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(output / "hub-cache"), "NO_PROXY": "127.0.0.1"}
    command = ["select", "--scores", output, "--dataset", pool, "--fraction", "0.3", "--push-to-hub", *options]
    return subprocess.run(
        [sys.executable, "-m", "miwv_trainer", *map(str, command)], capture_output=True, text=True, env=environment
    )


def test_a_selection_goes_to_the_hub(output: Path, pool: Path, tmp_path: Path) -> None:
    shutil.copytree(output, tmp_path / "O")
    with start_hub(files={"data/train-00001-of-00002.parquet": b"of an earlier selection"}) as hub:
        done = pushed(hub.address, tmp_path / "O", pool, "somebody/chosen", "--private")
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"name": "chosen", "organization": "somebody", "type": "dataset"}.items() <= hub.created.items()
    # Older versions of huggingface_hub send the second.
    assert hub.created.get("visibility") == "private" or hub.created.get("private") is True
    assert hub.tokens == {"Bearer hf_of_a_test"}
    folder = tmp_path / "O" / "selected"
    assert hub.files == {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    assert 'load_dataset("somebody/chosen", split="train")' in hub.files["README.md"].decode()
    (tmp_path / "pushed.parquet").write_bytes(hub.files["data/train-00000-of-00001.parquet"])
    found = datasets.Dataset.from_parquet(str(tmp_path / "pushed.parquet"))
    assert found.to_list() == [typed_rows()[index] for index in highest(output)]
    assert f"on the hub: {hub.address}/datasets/somebody/chosen" in done.stdout


def test_a_hub_that_refuses_leaves_the_folder_and_says_so(output: Path, pool: Path, tmp_path: Path) -> None:
    shutil.copytree(output, tmp_path / "O")
    with start_hub(refuses=True) as hub:
        done = pushed(hub.address, tmp_path / "O", pool, "somebody/chosen")
    assert done.returncode == 2
    said = done.stderr.rpartition("miwv: ")[2]
    assert "somebody/chosen could not be written to the hub (" in said and "403" in said
    assert f"is whole: try again, or run `hf upload somebody/chosen {tmp_path / 'O' / 'selected'}" in said
    assert (tmp_path / "O" / "selected" / "README.md").is_file()
