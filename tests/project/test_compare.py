"""`examples/compare.py`: what it trains, what it says of it, and that a killed comparison goes on where it was."""

import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miwv_trainer import load_rows, pool_from_rows, tokenize
from tests.helpers.launch import ROOT
from tests.helpers.tiny import instruction_rows, save_tiny, tiny_dataset, tiny_model, tiny_tokenizer

EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))

import compare  # noqa: E402
from adapter import make_adapter_trainer  # noqa: E402
from comparison import (  # noqa: E402
    Result,
    build_page,
    compare_arms,
    compute_difference,
    describe_difference,
    format_markdown,
    make_rows,
    read_results,
    write_results,
)

ARMS = list(compare.ARMS)
SAMPLES, HELD_OUT, SEEDS = 40, 8, 2


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = save_tiny(tmp_path_factory.mktemp("model"))
    tiny_tokenizer().save_pretrained(folder)
    pool = folder / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in instruction_rows(SAMPLES)))
    options = (
        f"--model {folder} --dataset {pool} --fraction 0.25 --held-out {HELD_OUT} --longest 0 --max-samples 0 "
        f"--seeds {SEEDS} --epochs 2 --batch-size 4 --generations 2 --max-new-tokens 3"
    )
    return [sys.executable, str(EXAMPLES / "compare.py"), *options.split()]


@pytest.fixture(scope="module")
def finished(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("compared")
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return output, done.stdout


def results_of(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "results.json").read_text())["results"]


@pytest.mark.slow
def test_every_arm_is_trained_with_every_seed_at_both_budgets(finished: tuple[Path, str]) -> None:
    results = results_of(finished[0])
    expected = {("untrained", "", 0)} | {("full set", "", seed) for seed in range(SEEDS)}
    expected |= {(arm, budget, seed) for arm in ARMS[1:] for budget in ("samples", "tokens") for seed in range(SEEDS)}
    assert {(line["arm"], line["budget"], line["seed"]) for line in results} == expected
    assert len(results) == len(expected)
    pool = SAMPLES - HELD_OUT
    untrained = results[0]["loss"]
    whole = next(line["tokens"] for line in results if line["arm"] == "full set")
    for line in results[1:]:
        assert line["loss"] != untrained
        if line["budget"] == "samples":
            assert line["samples"] == pool // 4
        if line["budget"] == "tokens":
            assert line["tokens"] <= whole // 4
    longest = {line["tokens"] for line in results if line["arm"] == "longest" and line["budget"] == "samples"}
    others = [line["tokens"] for line in results if line["arm"] != "longest" and line["budget"] == "samples"]
    assert longest == {max(longest)} and max(longest) >= max(others)


@pytest.mark.slow
def test_the_arm_that_rescores_has_a_second_round_and_the_others_none(finished: tuple[Path, str]) -> None:
    rounds = {path.parents[1].name for path in finished[0].glob("trained/*/miwv/round-001")}
    assert rounds == {
        f"MIWV-rescored-equal-{budget}-seed-{seed}" for budget in ("samples", "tokens") for seed in (0, 1)
    }
    once = finished[0] / "scores-equal-samples" / "miwv" / "round-000" / "scores.parquet"
    again = finished[0] / "trained" / "MIWV-rescored-equal-samples-seed-1" / "miwv" / "round-000" / "scores.parquet"
    assert once.read_bytes() == again.read_bytes()
    assert not list(finished[0].glob("trained/*/miwv/round-002"))


