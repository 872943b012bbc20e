"""The benchmarks of selections: precision, diversity, planted faults, partial rescoring, settings."""

import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from benchmarks import diversity, ifd, precision, proxies, token_price
from benchmarks.faults import Faults, plant_faults
from benchmarks.rescoring import format_curve
from benchmarks.settings import Result, compare_with_random, format_table
from miwv_trainer.data.models import load_model
from miwv_trainer.data.pool import Pool
from tests.helpers.rounds import highest, made_columns, write_round
from tests.helpers.tiny import instruction_rows, save_tiny

SAMPLES = 8


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def pool_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in instruction_rows(SAMPLES)), encoding="utf-8")
    return str(path)


def test_precision_is_compared_with_float32_on_the_same_weights(
    model_folder: str, pool_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--model", model_folder, "--pool", pool_file, "--samples", str(SAMPLES), "--fraction", "0.25"]
    assert precision.main(command) == 0
    printed = capsys.readouterr().out
    lines = {line[:18].strip(): line[18:].split() for line in printed.splitlines() if line.endswith("%")}
    assert lines["float32"][1:] == [str(SAMPLES), "100.0%"]
    assert lines["bfloat16"][1] == "0" and 0 < int(lines["bfloat16, refined"][1]) <= SAMPLES
    moved = float(printed.split("single losses: moved by at most ")[1].split(",")[0])
    assert 0 < moved < 0.5


def test_bad_input_to_the_precision_benchmark_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert precision.main(["--pool", "nowhere.jsonl"]) == 2
    assert "benchmarks.precision: " in capsys.readouterr().err


def test_the_price_of_a_token_is_told_part_by_part(
    model_folder: str, pool_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert token_price.main(["--model", model_folder, "--pool", pool_file, "--samples", "8", "--repeat", "1"]) == 0
    printed = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line[:2] == "| "]
    parts = {row[0]: row[1:] for row in cells[1:]}
    assert list(parts) == ["tokens", "weights", "attention", "head", "rest", "the pass", "checks", "with checks"]
    assert int(parts["tokens"][2]) > int(parts["tokens"][3]) > 0
    for place in (0, 1):  # rounded to a microsecond each
        assert int(parts["attention"][place]) > 0
        found = sum(int(parts[name][place]) for name in ("weights", "attention", "head", "rest"))
        assert abs(found - int(parts["the pass"][place])) <= 3
    assert re.match(r"Trees forward \d\.\d\d times fewer tokens, of which each takes \d", printed.splitlines()[-1])


def test_bad_input_to_the_price_of_a_token_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert token_price.main(["--pool", "nowhere.jsonl"]) == 2
    assert "benchmarks.token_price: " in capsys.readouterr().err


def test_proxies_are_made_scored_once_and_compared_with_the_model(
    model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in instruction_rows(28)), encoding="utf-8")
    sizes = ["--samples", "12", "--distil", "8", "--train", "8", "--layers", "1"]
    options = ["--model", model_folder, "--pool", str(pool), "--output", str(tmp_path / "out"), *sizes]
    monkeypatch.setattr("sys.argv", ["proxies", *options])
    proxies.main()
    printed = capsys.readouterr().out
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    names = ["the model itself", "its first 1 layers", "its first 1 layers, distilled on 8 samples"]
    assert [row[0][2:] for row in rows[1:]] == [*names, "a copy fine-tuned on 8 samples"]
    full, first, distilled, tuned = rows[1:]
    assert full[2:6] == ["1.000", "1.000", "1 of 1", "3 of 3"]
    assert all(-1 <= float(row[2]) < 1 for row in (first, distilled))
    losses = [result["one_shot"] for result in proxies.read_results(tmp_path / "out" / "results.jsonl")]
    assert all(losses[one] != losses[other] for one, other in [(0, 1), (0, 3), (1, 2)])  # each was made of another
    assert int(full[6].replace(",", "")) == 2 * int(first[6].replace(",", "")) == int(tuned[6].replace(",", ""))
    proxies.main()  # nothing is scored again
    assert capsys.readouterr().out.splitlines()[-6:] == printed.splitlines()[-6:]


def test_the_diversity_benchmark_has_a_line_for_each_method_and_embedding(
    pool_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["diversity", "--pool", pool_file, "--take", "3", "--candidates", "6"])
    diversity.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith(f"{SAMPLES} samples; 3 taken of 6")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed[4:]]
    assert [row[0] for row in cells] == ["tf-idf"] * 4 + ["dense, 384-d"] * 4
    assert len({row[1] for row in cells}) == 4
    assert all(row[3] == "3" and -1 <= float(row[4]) <= 1 for row in cells)


def test_faults_are_planted_where_they_are_said_to_be() -> None:
    rows = datasets.Dataset.from_list(instruction_rows(60))
    changed, faults = plant_faults(rows)
    # Python's integers: datasets before 5 takes no others.
    swapped, copies, short = (faults.by_kind[kind].tolist() for kind in ("swapped", "copies", "one word"))
    originals = faults.originals.tolist()
    touched = [*swapped, *copies, *short, *originals]
    assert len(touched) == len(set(touched)) == 4 * 3
    assert sorted(changed[i]["output"] for i in swapped) == sorted(rows[i]["output"] for i in swapped)
    assert all(changed[i]["output"] != rows[i]["output"] for i in swapped)
    assert [changed[i] for i in copies] == [rows[i] for i in originals]
    assert all(len(changed[i]["output"].split()) == 1 for i in short)
    for index in set(range(60)) - {*swapped, *copies, *short}:
        assert changed[index] == rows[index]


