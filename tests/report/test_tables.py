"""Tables of rounds and scores on a terminal."""

from pathlib import Path

from miwv_trainer.report.tables import format_scores
from tests.helpers.rounds import made_columns, write_round


def test_a_text_that_steers_the_terminal_is_shown_instead(tmp_path: Path) -> None:
    columns = made_columns(3)
    current = write_round(tmp_path, columns, [0])
    table = format_scores(current, ["\x1b[31mred \x9b0m", "bell\x07 \u202e", "größer 😀\n日本"])
    assert all(letter.isprintable() or letter == "\n" for letter in table)
    assert r"\x1b[31mred \x9b0m" in table and r"bell\x07 \u202e" in table and "größer 😀 日本" in table
