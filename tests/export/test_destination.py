"""Places where a selection cannot be written are refused before anything is read or written."""

from pathlib import Path

import pytest

from miwv_trainer.cli import shared
from miwv_trainer.cli.main import main
from tests.helpers.selected import refused, select


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


@pytest.mark.parametrize(
    "option",
    ["--format parquet", "--to a.jsonl", "--with-scores", "--push-to-hub a/b", "--columns prompt=a,response=b"],
)
def test_what_is_about_samples_needs_them(option: str, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"select --scores {output} --fraction 0.1 {option}".split()) == 2
    assert f"`{option.split()[0]}` is about samples: give the pool as `--dataset`" in refused(capsys)
