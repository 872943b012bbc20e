"""What is selected, typed on the command line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from miwv_trainer.cli.main import main
from miwv_trainer.config import SELECTION_FIELDS
from tests.helpers.tiny import instruction_rows, save_tiny

ROWS = [{**row, "task": "ab"[index % 2]} for index, row in enumerate(instruction_rows(30))]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny(folder / "model")
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture(scope="module")
def scored(inputs: Path) -> Path:
    score(inputs, inputs / "scored", "--min-response-tokens", "8")
    return inputs / "scored"


def score(inputs: Path, output: Path, *options: str) -> None:
    command = ["score", "--model", inputs / "model", "--dataset", inputs / "pool.jsonl", "--output", output]
    assert main([*map(str, command), "--embedder", "tfidf", "--fraction", "0.2", *options]) == 0


def columns(output: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(output / "miwv" / "round-000" / "scores.parquet")
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def selected(output: Path) -> list[int]:
    rows = [json.loads(line) for line in (output / "selected.jsonl").read_text().splitlines()]
    return [ROWS.index(row) for row in rows]


@pytest.mark.parametrize("name", ["random", "longest"])
def test_a_score_that_needs_no_forward(name: str, inputs: Path, tmp_path: Path, capsys: Any) -> None:
    score(inputs, tmp_path, "--score", name, "--seed", "7")
    found = columns(tmp_path)
    assert np.isnan(found["miwv"].astype(float)).all()
    assert selected(tmp_path) == np.flatnonzero(found["selected"]).tolist()
    by_length = sorted(range(30), key=lambda index: (-found["response_tokens"][index], index))
    assert (selected(tmp_path) == sorted(by_length[:6])) == (name == "longest")
    assert f"Round 0 has no MIWV: its score is {name}." in capsys.readouterr().out


def test_seeds_draw_other_samples(inputs: Path, tmp_path: Path) -> None:
    drawn = []
    for number, seed in enumerate(("1", "1", "2")):
        score(inputs, tmp_path / str(number), "--score", "random", "--seed", seed)
        drawn.append(selected(tmp_path / str(number)))
    assert drawn[0] == drawn[1] != drawn[2]


def test_guards_are_typed(inputs: Path, scored: Path) -> None:
    found = columns(scored)
    may = np.flatnonzero(found["response_tokens"] >= 8)
    highest = may[np.argsort(-found["miwv"][may], kind="stable")][:6]
    assert 6 < len(may) < 30 and selected(scored) == sorted(highest.tolist())


def test_select_keeps_the_guards_of_the_run_but_for_what_is_typed(inputs: Path, scored: Path, tmp_path: Path) -> None:
    found = columns(scored)

    def select(*options: str) -> list[int]:
        shutil.copytree(scored, tmp_path / "copy", dirs_exist_ok=True)
        command = ["select", "--scores", str(tmp_path / "copy"), "--dataset", str(inputs / "pool.jsonl")]
        assert main([*command, *options]) == 0
        return selected(tmp_path / "copy")

    may = np.flatnonzero(found["response_tokens"] >= 8)
    kept = may[np.argsort(-found["miwv"][may], kind="stable")]
    assert select("--fraction", "0.1") == sorted(kept[:3].tolist())
    lowest = may[np.argsort(found["miwv"][may], kind="stable")]
    assert select("--fraction", "0.1", "--score", "low_miwv") == sorted(lowest[:3].tolist())
    everything = np.argsort(-found["miwv"], kind="stable")
    assert select("--fraction", "0.1", "--min-response-tokens", "0") == sorted(everything[:3].tolist())
    assert select("--fraction", "0.1", "--preset", "paper") == sorted(kept[:3].tolist())
    in_groups = select("--fraction", "0.2", "--group-column", "task")
    assert sorted(ROWS[index]["task"] for index in in_groups) == ["a"] * 3 + ["b"] * 3
    low, high = np.quantile(found["miwv"][may], [0.2, 0.8])
    band = [index for index in kept if low <= found["miwv"][index] <= high]
    assert select("--fraction", "0.1", "--quantile-band", "0.2", "0.8") == sorted(band[:3])
    assert len(select("--fraction", "0.2", "--diversity", "facility_location")) == 6


def test_select_says_what_the_scores_lack(inputs: Path, scored: Path, tmp_path: Path, capsys: Any) -> None:
    score(inputs, tmp_path, "--score", "random")
    assert main(["select", "--scores", str(tmp_path), "--fraction", "0.1", "--score", "miwv"]) == 2
    assert "No sample of the pool may be selected: not one has a score" in (said := capsys.readouterr().err)
    assert "are of no forward" in said
    assert main(["select", "--scores", str(tmp_path), "--fraction", "0.1", "--diversity", "mmr"]) == 2
    assert "There are no embeddings in" in capsys.readouterr().err
    assert main(["select", "--scores", str(scored), "--fraction", "0.1", "--group-column", "task"]) == 2
    said = capsys.readouterr().err
    assert "by groups, as `--group-column` 'task' says, which is a column of the pool: give that as `--dataset`" in said


@pytest.mark.parametrize("command", ["score", "select"])
def test_every_field_that_decides_the_selection_is_an_option(command: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    for name in ("preset", *SELECTION_FIELDS):
        assert f"--{name.replace('_', '-')} " in shown


def test_scores_of_the_version_before_are_reported_and_selected_from(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have neither `score` nor `age`, and their summary knows nothing of guards; a new run moves them aside."""
    score(inputs, tmp_path)
    miwv = columns(tmp_path)["miwv"]
    file = tmp_path / "miwv" / "round-000" / "scores.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["score", "age"]), file)
    summary = json.loads((file.parent / "round.json").read_text())
    for name in ("left_out", "statistics", "scored", "epochs"):
        del summary[name]
    for name in SELECTION_FIELDS:
        del summary["config"][name]
        summary["fingerprint"].pop(name)
    (file.parent / "round.json").write_text(json.dumps(summary))
    capsys.readouterr()
    assert main(f"select --scores {tmp_path} --fraction 0.5".split()) == 0
    printed = [int(line) for line in capsys.readouterr().out.split()]
    assert printed == sorted(np.argsort(-miwv, kind="stable")[:15].tolist())
    assert main(["report", "--run", str(tmp_path)]) == 0
    assert f"{miwv.max():.3f}" in capsys.readouterr().out
    score(inputs, tmp_path)
    assert "score" in columns(tmp_path) and (tmp_path / "miwv" / "previous-0" / "round-000").is_dir()


def test_a_seed_below_nothing_is_refused_in_the_words_that_were_typed(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = f"score --model {inputs / 'model'} --dataset {inputs / 'pool.jsonl'} --output {tmp_path} --seed -1"
    assert main(typed.split()) == 2
    assert "`--seed` must be a whole number of at least 0" in capsys.readouterr().err
