"""What the page's table holds, read out of the packed data as `report.js` reads it."""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miwv_trainer.report import page_data
from miwv_trainer.report.page_data import build_data
from miwv_trainer.report.shortening import CUT
from miwv_trainer.report.texts import PoolTexts
from tests.helpers.rounds import made_columns, write_round

ROOM = 1_000_000


def unpack(data: str) -> dict[str, Any]:
    return json.loads(gzip.decompress(base64.b64decode(data)))


def test_columns_are_the_rounds_numbers_rounded(tmp_path: Path) -> None:
    columns = made_columns(30)
    columns["miwv"][4] = columns["score"][4] = np.nan
    data, notes = build_data([write_round(tmp_path, columns, [1, 2])], None, ROOM)
    found = unpack(data)
    assert found["shared"]["index"] == list(range(30)) and found["texts"] is None
    assert found["shared"]["responseTokens"] == columns["response_tokens"].tolist()
    (stored,) = found["rounds"]
    assert stored["miwv"][4] is None
    assert [value for value in stored["miwv"] if value is not None] == pytest.approx(
        np.delete(columns["miwv"], 4).tolist(), abs=5.1e-4
    )
    assert stored["score"] == "MIWV" and stored["ownScore"] is None and stored["age"] is None
    assert [index for index, code in enumerate(stored["reason"]) if code == stored["selected"]] == [1, 2]
    assert notes == ["Texts are not shown, because the report was made without --dataset."]


def test_a_score_that_no_column_holds_has_a_column_of_its_own(tmp_path: Path) -> None:
    columns = made_columns(30)
    (stored,) = unpack(build_data([write_round(tmp_path, columns, [1], score="random")], None, ROOM)[0])["rounds"]
    assert len(set(stored["ownScore"])) == 30 and stored["score"] == "random"


def test_rows_are_the_selected_then_the_earlier_selected_then_the_highest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_data, "MOST_ROWS", 20)
    columns = made_columns(50)
    order = np.argsort(-columns["miwv"], kind="stable")
    now, before = order[[0, 1, 49]], order[[45, 46, 47]]
    rounds = [write_round(tmp_path, columns, selection, number) for number, selection in enumerate((before, now))]
    data, notes = build_data(rounds, None, ROOM)
    assert unpack(data)["shared"]["index"] == sorted([*now, *before, *order[2:16]])
    assert notes[0].startswith("The table holds 20 of 50 samples: those that the last round selected, then those")


def test_early_rounds_are_left_out_where_many_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [write_round(tmp_path, made_columns(50, seed=number), [number], number) for number in range(4)]
    of_four = len(json.dumps(unpack(build_data(rounds, None, ROOM)[0])["rounds"], separators=(",", ":")))
    monkeypatch.setattr(page_data, "MOST_BYTES_OF_ROUNDS", of_four * 0.6)
    data, notes = build_data(rounds, None, ROOM)
    assert [stored["number"] for stored in unpack(data)["rounds"]] == [2, 3]
    assert notes[0] == "The table holds the last 2 of 4 rounds, to keep the page small."
    monkeypatch.setattr(page_data, "MOST_BYTES_OF_ROUNDS", 1)  # the last one stays in any case
    assert [stored["number"] for stored in unpack(build_data(rounds, None, ROOM)[0])["rounds"]] == [3]


def test_long_texts_are_cut_to_the_room_those_of_selected_samples_and_their_exemplars_least(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    words = np.asarray([f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"])
    texts = [" ".join(words[generator.integers(0, len(words), 300)]) for _ in range(400)]
    pool = PoolTexts(texts[:200], texts[200:])
    stored = write_round(tmp_path, made_columns(200), [10, 20])  # the exemplar of a sample is the one after it
    whole = unpack(build_data([stored], pool, ROOM)[0])["texts"]
    assert whole == {"prompt": pool.prompts, "response": pool.responses}
    room = 80_000
    data, notes = build_data([stored], pool, room)
    assert 0.7 * room < len(data) <= room
    for given, shown in zip(pool, unpack(data)["texts"].values(), strict=True):
        assert [index for index, text in enumerate(shown) if not text.endswith(CUT)] == [10, 11, 20, 21]
        assert all(text.startswith(cut.removesuffix(CUT)) for text, cut in zip(given, shown, strict=True))
    assert notes[0].startswith("Long texts are cut to keep the page below 10 MB: texts of selected samples and of")


def test_no_room_at_all_leaves_the_columns(tmp_path: Path) -> None:
    texts = PoolTexts(["a question"] * 20, ["an answer"] * 20)
    data, _ = build_data([write_round(tmp_path, made_columns(20), [1])], texts, 0)
    assert set(unpack(data)["texts"]["prompt"]) == {CUT} and len(unpack(data)["shared"]["index"]) == 20