@pytest.mark.slow
def test_what_it_prints_and_writes(finished: tuple[Path, str]) -> None:
    output, printed = finished
    page = (output / "comparison.md").read_text()
    for text in (printed, page):
        assert "Equal numbers of samples" in text and "Equal numbers of response tokens" in text
        assert all(text.count(arm) >= 2 for arm in ARMS)
    assert "27 of 27 runs to go" in printed and "[27/27] highest one-shot loss, equal tokens, seed 1: " in printed
    assert "train_runtime" not in printed
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_ends_the_same(
    command: list[str], finished: tuple[Path, str], tmp_path: Path
) -> None:
    command = [*command, "--output", str(tmp_path), "--seeds", "1"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **silent) as run:
        deadline = time.monotonic() + 120
        while not (tmp_path / "results.json").is_file() or len(results_of(tmp_path)) < 5:
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
    before = results_of(tmp_path)
    assert 5 <= len(before) < 14
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{14 - len(before)} of 14 runs to go" in done.stdout
    after = results_of(tmp_path)
    assert after[: len(before)] == before
    undisturbed = [line for line in results_of(finished[0]) if line["seed"] == 0]
    for line, other in zip(after, undisturbed, strict=True):
        assert {**line, "seconds": 0} == {**other, "seconds": 0}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Results as a comparison leaves them."""
    path = tmp_path / "results.json"
    results = [asdict(result("untrained", "", 0, 9.0)), asdict(result("random", "samples", 0, 1.0))]
    write_results(
        path, {"settings": {"fraction": 0.25}, "data": {"pool": "a" * 64, "held_out": "b" * 64}, "results": results}
    )
    return path


def test_results_are_read_as_they_were_written(written: Path) -> None:
    data = {"pool": "a" * 64, "held_out": "b" * 64}
    expected = [result("untrained", "", 0, 9.0), result("random", "samples", 0, 1.0)]
    assert read_results(written, {"fraction": 0.25}, data) == expected
    assert read_results(written.with_name("none.json"), {"fraction": 0.25}, data) == []


def test_other_settings_in_the_same_folder_are_refused(written: Path) -> None:
    with pytest.raises(SystemExit, match=r"was made with --fraction 0\.25, not 0\.5: give that, or another --output"):
        read_results(written, {"fraction": 0.5}, {})


@pytest.mark.parametrize("name", ["pool", "held_out"])
def test_other_samples_under_the_same_name_are_refused(name: str, written: Path) -> None:
    data = {"pool": "a" * 64, "held_out": "b" * 64, name: "0" * 64}
    with pytest.raises(SystemExit, match="made with other samples, though of the same name: give another --output"):
        read_results(written, {}, data)


@pytest.mark.parametrize(
    ("count", "steps", "expected"),
    [
        (10, 5, 2.8),  # batches of 8, 2, 8, 2, 8
        (3, 5, 5.0),  # all of them five times
        (16, 5, 2.5),
        (200, 5, 0.2),
        (8, 5, 5.0),
    ],
)
def test_how_often_samples_are_seen_counts_the_smaller_batches(count: int, steps: int, expected: float) -> None:
    assert compare.count_times_seen(count, steps, 8) == pytest.approx(expected)


def test_what_a_trainer_trains_on_in_so_many_steps(command: list[str], tmp_path: Path) -> None:
    """The same, counted where the batches go into the model."""
    tokenizer = tiny_tokenizer()
    samples = tokenize(tiny_dataset(10), tokenizer)
    trainer = make_adapter_trainer(
        tiny_model(), tokenizer, samples, tmp_path, 0, max_steps=5, per_device_train_batch_size=8
    )
    counts = []
    trainer.model.register_forward_pre_hook(
        lambda model, args, given: counts.append(len(given["input_ids"])), with_kwargs=True
    )
    trainer.train()
    assert counts == [8, 2, 8, 2, 8] and sum(counts) / 10 == compare.count_times_seen(10, 5, 8)


@pytest.mark.parametrize("option", ["--seeds", "--held-out", "--batch-size", "--rescores"])
def test_numbers_that_make_no_comparison_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.make_parser().parse_args([option, "0"])
    assert f"argument {option}: must be a whole number from 1 on, but got 0" in capsys.readouterr().err


def test_too_few_samples_are_refused(command: list[str]) -> None:
    arguments = compare.make_parser().parse_args([*command[2:], "--longest", "1"])
    with pytest.raises(
        SystemExit,
        match="has 0 samples of at most 1 tokens, of which --max-samples all are taken: 8 are held",
    ):
        compare.split_dataset(arguments, tiny_tokenizer())


def test_it_says_how_many_samples_the_limit_of_length_leaves_out(command: list[str]) -> None:
    tokenizer = tiny_tokenizer()
    arguments = compare.make_parser().parse_args([*command[2:], "--longest", "40"])
    lengths = pool_from_rows(load_rows(arguments.dataset), tokenizer).lengths
    pool, held_out, too_long = compare.split_dataset(arguments, tokenizer)
    assert 0 < too_long == (lengths > 40).sum() == SAMPLES - len(pool) - len(held_out)
    setting = compare.Setting(tiny_model(), tokenizer, pool, held_out, [], too_long, 1, arguments)
    assert compare.describe_limits(setting) == f"none longer than 40 tokens ({too_long} left out)"


def test_a_difference_is_paired_and_has_students_interval() -> None:
    # Differences 1, 2 and 3: mean 2, standard deviation 1; t(0.975, 2) = 4.3027 from any table.
    mean, half = compute_difference([11, 22, 33], [10, 20, 30])
    assert mean == 2 and half == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert describe_difference([11, 22, 33], [10, 20, 30]) == "+2.0000 ± 2.4841 (not shown)"
    assert describe_difference([1.0, 2.0, 3.1], [2.0, 3.0, 4.0]).endswith("(lower)")
    assert describe_difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.1]).endswith("(higher)")
    assert describe_difference([1.5], [1.0]) == "+0.5000"


def result(arm: str, budget: str, seed: int, loss: float, written: float = 0.5) -> Result:
    return Result(arm, budget, seed, 10, 100, 2.0, loss, 0.0, written, 1.0)


def test_rows_are_sorted_by_loss_and_compared_over_the_seeds_that_both_have() -> None:
    results = [result("untrained", "", 0, 9.0)]
    results += [result("full set", "", seed, 2.0 + seed) for seed in range(3)]
    results += [result("random", "samples", seed, 1.0 + seed) for seed in range(3)]
    results += [result("MIWV once", "samples", seed, 1.5 + seed) for seed in range(2)]
    results += [result("MIWV once", "tokens", 0, 0.5)]
    assert [row[0] for row in make_rows(results, "samples")][-1] == "full set"
    assert compare_arms(results, "MIWV once", "random", "samples") == "+0.5000 ± 0.0000 (higher)"
    assert compare_arms(results, "full set", "random", "samples") == "+1.0000 ± 0.0000 (higher)"
    assert compare_arms(results, "MIWV once", "random", "tokens") == ""
    assert [row[0] for row in make_rows(results, "tokens")] == ["MIWV once", "full set"]
    means = [float(row[4].split()[0]) for row in make_rows(results, "samples")]
    assert means == sorted(means) == [2.0, 2.0, 3.0]


def test_the_page_counts_seeds_and_degrees_of_freedom() -> None:
    results = [result("untrained", "", 0, 9.0)]
    results += [result(arm, "samples", seed, 1.0 + seed) for seed in range(3) for arm in ("random", "longest")]
    facts = {"model": "M", "pool": "P", "steps": "9 steps of up to 8 samples", "late": "3", "command": "C"}
    page = build_page(results, facts)
    assert (
        "over 3 seeds" in page
        and "2 degrees of freedom" in page
        and "same 9 steps of up to 8 samples. The last batch" in page
    )
    assert "trains on its last selection for the last 3 of these steps" in " ".join(page.split())
    assert "| random | 10 | 100 | 2.0 | 2.0000 ± 1.0000 |  |" in format_markdown(results, "samples")
    assert np.isnan(compute_difference([1.0], [2.0])[1])


def test_without_generations_nothing_is_said_of_them() -> None:
    results = [result("untrained", "", 0, 9.0, math.nan), result("random", "samples", 0, 1.0, math.nan)]
    head, _, row = format_markdown(results, "samples").splitlines()
    assert "ROUGE-L" not in head and "nan" not in row and head.count("|") == row.count("|")
