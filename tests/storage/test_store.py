"""Rounds appear as whole folders, are never overwritten, and are archived without loss."""

import os
from pathlib import Path

import numpy as np
import pytest

from miwv_trainer.storage.store import Store
from tests.helpers.stored import FINGERPRINT, SUMMARY, columns, fail_to_replace, files_under


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


def test_rounds_are_listed_in_order_and_without_what_is_not_finished(store):
    assert store.list_rounds() == []
    for number in (10, 2, 0):
        store.write_round(number, columns(), SUMMARY)
    (store.folder / ".round-003.partial").mkdir()
    assert store.list_rounds() == [0, 2, 10]


def test_a_finished_round_is_never_overwritten(store):
    store.write_round(0, columns(), SUMMARY)
    before = (store.round_folder(0) / "scores.parquet").read_bytes()
    with pytest.raises(FileExistsError, match="round-000 exists already; finished rounds are never overwritten"):
        store.write_round(0, columns(miwv=np.zeros(3, dtype=np.float32)), SUMMARY)
    assert (store.round_folder(0) / "scores.parquet").read_bytes() == before


def test_a_round_folder_appears_whole(store, monkeypatch):
    """At every rename on the way the round's folder is absent; the last one brings it with both files."""
    replace = os.replace
    present = []

    def watch(source, target):
        present.append(store.round_folder(0).exists())
        replace(source, target)
        if Path(target) == store.round_folder(0):
            present.append(sorted(os.listdir(target)))

    monkeypatch.setattr(os, "replace", watch)
    store.write_round(0, columns(), SUMMARY)
    assert present == [False, False, False, ["round.json", "scores.parquet"]]


@pytest.mark.parametrize("failing", ["scores.parquet", "round.json", "round-000"])
def test_a_rename_that_fails_leaves_nothing_of_the_round(store, monkeypatch, failing):
    replace = os.replace

    def replace_most(source, target):
        (fail_to_replace if Path(target).name == failing else replace)(source, target)

    monkeypatch.setattr(os, "replace", replace_most)
    with pytest.raises(OSError, match="the disk is full"):
        store.write_round(0, columns(), SUMMARY)
    assert files_under(store.folder) == []
    monkeypatch.undo()
    assert store.list_rounds() == []
    store.write_round(0, columns(), SUMMARY)
    assert store.read_round(0).selection.tolist() == [0]


def test_what_a_killed_run_left_of_a_round_does_not_get_into_the_next(store):
    partial = store.folder / ".round-000.partial"
    partial.mkdir(parents=True)
    (partial / "stray").touch()
    store.write_round(0, columns(), SUMMARY)
    assert files_under(store.folder) == ["round-000", "round-000/round.json", "round-000/scores.parquet"]


def test_a_summary_that_json_cannot_hold_makes_no_round(store):
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_round(0, columns(), {**SUMMARY, "seconds": float("nan")})
    assert store.list_rounds() == []


def test_a_missing_round_is_an_error_that_lists_those_there(store):
    with pytest.raises(FileNotFoundError, match=r"There is no round 0 in .*miwv \(rounds there: none\)"):
        store.read_round(0)
    store.write_round(0, columns(), SUMMARY)
    store.write_round(1, columns(), SUMMARY)
    with pytest.raises(FileNotFoundError, match=r"There is no round 5 in .*miwv \(rounds there: 0, 1\)"):
        store.read_round(5)


def test_archived_rounds_are_moved_and_none_is_lost(store):
    for number in range(3):
        store.write_round(number, columns(), {**SUMMARY, "round": number})
    contents = {n: (store.round_folder(n) / "round.json").read_bytes() for n in range(3)}
    assert store.archive_rounds(1) == store.folder / "previous-0"
    assert store.list_rounds() == [0]
    store.write_round(1, columns(), {**SUMMARY, "round": "new"})
    assert store.archive_rounds() == store.folder / "previous-1"
    assert store.list_rounds() == []

    places = {1: "previous-0/round-001", 2: "previous-0/round-002", 0: "previous-1/round-000"}
    for number, place in places.items():
        assert (store.folder / place / "round.json").read_bytes() == contents[number]
        assert (store.folder / place / "scores.parquet").is_file()
    assert "new" in (store.folder / "previous-1/round-001/round.json").read_text(encoding="utf-8")


def test_archiving_nothing_makes_no_folder(store):
    assert store.archive_rounds() is None
    store.write_round(0, columns(), SUMMARY)
    assert store.archive_rounds(1) is None
    assert files_under(store.folder) == ["round-000", "round-000/round.json", "round-000/scores.parquet"]


def test_rounds_are_archived_although_an_earlier_folder_was_deleted(store):
    for _ in range(2):
        store.write_round(0, columns(), SUMMARY)
        store.archive_rounds()
    (store.folder / "previous-0").rename(store.output / "kept elsewhere")
    store.write_round(0, columns(), {**SUMMARY, "round": "third"})
    target = store.archive_rounds()
    assert target != store.folder / "previous-1"
    assert "third" in (target / "round-000" / "round.json").read_text(encoding="utf-8")
    assert (store.folder / "previous-1" / "round-000").is_dir()


def test_nothing_is_stored_as_a_pickle(store):
    store.write_round(0, columns(), SUMMARY)
    store.write_exemplars(np.array([1, 0]), np.array([0.5, 0.5], dtype=np.float32), FINGERPRINT)
    store.write_embeddings(np.ones((2, 3), dtype=np.float32), FINGERPRINT)
    assert {Path(name).suffix for name in files_under(store.folder)} == {"", ".json", ".parquet", ".safetensors"}
