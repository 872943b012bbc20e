"""`make benchmark-gpu`: its parts on a CPU with tiny models, and what becomes of parts that fail or take too long."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu, scoring
from tests.helpers.tiny import instruction_rows, save_tiny

PARTS = ["layouts and attentions", "7B-shaped Llama", "Gemma-3-shaped", "tests that need a GPU", "52,002 samples"]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("gpu")
    pool = folder / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in instruction_rows(12)), encoding="utf-8")
    return ["--tiny", "--model", str(save_tiny(folder / "model")), "--pool", str(pool)]


def launch_here(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Without a process of its own, which would import torch anew."""
    module, *arguments = command
    if module == "benchmarks.scoring":
        return scoring.main(arguments), "a table"
    assert command[:4] == ["pytest", "-q", "-m", "gpu"]
    return 0, "3 skipped"


def read_outcomes(path: Path) -> dict[str, str]:
    """What became of each part, by its name."""
    lines = path.read_text(encoding="utf-8").split("| part | what became of it | seconds |")[1].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:] if line]
    return {name: what for name, what, _ in cells}


def test_every_part_leaves_its_table(options: list[str], tmp_path: Path) -> None:
    output = tmp_path / "results.md"
    assert gpu.main([*options, "--output", str(output)], launch_here) == 0
    text = output.read_text(encoding="utf-8")
    assert "## `make benchmark-gpu`: tried on a CPU with tiny models" in text
    sections = text.split("\n### ")[1:]
    assert [section.split(" (")[0] for section in sections] == [
        "model", "random tiny-llama", "random tiny-gemma-3", "random tiny-llama",
    ]  # fmt: skip
    for layout in ("row", "padded_full", "padded", "mask", "segments", "ceiling"):
        assert f"\n| {layout} |" in sections[0]
    # The same losses, whatever the way to attend, and what cannot attend here is told by name.
    for section in (sections[0], sections[2]):
        assert "varlen: not available, because " in section and "\n| varlen |" not in section
        assert "Losses of mask against " in section and "DIFFERENT SAMPLES" not in section
    outcomes = read_outcomes(output)
    assert list(outcomes) == PARTS
    assert [outcomes[name] for name in PARTS[:4]] == ["done"] * 4
    assert outcomes[PARTS[4]].startswith("done (extrapolated from 8 samples: ")


def test_parts_that_fail_or_take_too_long_are_named_and_the_rest_goes_on(options: list[str], tmp_path: Path) -> None:
    output, launched = tmp_path / "results.md", []

    def launch(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
        launched.append(seconds)
        results: list[tuple[int | None, str]] = [(2, "first\nno memory\n"), (None, ""), (0, "a table"), (1, "")]
        return results[len(launched) - 1]

    assert gpu.main([*options, "--output", str(output)], launch) == 1
    outcomes = read_outcomes(output)
    assert launched == [120, 150, 120, 180]
    assert outcomes[PARTS[0]] == "failed with status 2: no memory"
    assert outcomes[PARTS[1]] == "stopped after 0 s"
    assert outcomes[PARTS[2]] == "done"
    assert outcomes[PARTS[3]] == "failed with status 1: nothing was written"
    assert outcomes[PARTS[4]] == "skipped: the tiny-llama part gave no seconds to estimate it by"


def test_what_the_time_does_not_allow_is_skipped_by_name(options: list[str], tmp_path: Path) -> None:
    output, launched = tmp_path / "results.md", []

    def launch(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
        launched.append((command[0], seconds))
        return 0, "done"

    assert gpu.main([*options, "--minutes", "0.55", "--output", str(output)], launch) == 0
    outcomes = read_outcomes(output)
    assert [name for name in PARTS if not outcomes[name].startswith("skipped: ")] == [PARTS[0], PARTS[3]]
    assert outcomes[PARTS[1]] == "skipped: 33 s were left, and it needs 40"
    assert all(seconds <= 33 for _, seconds in launched)


def test_a_command_that_takes_too_long_is_ended(capfd: pytest.CaptureFixture[str]) -> None:
    sleeping = ["timeit", "-n1", "-r1", "import time; time.sleep(60)"]
    assert gpu.run_command(sleeping, 0.5) == (None, "")
    status, written = gpu.run_command(["timeit", "-n1", "-r1", "1 / 0"], 60)
    assert status == 1 and "ZeroDivisionError" in written


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_trial_is_pointed_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "there is no CUDA device. `--tiny` tries the run on a CPU" in capsys.readouterr().err


def test_docstrings_as_long_as_the_answers_of_a_missing_pool_take_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "DEFAULT_POOL", tmp_path / "missing.jsonl.gz")
    rows = [json.loads(line) for line in Path(gpu.find_pool(tmp_path)).read_text(encoding="utf-8").splitlines()]
    lengths = np.array([len(row["output"]) for row in rows])
    assert len(rows) > 500 and all(row["instruction"] for row in rows) and lengths.min() > 0
    # Of the answers in alpaca_gpt4_1k: 702 characters on average, half of them shorter than 465.
    assert lengths.mean() == pytest.approx(702, rel=0.1) and np.median(lengths) == pytest.approx(465, rel=0.15)


def test_the_files_with_tests_for_a_gpu_are_those_that_run_on_one() -> None:
    root = gpu.ROOT
    found = [path for path in root.glob("tests/**/test_*.py") if "pytest.mark.gpu" in path.read_text(encoding="utf-8")]
    assert {path.relative_to(root).as_posix() for path in found} - {"tests/project/test_benchmark_gpu.py"} == set(
        gpu.GPU_TESTS
    )
