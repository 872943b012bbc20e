"""`miwv score`, `select` and `report`, as typed."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import DataCollatorForSeq2Seq, Trainer

from miwv_trainer import MIWVConfig, attach, tokenize
from miwv_trainer.cli.main import main
from miwv_trainer.data.files import load_rows
from miwv_trainer.data.models import load_model
from tests.helpers.launch import accelerate_launch, fork_ranks, torchrun
from tests.helpers.tiny import LOCAL_WINDOWS, instruction_rows, save_tiny, tiny_model, tiny_tokenizer
from tests.helpers.trainers import arguments

ROWS = instruction_rows(20)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pool_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def scored(model_folder: Path, pool_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("scored")
    command = f"score --model {model_folder} --dataset {pool_file} --output {output} --embedder tfidf --fraction 0.2"
    assert main(command.split()) == 0
    return output


def read_summary(output: Path) -> dict[str, Any]:
    return json.loads((output / "miwv" / "round-000" / "round.json").read_text())


def selected_rows(output: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (output / "selected.jsonl").read_text().splitlines()]


def test_score_writes_the_files_others_read(scored: Path) -> None:
    table = pq.read_table(scored / "miwv" / "round-000" / "scores.parquet")
    summary = json.loads((scored / "miwv" / "round-000" / "round.json").read_text())
    assert table["index"].to_pylist() == list(range(20))
    miwv = table["one_shot_loss"].to_numpy() - table["zero_shot_loss"].to_numpy()
    np.testing.assert_allclose(table["miwv"].to_numpy(), miwv, atol=1e-6)
    highest = sorted(np.argsort(-table["miwv"].to_numpy(), kind="stable")[:4].tolist())
    assert np.flatnonzero(table["selected"].to_numpy()).tolist() == highest
    assert summary["number_selected"] == 4
    assert selected_rows(scored) == [ROWS[index] for index in highest]


def test_select_takes_another_fraction_of_the_same_scores(scored: Path, pool_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(scored, copy)
    assert main(f"select --scores {copy} --fraction 0.1 --dataset {pool_file}".split()) == 0
    miwv = pq.read_table(copy / "miwv" / "round-000" / "scores.parquet")["miwv"].to_numpy()
    assert selected_rows(copy) == [ROWS[index] for index in sorted(np.argsort(-miwv, kind="stable")[:2].tolist())]


def test_select_without_a_dataset_prints_indices(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"select --scores {scored} --fraction 0.2".split()) == 0
    table = pq.read_table(scored / "miwv" / "round-000" / "scores.parquet")
    printed = [int(line) for line in capsys.readouterr().out.split()]
    assert printed == np.flatnonzero(table["selected"].to_numpy()).tolist()


def test_report_shows_the_highest_samples(scored: Path, pool_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"report --run {scored} --dataset {pool_file}".split()) == 0
    printed = capsys.readouterr().out
    miwv = pq.read_table(scored / "miwv" / "round-000" / "scores.parquet")["miwv"].to_numpy()
    assert "round 0 (step 0): 4 of 20 selected" in printed
    assert f"{miwv.max():.3f}" in printed
    assert ROWS[int(miwv.argmax())]["instruction"] in printed


@pytest.mark.parametrize("launcher", ["accelerate", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_score_and_select_as_one_does(
    launcher: str, scored: Path, model_folder: Path, pool_file: Path, tmp_path: Path
) -> None:
    command = f"-m miwv_trainer score --model {model_folder} --dataset {pool_file} --output {tmp_path} --fraction 0.2"
    options = [*command.split(), "--embedder", "tfidf"]
    done = accelerate_launch("ddp", 2, *options) if launcher == "accelerate" else torchrun(2, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_summary(scored)["processes"] == 1
    assert read_summary(tmp_path)["processes"] == 2
    alone, shared = (pq.read_table(folder / "miwv" / "round-000" / "scores.parquet") for folder in (scored, tmp_path))
    for name in alone.column_names:
        if alone[name].null_count == len(alone):  # what this score does not measure; lists of nulls are no numbers
            assert shared[name].null_count == len(alone)
            continue
        is_loss = name in ("zero_shot_loss", "one_shot_loss", "miwv")
        np.testing.assert_allclose(shared[name].to_numpy(), alone[name].to_numpy(), atol=1e-5 if is_loss else 0, rtol=0)
    assert (tmp_path / "selected.jsonl").read_bytes() == (scored / "selected.jsonl").read_bytes()
    # One process prints, and one shows its progress.
    assert done.stdout.count("round 0 (step 0): 4 of 20 selected") == 1
    assert done.stdout.count("scores: ") == 1
    for bar in ("Loading weights", "Rendering the pool", "Scoring the pool"):
        assert len(re.findall(f"{bar}: +0%", done.stderr)) == 1, bar


# Prints the names of the threads that are alive when the interpreter begins to exit.
NAMING_THREADS = """
import atexit, pathlib, runpy, sys
names = lambda: [each.read_text().strip() for each in pathlib.Path("/proc/self/task").glob("*/comm")]
atexit.register(lambda: print("threads at exit:", *names()))
sys.argv[0] = "miwv"
runpy.run_module("miwv_trainer", run_name="__main__")
"""


def test_what_fails_on_two_processes_is_told_once(model_folder: Path, tmp_path: Path) -> None:
    options = f"--model {model_folder} --dataset {tmp_path / 'none.jsonl'} --output {tmp_path}".split()
    done = fork_ranks(2, "-c", NAMING_THREADS, "score", *options)
    assert done.returncode == 2
    assert len(re.findall(r"^miwv: .*none\.jsonl", done.stderr, flags=re.MULTILINE)) == 1
    assert "Traceback" not in done.stderr
    assert done.stdout.count("threads at exit:") == 2 and "gloo" not in done.stdout


def test_no_thread_of_a_process_group_is_alive_when_two_processes_exit(
    scored: Path, model_folder: Path, pool_file: Path, tmp_path: Path
) -> None:
    command = f"score --model {model_folder} --dataset {pool_file} --output {tmp_path} --embedder tfidf --fraction 0.2"
    done = fork_ranks(2, "-c", NAMING_THREADS, *command.split())
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("threads at exit:") == 2 and "gloo" not in done.stdout
    assert (tmp_path / "selected.jsonl").read_bytes() == (scored / "selected.jsonl").read_bytes()


def test_python_m_is_the_same_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["select", "--help"])
    done = subprocess.run([sys.executable, "-m", "miwv_trainer", "select", "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, capsys.readouterr().out)


def test_attach_and_score_agree_on_one_pool(scored: Path, model_folder: Path, pool_file: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(str(model_folder), "float32")
    trainer = Trainer(
        model=model,
        args=arguments(tmp_path, max_steps=1),
        # Without the text columns, so that the embedder sees decoded prompts.
        train_dataset=tokenize(load_rows(str(pool_file)), tokenizer).select_columns(["input_ids", "labels"]),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    callback = attach(trainer, MIWVConfig(fraction=0.2, embedder="tfidf"))
    trainer.train()
    typed = pq.read_table(scored / "miwv" / "round-000" / "scores.parquet")
    assert callback.rounds[0].column("exemplar").tolist() == typed["exemplar"].to_pylist()
    assert callback.rounds[0].selection.tolist() == np.flatnonzero(typed["selected"].to_numpy()).tolist()
    np.testing.assert_allclose(callback.rounds[0].column("miwv"), typed["miwv"].to_numpy(), atol=1e-6)


def test_select_with_a_shorter_dataset_is_refused(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:5]))
    assert main(f"select --scores {scored} --fraction 0.1 --dataset {tmp_path / 'short.jsonl'}".split()) == 2
    assert "has 5 samples, but" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["select --fraction 0.1 --scores", "report --run"])
def test_another_dataset_than_the_one_scored_is_refused(
    command: str, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (scored / "selected.jsonl").read_text()
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reversed(ROWS)))
    assert main([*command.split(), str(scored), "--dataset", str(tmp_path / "other.jsonl")]) == 2
    assert "are not those that" in capsys.readouterr().err
    assert (scored / "selected.jsonl").read_text() == before


def test_scoring_the_first_samples_only_can_be_selected_from_with_the_whole_file(
    model_folder: Path, pool_file: Path, tmp_path: Path
) -> None:
    command = f"score --model {model_folder} --dataset {pool_file} --output {tmp_path} --embedder tfidf --fraction 0.2"
    assert main([*command.split(), "--max-samples", "10"]) == 0
    assert main(f"select --scores {tmp_path} --fraction 0.3 --dataset {pool_file}".split()) == 0
    assert len(selected_rows(tmp_path)) == 3
    # Another pool in the same folder: the first one is moved aside, not lost and not mixed with.
    assert main(command.split()) == 0
    assert len(selected_rows(tmp_path)) == 4
    assert (tmp_path / "miwv" / "previous-0" / "round-000" / "scores.parquet").is_file()


def test_a_layout_that_the_model_cannot_take_is_refused_before_anything_is_moved(
    pool_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(LOCAL_WINDOWS).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    command = f"score --model {tmp_path / 'model'} --dataset {pool_file} --output {tmp_path} --fraction 0.2"
    assert main([*command.split(), "--embedder", "tfidf"]) == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "miwv").rglob("*")}
    # Another embedder, so that exemplars would be sought anew and the old ones moved aside.
    assert main([*command.split(), "--embedder", "model", "--layout", "tree"]) == 2
    assert 'GPTNeoForCausalLM cannot be scored with `layout="tree"`: its attention slides' in capsys.readouterr().err
    assert main([*command.split(), "--embedder", "model", "--attention", "varlen"]) == 2
    assert 'cannot be scored with `attention="varlen"`: ' in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "miwv").rglob("*")} == files


def test_scoring_again_reads_what_is_finished_and_writes_what_is_missing(
    model_folder: Path, pool_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = f"score --model {model_folder} --dataset {pool_file} --output {tmp_path} --embedder tfidf --fraction 0.2"
    assert main(command.split()) == 0
    selected = (tmp_path / "selected.jsonl").read_text()
    stamp = (tmp_path / "miwv" / "round-000" / "scores.parquet").stat().st_mtime_ns
    (tmp_path / "selected.jsonl").unlink()  # killed in between
    assert main(command.split()) == 0
    assert (tmp_path / "selected.jsonl").read_text() == selected
    assert (tmp_path / "miwv" / "round-000" / "scores.parquet").stat().st_mtime_ns == stamp
    assert f"Round 0 was finished before and is read from {tmp_path / 'miwv' / 'round-000'}." in caplog.messages