def test_a_copy_counts_where_its_original_is_selected_too() -> None:
    faults = Faults({"copies": np.asarray([1, 2, 3]), "one word": np.asarray([4])}, np.asarray([11, 12, 13]))
    selection = np.asarray([1, 2, 4, 12, 13])
    assert faults.count("copies", selection) == 1 and faults.count("one word", selection) == 1


def test_a_full_budget_finds_the_full_rounds_selection(tmp_path: Path) -> None:
    count = 40
    columns = [made_columns(count, seed) for seed in range(2)]
    for each in columns:
        each["response_tokens"][:] = 2
        each["exemplar"] = columns[0]["exemplar"]
    rounds = [write_round(tmp_path, each, highest(each["miwv"], 4), number) for number, each in enumerate(columns)]
    offsets = np.arange(0, 4 * count + 1, 4)
    pool = Pool(np.arange(2), np.arange(4 * count) % 50, np.tile([False, False, True, True], count), offsets)
    lines = [line.strip("| ").split(" | ") for line in format_curve(rounds, pool, 64, 0.1).splitlines()]
    shares = {line[0]: [int(cell.rstrip(" %")) for cell in line[1:]] for line in lines[2:]}
    assert shares["1"] == [100, 100]
    kept = len(np.intersect1d(rounds[0].selection, rounds[1].selection))
    assert shares["none (round 0 kept)"] == [round(100 * kept / 4), 0]
    tokens = [cells[1] for budget, cells in shares.items() if budget[0] != "n"]
    assert tokens == sorted(tokens) and 0 < tokens[0] < 30  # the smallest budget is 5 % of the samples


def test_an_arm_is_better_where_the_difference_exceeds_two_standard_errors() -> None:
    # Standard errors 0.1 / sqrt(3) each, so that of the difference is 0.0816.
    random = [1.9, 2.0, 2.1]
    assert compare_with_random([1.7, 1.8, 1.9], random) == "-0.2000 (better)"
    assert compare_with_random([2.1, 2.2, 2.3], random) == "+0.2000 (worse)"
    assert compare_with_random([1.8, 1.9, 2.0], random) == "-0.1000 (no difference shown)"


def test_the_table_of_settings_is_sorted_by_loss_and_keeps_the_budgets_apart() -> None:
    def result(arm: str, budget: str, seed: int, loss: float) -> Result:
        return {"arm": arm, "budget": budget, "seed": seed, "samples": 10, "tokens": 100 + seed, "loss": loss}

    results = [result("untrained", "samples", 0, 9.0), result("MIWV", "tokens", 0, 0.1)]
    results += [result("random", "samples", seed, 2.0 + seed / 10) for seed in range(2)]
    results += [result("MIWV", "samples", seed, 3.0 + seed / 10) for seed in range(2)]
    head, _, *lines = format_table(results, "samples").splitlines()
    assert head == "Equal numbers of samples; untrained 9.0000:"
    assert lines[2:] == [
        "| random | 10 | 100 | 2.0500 | 0.0500 |  |",
        "| MIWV | 10 | 100 | 3.0500 | 0.0500 | +1.0000 (worse) |",
    ]


def test_ifd_is_held_against_the_way_of_the_public_scripts(
    model_folder: str, pool_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--model", model_folder, "--pool", pool_file, "--samples", str(SAMPLES)]
    assert ifd.main(command) == 0
    printed = capsys.readouterr().out
    assert "left out by the reference: 0" in printed
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("| the")
    ]
    assert [row[:2] for row in rows] == [
        [texts, f"ratio of {formula}"]
        for texts in ("the same texts", "the model's template")
        for formula in ("perplexities", "mean losses")
    ]
    assert float(rows[0][2]) > 0.999 and float(rows[0][5]) < 1e-4  # the same, to rounding
    assert float(rows[2][5]) > float(rows[0][5])  # other texts
    assert ifd.main([*command[:-1], "7000"]) == 2
    assert f"benchmarks.ifd: `--samples` must be from 3 to the pool's {SAMPLES}, but is 7000" in capsys.readouterr().err


def test_the_reference_leaves_out_what_is_too_long(model_folder: str, pool_file: str) -> None:
    model, tokenizer = load_model(model_folder)
    rows = ifd.draw_rows(pool_file, SAMPLES)
    prompts = [ifd.write_prompt(row) + ifd.OPENING for row in rows]
    lengths = [len(tokenizer.encode(prompt)) for prompt in prompts]
    found = ifd.measure_reference(model, tokenizer, rows, max(lengths))
    assert np.isnan(found.behind).tolist() == [length == max(lengths) for length in lengths]
    # A response that is cut keeps its first tokens, in both of its rows.
    sample = int(np.argmin(lengths))
    ids = tokenizer.encode(prompts[sample] + rows[sample]["output"])[: max(lengths)]
    labels = [-100] * lengths[sample] + ids[lengths[sample] :]
    expected = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
    assert found.behind[sample] == pytest.approx(expected, abs=1e-5)
