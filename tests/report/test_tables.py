"""Tables of rounds and scores on a terminal."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miwv_trainer.cli.main import main
from miwv_trainer.report.tables import format_left_out, format_scores
from tests.helpers.rounds import made_columns, write_round


def test_a_text_that_steers_the_terminal_is_shown_instead(tmp_path: Path) -> None:
    columns = made_columns(3)
    current = write_round(tmp_path, columns, [0])
    table = format_scores(current, ["\x1b[31mred \x9b0m", "bell\x07 \u202e", "größer 😀\n日本"])
    assert all(letter.isprintable() or letter == "\n" for letter in table)
    assert r"\x1b[31mred \x9b0m" in table and r"bell\x07 \u202e" in table and "größer 😀 日本" in table


@pytest.mark.parametrize("score", ["miwv", "low_miwv", "ifd", "zero_shot_loss", "longest", "random"])
def test_samples_are_listed_as_they_were_ranked(score: str, tmp_path: Path) -> None:
    columns = made_columns(12, seed=3)
    miwv, ifd = columns["miwv"], np.linspace(0.98, 0.2, 12)[np.argsort(np.cos(np.arange(12)))]
    columns["response_loss"] = (columns["zero_shot_loss"] - np.log(ifd)).astype(np.float32)
    values = {
        "low_miwv": -miwv, "ifd": ifd, "zero_shot_loss": columns["zero_shot_loss"],
        "longest": columns["response_tokens"], "random": np.sin(np.arange(12)),
    }.get(score, miwv).astype(np.float32)  # fmt: skip
    lines = format_scores(write_round(tmp_path, {**columns, "score": values}, [0], score=score)).splitlines()
    expected = np.argsort(-(miwv if score == "random" else values), kind="stable")
    shown = read_indices(lines)
    assert shown == [*expected[:5].tolist(), *expected[-2:].tolist()]
    own = {"ifd": "IFD", "longest": "longest"}.get(score)
    assert (own is None) or own in lines[0]
    assert ("IFD" in lines[0], "longest" in lines[0]) == (score == "ifd", score == "longest")
    if own is not None:
        assert f"{values[expected[0]]:.3f}" in lines[1]


def read_indices(lines: list[str]) -> list[int]:
    return [int(line.split()[0]) for line in lines[1:] if line != "   ..."]


@pytest.mark.parametrize(
    ("config", "left_out"),
    [
        # MIWV falls from sample 0 to sample 9, zero-shot losses rise, and samples 0 and 2 have short responses.
        ({"min_response_tokens": 5}, [0, 2]),
        ({"min_similarity": 0.5}, [1]),
        ({"loss_band": [0.0, 0.5]}, [5, 6, 7, 8, 9]),
        ({"quantile_band": [0.0, 0.8]}, [0, 1]),
        ({"score": "random", "min_response_tokens": 5}, [0, 2]),
        ({"score": "ifd"}, [0, 3, 4]),
        ({"score": "ifd", "min_response_tokens": 5}, [0, 2, 3, 4]),
        ({"score": "low_miwv", "quantile_band": [0.0, 0.8]}, [8, 9]),
    ],
    ids=str,
)
def test_what_a_guard_leaves_out_is_not_among_the_highest(config: Any, left_out: list[int], tmp_path: Path) -> None:
    columns = made_columns(10)
    columns["zero_shot_loss"] = np.linspace(1, 2, 10).astype(np.float32)
    columns["one_shot_loss"] = columns["zero_shot_loss"] + np.linspace(1, -1, 10).astype(np.float32)
    columns["miwv"] = columns["one_shot_loss"] - columns["zero_shot_loss"]
    columns["response_tokens"] = np.array([4, 9, 3, *[9] * 7], dtype=np.int32)
    columns["similarity"] = np.array([0.9, 0.1, *[0.9] * 8], dtype=np.float32)
    ifd = np.array([1.5, 0.9, 0.8, 1.2, 1.1, 0.7, 0.6, 0.5, 0.4, 0.3])
    columns["response_loss"] = (columns["zero_shot_loss"] - np.log(ifd)).astype(np.float32)
    scores = {"ifd": ifd, "low_miwv": -columns["miwv"]}.get(config.get("score"), columns["miwv"])
    columns["score"] = scores.astype(np.float32)
    expected = [index for index in np.argsort(-scores, kind="stable").tolist() if index not in left_out]
    shown = read_indices(format_scores(write_round(tmp_path, columns, [expected[0]], **config)).splitlines())
    assert shown == expected[:5] + expected[5:][-2:]


def test_a_sample_without_a_number_by_a_score_of_the_users_own_is_not_listed(tmp_path: Path) -> None:
    columns = made_columns(4)
    columns["score"] = np.array([np.nan, 0.5, 0.75, np.nan], dtype=np.float32)
    assert read_indices(format_scores(write_round(tmp_path, columns, [2], score="mine:rate")).splitlines()) == [2, 1]


def test_within_bands_of_length_the_highest_are_those_of_highest_rank(tmp_path: Path) -> None:
    columns = made_columns(4)
    columns["miwv"] = columns["score"] = np.array([0.75, 0.5, 0.25, 0.125], dtype=np.float32)
    columns["zero_shot_loss"] = np.ones(4, dtype=np.float32)
    columns["one_shot_loss"] = columns["zero_shot_loss"] + columns["miwv"]
    columns["response_tokens"] = np.array([9, 9, 90, 90], dtype=np.int32)
    current = write_round(tmp_path, columns, [0, 2], length_bands=2)
    assert read_indices(format_scores(current).splitlines()) == [0, 2, 1, 3]


def test_what_is_not_ranked_is_counted_by_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = made_columns(6)
    columns["response_tokens"] = np.array([1, 9, 1, 9, 0, 9], dtype=np.int32)
    for name in ("miwv", "score", "one_shot_loss"):
        columns[name][4] = np.nan
    current = write_round(tmp_path, columns, [1], min_response_tokens=5)
    told = "3 of 6 samples are not ranked: 1 unscorable: no response; 2 left out by min_response_tokens=5"
    assert format_left_out(current) == told
    assert main(["report", "--run", str(tmp_path)]) == 0
    assert told in capsys.readouterr().out.splitlines()
    assert format_left_out(write_round(tmp_path / "all", made_columns(6), [1])) == ""
    assert main(["report", "--run", str(tmp_path / "all")]) == 0
    printed = capsys.readouterr().out
    assert "not ranked" not in printed and "" not in printed.splitlines()


def test_a_round_without_losses_shows_its_scores_and_no_numbers_that_it_lacks(tmp_path: Path) -> None:
    columns = made_columns(4)
    nothing = np.full(4, np.nan, dtype=np.float32)
    columns |= dict.fromkeys(("zero_shot_loss", "one_shot_loss", "miwv", "similarity"), nothing)
    columns |= {"exemplar": np.full(4, -1), "score": columns["response_tokens"].astype(np.float32)}
    told, _, first, *_ = format_scores(write_round(tmp_path, columns, [0], score="longest")).splitlines()
    assert told == "Round 0 has no MIWV: its score is longest."
    longest = int(np.argmax(columns["response_tokens"]))
    assert first.split()[:5] == [str(longest), "-", "-", "-", f"{columns['response_tokens'][longest]:.3f}"]
    assert first.endswith("none")
