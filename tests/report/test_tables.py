"""Tables of rounds and scores on a terminal."""

from pathlib import Path

import numpy as np
import pytest

from miwv_trainer.report.tables import format_scores
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
    miwv = columns["miwv"]
    values = {
        "low_miwv": -miwv, "ifd": np.cos(np.arange(12)), "zero_shot_loss": columns["zero_shot_loss"],
        "longest": columns["response_tokens"], "random": np.sin(np.arange(12)),
    }.get(score, miwv).astype(np.float32)  # fmt: skip
    lines = format_scores(write_round(tmp_path, {**columns, "score": values}, [0], score=score)).splitlines()
    expected = np.argsort(-(miwv if score == "random" else values), kind="stable")
    shown = [int(line.split()[0]) for line in lines[1:] if line != "   ..."]
    assert shown == [*expected[:5].tolist(), *expected[-2:].tolist()]
    own = {"ifd": "IFD", "longest": "longest"}.get(score)
    assert (own is None) or own in lines[0]
    assert ("IFD" in lines[0], "longest" in lines[0]) == (score == "ifd", score == "longest")
    if own is not None:
        assert f"{values[expected[0]]:.3f}" in lines[1]


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
