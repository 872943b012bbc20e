"""A score of the user's own on the command line: a function by its name, and an array by its file."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from miwv_trainer import MIWVConfig, read_rounds, select_again
from miwv_trainer.cli.main import main
from tests.helpers.own_scores import middle_miwv, shortest_first
from tests.helpers.selecting import select_highest
from tests.helpers.tiny import instruction_rows, save_tiny

ROWS = instruction_rows(30)
FUNCTIONS = "tests.helpers.own_scores"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny(folder / "model")
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    np.save(folder / "scores.npy", np.sin(np.arange(30)))
    assert main(score(folder, folder / "scored")) == 0
    return folder


def score(inputs: Path, output: Path, *options: str) -> list[str]:
    typed = ["score", "--model", inputs / "model", "--dataset", inputs / "pool.jsonl", "--output", output]
    return [*map(str, typed), "--embedder", "tfidf", "--fraction", "0.2", *options]


def select(inputs: Path, *options: str) -> list[str]:
    return ["select", "--scores", str(inputs / "scored"), "--fraction", "0.2", *options]


def test_a_function_scores_a_pool_and_selects_again(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(score(inputs, tmp_path, "--score", f"{FUNCTIONS}:middle_miwv", "--extra-losses", "both")) == 0
    (found,) = read_rounds(tmp_path)
    (scored,) = read_rounds(inputs / "scored")
    assert found.summary["config"]["score"] == f"{FUNCTIONS}:middle_miwv"
    expected = select_again(scored, MIWVConfig(fraction=0.2, score=middle_miwv)).selection
    assert found.selection.tolist() == expected.tolist() != scored.selection.tolist()
    capsys.readouterr()
    assert main(select(inputs, "--score", f"{FUNCTIONS}:middle_miwv")) == 0
    assert [int(line) for line in capsys.readouterr().out.split()] == expected.tolist()
    # The stored round knows its numbers, so that the function need not be named again.
    assert main(["select", "--scores", str(tmp_path), "--fraction", "0.2"]) == 0
    assert [int(line) for line in capsys.readouterr().out.split()] == expected.tolist()


def test_an_array_scores_a_pool_and_selects_again(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = str(inputs / "scores.npy")
    expected = select_highest(np.sin(np.arange(30)), 6).tolist()
    assert main(score(inputs, tmp_path, "--score", array)) == 0
    (found,) = read_rounds(tmp_path)
    assert found.summary["layout"] == "none" and found.selection.tolist() == expected
    capsys.readouterr()
    assert main(select(inputs, "--score", array)) == 0
    assert [int(line) for line in capsys.readouterr().out.split()] == expected
    # Guards and the card work as with any score.
    folder = tmp_path / "chosen"
    written = ["--dataset", str(inputs / "pool.jsonl"), "--format", "dataset", "--to", str(folder)]
    assert main(select(inputs, "--score", array, "--min-response-tokens", "9", *written)) == 0
    assert "min_response_tokens=9 leaves out" in capsys.readouterr().out
    assert "array of shape (30,)" in (folder / "README.md").read_text()


def test_a_module_of_the_current_folder_is_found(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scores_of_mine.py").write_text(
        "class Scores:\n    @staticmethod\n    def shortest(measured):\n        return -measured.response_tokens\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])  # as of a console script
    assert main(select(inputs, "--score", "scores_of_mine:Scores.shortest")) == 0
    indices = [int(line) for line in capsys.readouterr().out.split()]
    (scored,) = read_rounds(inputs / "scored")
    assert indices == select_again(scored, MIWVConfig(fraction=0.2, score=shortest_first)).selection.tolist()


BAD_ARRAYS = {
    "short.npy": (np.zeros(29), r"`--score` must give one number for each of the pool's 30 samples.* shape \(29,\)"),
    "flat.npy": (np.zeros((30, 1)), r"array of shape \(N,\) with one number a sample, .* shape \(30, 1\)"),
    "infinite.npy": (np.where(np.arange(30) == 3, np.inf, 1.0), "`--score` gave infinity, .* for 1 of 30 samples"),
    "words.npy": (np.array(["a"] * 30), r"gave shape \(30,\) of <U1"),
    "nothing.npy": (np.full(30, np.nan), "not one has a score"),
    "objects.npy": (np.array([None] * 30), "objects.npy could not be read as an array of numbers: give a file that"),
}
BAD_NAMES = {
    "none.npy": "`--score` is 'none.npy', but there is no such file",
    "no.such.module:score": r"module 'no.such.module' could not be imported \(ModuleNotFoundError: No module named",
    f"{FUNCTIONS}:middle": "tests.helpers.own_scores has no 'middle'. Its functions: another_on_.*middle_miwv",
    f"{FUNCTIONS}:np": "which is no function but of type module. Its functions: another_on_each_rank",
    "tests.helpers:np": "tests.helpers has no 'np'. It defines no function",
    ":score": r"the module '' could not be imported \(ValueError: Empty module name\)",
    f"{FUNCTIONS}:": "tests.helpers.own_scores has no ''. Its functions",
    f"{FUNCTIONS}:too_many": "must give one number for each of the pool's 30 samples",
    f"{FUNCTIONS}:in_vain": "`--score` tests.helpers.own_scores:in_vain failed: KeyError: 'quality'",
    f"{FUNCTIONS}:Measured": "which is no function but of type type",
}


@pytest.mark.parametrize("name", [*BAD_ARRAYS, *BAD_NAMES])
@pytest.mark.parametrize("command", ["score", "select"])
def test_what_is_no_score_is_told_in_one_line(
    command: str, name: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, typed = BAD_NAMES.get(name, ""), name
    if name in BAD_ARRAYS:
        array, words = BAD_ARRAYS[name]
        typed = str(tmp_path / name)
        np.save(typed, array, allow_pickle=True)
    given = ("--score", typed)
    assert main(score(inputs, tmp_path / "out", *given) if command == "score" else select(inputs, *given)) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert re.search(words, said), said
