"""Whatever is wrong: one clear error, status 2, no traceback, nothing half written. docs/bad_input.md lists it all."""

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from miwv_trainer.cli import main as cli
from miwv_trainer.cli.main import main
from miwv_trainer.storage.store import Store
from tests.helpers.bad_input import BESIDE, CASES, ROWS, lines, score
from tests.helpers.forks import fork_python
from tests.helpers.launch import ROOT

DOCUMENT = ROOT / "docs" / "bad_input.md"


@pytest.fixture(autouse=True)
def nobody_beside() -> Iterator[None]:
    yield
    while BESIDE:
        process = BESIDE.pop()
        process.kill()
        process.communicate()


def half_written(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.startswith(".") or path.suffix in (".tmp", ".partial")]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_in_one_clear_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare, words = CASES[case]
    typed = prepare(tmp_path)
    rounds = sorted(tmp_path.rglob("round-*"))
    capsys.readouterr()
    assert main(typed) == 2
    said = capsys.readouterr().err.rpartition("miwv: ")[2]
    assert re.search(words, said, re.DOTALL), said
    assert "Traceback" not in said
    assert not half_written(tmp_path)
    assert sorted(tmp_path.rglob("round-*")) == rounds


def test_there_are_at_least_forty_of_them_and_the_document_lists_each() -> None:
    assert len(CASES) >= 40
    listed = re.findall(r"^\| ([^|]+?) +\|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(CASES) <= set(listed)
    # What the document says besides has tests elsewhere, which it names.
    for name in re.findall(r"`(tests/test_\w+\.py)`", DOCUMENT.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name


def test_a_process_of_its_own_ends_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    prepare, words = CASES["a file that is not UTF-8"]
    done = fork_python("-m", "miwv_trainer", *prepare(tmp_path))
    assert done.returncode == 2 and re.search(words, done.stderr) and "Traceback" not in done.stderr


LIMITED = (
    "import resource, sys; from miwv_trainer.cli import main, score\n"
    "find = score.find_exemplars\n"
    "def then_the_disk_is_full(*args, **kwargs):\n"
    "    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); return find(*args, **kwargs)\n"
    "score.find_exemplars = then_the_disk_is_full\n"
    "sys.exit(main.main({typed!r}))"
)


@pytest.mark.parametrize("limit", [0, 500, 2000])
def test_a_disk_that_is_full_leaves_nothing_half_written_and_no_old_file_changed(limit: int, tmp_path: Path) -> None:
    typed = score(tmp_path)
    assert main(typed) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    # Another pool, so that everything is written anew.
    typed = score(tmp_path, dataset=lines(tmp_path / "other.jsonl", [{**row, "output": "so"} for row in ROWS]))
    done = fork_python("-c", LIMITED.format(limit=limit, typed=typed))
    assert done.returncode == 2, done.stderr[-2000:]
    assert "could not be written" in done.stderr and "Traceback" not in done.stderr
    left = [name for name in half_written(tmp_path / "out") if not name.endswith(".journal")]
    assert not left
    kept = {path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert set(before.values()) <= kept


def test_a_rename_that_fails_is_told_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.write_exemplars(np.zeros(2), np.zeros(2), {"pool": "a"})
    before = {path: path.read_bytes() for path in store.folder.iterdir()}

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr("os.replace", busy)
    with pytest.raises(
        OSError, match=r"exemplars.parquet could not be written .*busy.*stood there before is unchanged"
    ):
        store.write_exemplars(np.ones(2), np.ones(2), {"pool": "b"})
    assert {path: path.read_bytes() for path in store.folder.iterdir()} == before


@pytest.mark.parametrize("name", ["exemplars.parquet", "embeddings.safetensors"])
def test_what_can_be_computed_again_is_moved_aside_where_it_is_cut(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    typed = score(tmp_path)
    assert main(typed) == 0
    path = tmp_path / "out" / "miwv" / name
    path.write_bytes(path.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        assert main(typed) == 0
    assert "moved to" in caplog.text
    assert not half_written(tmp_path)


def test_a_run_that_finds_no_exemplars_leaves_the_earlier_one_in_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    typed = score(tmp_path)
    assert main(typed) == 0
    folder = tmp_path / "out" / "miwv"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with caplog.at_level(logging.WARNING):
        assert main([*typed, "--embedder", str(tmp_path / "no-such-model")]) == 2
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert "moved to" not in caplog.text and not list(folder.glob("previous-*"))


def test_the_folder_is_free_again_when_a_run_has_ended_however_it_did(tmp_path: Path) -> None:
    prepare, words = CASES["a folder that another run uses"]
    typed = prepare(tmp_path)
    assert main(typed) == 2
    (process,) = BESIDE
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(typed) == 0
    assert main([*typed, "--no-refine"]) == 0


SLOWLY = (
    "import signal, sys, time; from miwv_trainer.cli.main import main\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
    "from transformers import LlamaForCausalLM\n"
    "forward = LlamaForCausalLM.forward\n"
    "def slowly(self, *args, **kwargs):\n"
    "    print('forward', flush=True); time.sleep(0.05); return forward(self, *args, **kwargs)\n"
    "LlamaForCausalLM.forward = slowly\n"
    "sys.exit(main({typed!r}))"
)


def test_ctrl_c_during_scoring_keeps_what_is_scored_and_says_so(tmp_path: Path) -> None:
    rows = [{**row, "instruction": f"{row['instruction']} {n}"} for n in range(20) for row in ROWS]
    typed = score(
        tmp_path, "--tokens-per-batch", "64", "--tokens-per-row", "64", dataset=lines(tmp_path / "p.jsonl", rows)
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY.format(typed=typed)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(40):
        while (line := process.stdout.readline()) != "forward\n":
            assert line, process.communicate()[1]
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Round 0 was interrupted. What it has scored is kept in" in said and "miwv: interrupted" in said
    assert "Traceback" not in said
    (journal,) = (tmp_path / "out" / "miwv" / ".round-000.journal").iterdir()
    assert len(journal.read_text().splitlines()) > 20
    assert main(typed) == 0
    assert not half_written(tmp_path)


def test_options_are_named_as_they_are_typed() -> None:
    words = "Lower `tokens_per_batch` and `tokens_per_row`, or set `refine_near_threshold=False`."
    typed = cli.name_as_typed(words)
    assert typed == "Lower `--tokens-per-batch` and `--tokens-per-row`, or set `--no-refine`."


def test_a_model_that_brings_code_is_not_let_run_it(tmp_path: Path) -> None:
    prepare, _ = CASES["a model that needs code of its repository"]
    assert main(prepare(tmp_path)) == 2
    assert not (tmp_path / "model" / "was-run").exists()


def test_a_sample_that_holds_a_path_or_a_template_is_text(tmp_path: Path) -> None:
    """Nothing of a dataset is run or names a file."""
    tricky = [
        "../../escaped",
        "{{ 7 * 7 }}",
        "{% include '/etc/passwd' %}",
        "$(touch escaped)",
        "\x00null",
        "\u2028line",
    ]
    rows = [{"instruction": f"Say {text} {n}", "output": text} for n, text in enumerate(tricky)]
    typed = score(tmp_path, dataset=lines(tmp_path / "pool.jsonl", rows))
    assert main(typed) == 0
    selected = [json.loads(line) for line in (tmp_path / "out" / "selected.jsonl").read_text().split("\n") if line]
    assert all(row in rows for row in selected)
    assert not list(tmp_path.rglob("escaped*")) and not (tmp_path.parent / "escaped").exists()
