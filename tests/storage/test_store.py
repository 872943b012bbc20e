import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse

from miwv_trainer.storage import store as store_module
from miwv_trainer.storage.atomic import atomic_path, write_text
from miwv_trainer.storage.store import Store

FINGERPRINT = {"pool": "abc", "embedder": "tfidf", "context": 512}
SUMMARY = {"fingerprint": FINGERPRINT, "number_selected": 1}

# What the README lists; columns are added at the end only.
COLUMNS = {
    "index": "int64",
    "exemplar": "int64",
    "similarity": "float",
    "prompt_tokens": "int32",
    "response_tokens": "int32",
    "zero_shot_loss": "float",
    "one_shot_loss": "float",
    "miwv": "float",
    "selected": "bool",
    "score": "float",
    "age": "int32",
}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


def columns(**changes) -> dict[str, np.ndarray]:
    """Three samples, of which the last was not scored."""
    nan = np.nan
    values = {
        "index": np.arange(3),
        "exemplar": np.array([1, 0, -1]),
        "similarity": np.array([0.5, 0.5, nan], dtype=np.float32),
        "prompt_tokens": np.array([4, 5, 6]),
        "response_tokens": np.array([7, 8, 9]),
        "zero_shot_loss": np.array([1.5, 2.5, nan], dtype=np.float32),
        "one_shot_loss": np.array([2.0, 2.25, nan], dtype=np.float32),
        "miwv": np.array([0.5, -0.25, nan], dtype=np.float32),
        "selected": np.array([True, False, False]),
        "score": np.array([0.5, -0.25, nan], dtype=np.float32),
        "age": np.array([0, 2, -1]),
    }
    return {**values, **changes}


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fail_to_replace(*_: object) -> None:
    raise OSError("the disk is full")


def test_scores_are_written_with_the_columns_and_types_of_the_design(store):
    store.write_round(0, columns(), SUMMARY)
    schema = pq.read_schema(store.output / "miwv" / "round-000" / "scores.parquet")
    assert {field.name: str(field.type) for field in schema} == COLUMNS
    assert schema.names == list(COLUMNS)


def test_a_round_is_read_as_it_was_written(store):
    written = store.write_round(3, columns(), SUMMARY)
    read = store.read_round(3, FINGERPRINT)
    assert (read.number, read.folder, read.summary) == (written.number, written.folder, written.summary)
    assert read.scores.equals(written.scores)
    for name, values in columns().items():
        assert np.array_equal(read.column(name), values, equal_nan=values.dtype.kind == "f")
    assert read.selection.tolist() == [0]


def test_what_was_not_scored_is_null_on_disk_and_not_nan(store):
    store.write_round(0, columns(), SUMMARY)
    last = pq.read_table(store.round_folder(0) / "scores.parquet").to_pylist()[2]
    assert last == {
        "index": 2,
        "exemplar": None,
        "similarity": None,
        "prompt_tokens": 6,
        "response_tokens": 9,
        "zero_shot_loss": None,
        "one_shot_loss": None,
        "miwv": None,
        "selected": False,
        "score": None,
        "age": None,
    }


def test_a_round_is_two_files_that_other_programs_can_read(store):
    store.write_round(0, columns(), SUMMARY)
    assert files_under(store.folder) == ["round-000", "round-000/round.json", "round-000/scores.parquet"]
    described = json.loads((store.round_folder(0) / "round.json").read_text(encoding="utf-8"))
    assert described == {"version": 1, **SUMMARY}


def test_rounds_are_listed_in_order_and_without_what_is_not_finished(store):
    assert store.rounds() == []
    for number in (10, 2, 0):
        store.write_round(number, columns(), SUMMARY)
    (store.folder / ".round-003.partial").mkdir()
    assert store.rounds() == [0, 2, 10]


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
    assert store.rounds() == []
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
    assert store.rounds() == []


def test_a_rename_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    target = tmp_path / "state.json"
    write_text(target, "old")
    monkeypatch.setattr(os, "replace", fail_to_replace)
    with pytest.raises(OSError, match="the disk is full"):
        write_text(target, "new")
    assert files_under(tmp_path) == ["state.json"]
    assert target.read_text(encoding="utf-8") == "old"


def test_a_block_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path):
    target = tmp_path / "state.json"
    write_text(target, "old")
    with pytest.raises(RuntimeError, match="halfway"), atomic_path(target) as path:
        path.write_text("ne", encoding="utf-8")
        raise RuntimeError("halfway")
    assert files_under(tmp_path) == ["state.json"]
    assert target.read_text(encoding="utf-8") == "old"


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append("fsync") or fsync(descriptor))
    monkeypatch.setattr(os, "replace", lambda *paths: events.append("replace") or replace(*paths))
    write_text(tmp_path / "new folder" / "state.json", "ünïcode\n")
    assert events == ["fsync", "replace", "fsync"]
    assert (tmp_path / "new folder" / "state.json").read_bytes() == "ünïcode\n".encode()


def test_a_missing_round_is_an_error_that_lists_those_there(store):
    with pytest.raises(FileNotFoundError, match=r"There is no round 0 in .*miwv \(rounds there: none\)"):
        store.read_round(0)
    store.write_round(0, columns(), SUMMARY)
    store.write_round(1, columns(), SUMMARY)
    with pytest.raises(FileNotFoundError, match=r"There is no round 5 in .*miwv \(rounds there: 0, 1\)"):
        store.read_round(5)


@pytest.mark.parametrize(("name", "own"), [("pool", "xyz"), ("embedder", "model"), ("context", 256)])
def test_a_round_made_from_something_else_is_refused_by_the_name_of_both_values(store, name, own):
    store.write_round(0, columns(), SUMMARY)
    words = rf"round-000 was made with {name} = {FINGERPRINT[name]!r}, but this run has {name} = {own!r}\. Use a fresh"
    with pytest.raises(ValueError, match=words):
        store.read_round(0, {**FINGERPRINT, name: own})


def test_a_round_without_an_expected_entry_is_refused(store):
    store.write_round(0, columns(), SUMMARY)
    with pytest.raises(ValueError, match="was made with fraction = None, but this run has fraction = 0.05"):
        store.read_round(0, {**FINGERPRINT, "fraction": 0.05})


def test_entries_that_nobody_expects_are_no_reason_to_refuse(store):
    store.write_round(0, columns(), {"fingerprint": {**FINGERPRINT, "model": {"config": "123"}}})
    assert store.read_round(0, FINGERPRINT).number == 0


def test_another_format_version_is_refused_everywhere(store, monkeypatch):
    monkeypatch.setattr(store_module, "FORMAT_VERSION", 0)
    store.write_round(0, columns(), SUMMARY)
    store.write_exemplars(np.array([1, 0]), np.array([0.5, 0.5], dtype=np.float32), FINGERPRINT)
    store.write_embeddings(np.ones((2, 3), dtype=np.float32), FINGERPRINT)
    monkeypatch.undo()
    words = r"{} has format version 0, but this miwv_trainer reads version 1\. Use the version that wrote it"
    with pytest.raises(ValueError, match=words.format("round-000")):
        store.read_round(0)
    with pytest.raises(ValueError, match=words.format(r"exemplars\.parquet")):
        store.read_exemplars(FINGERPRINT)
    with pytest.raises(ValueError, match=words.format(r"embeddings\.safetensors")):
        store.read_embeddings(FINGERPRINT)


def test_rounds_set_aside_are_moved_and_none_is_lost(store):
    for number in range(3):
        store.write_round(number, columns(), {**SUMMARY, "round": number})
    contents = {n: (store.round_folder(n) / "round.json").read_bytes() for n in range(3)}
    assert store.set_aside(1) == store.folder / "previous-0"
    assert store.rounds() == [0]
    store.write_round(1, columns(), {**SUMMARY, "round": "new"})
    assert store.set_aside() == store.folder / "previous-1"
    assert store.rounds() == []

    places = {1: "previous-0/round-001", 2: "previous-0/round-002", 0: "previous-1/round-000"}
    for number, place in places.items():
        assert (store.folder / place / "round.json").read_bytes() == contents[number]
        assert (store.folder / place / "scores.parquet").is_file()
    assert "new" in (store.folder / "previous-1/round-001/round.json").read_text(encoding="utf-8")


def test_setting_aside_nothing_makes_no_folder(store):
    assert store.set_aside() is None
    store.write_round(0, columns(), SUMMARY)
    assert store.set_aside(1) is None
    assert files_under(store.folder) == ["round-000", "round-000/round.json", "round-000/scores.parquet"]


def test_rounds_are_set_aside_although_an_earlier_folder_was_deleted(store):
    for _ in range(2):
        store.write_round(0, columns(), SUMMARY)
        store.set_aside()
    (store.folder / "previous-0").rename(store.output / "kept elsewhere")
    store.write_round(0, columns(), {**SUMMARY, "round": "third"})
    target = store.set_aside()
    assert target != store.folder / "previous-1"
    assert "third" in (target / "round-000" / "round.json").read_text(encoding="utf-8")
    assert (store.folder / "previous-1" / "round-000").is_dir()


def test_exemplars_are_read_as_they_were_written(store):
    assert store.read_exemplars(FINGERPRINT) is None
    exemplars, similarities = np.array([2, 0, -1]), np.array([0.25, 0.5, np.nan], dtype=np.float32)
    store.write_exemplars(exemplars, similarities, FINGERPRINT)
    read_exemplars, read_similarities = store.read_exemplars(FINGERPRINT)
    assert read_exemplars.dtype == np.int64
    assert read_exemplars.tolist() == exemplars.tolist()
    assert read_similarities.dtype == np.float32
    assert np.array_equal(read_similarities, similarities, equal_nan=True)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_embeddings_are_read_as_they_were_written(store, kind):
    assert store.read_embeddings(FINGERPRINT) is None
    dense = np.array([[0, 1, 0, 2], [0, 0, 0, 0], [3, 0, 0.5, 0]], dtype=np.float32)
    store.write_embeddings(dense if kind == "dense" else scipy.sparse.csr_matrix(dense), FINGERPRINT)
    read = store.read_embeddings(FINGERPRINT)
    assert isinstance(read, np.ndarray) == (kind == "dense")
    assert read.dtype == np.float32
    assert (read if kind == "dense" else read.toarray()).tolist() == dense.tolist()


def test_an_array_that_is_a_view_is_stored_by_its_values(store):
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    store.write_embeddings(matrix.T, FINGERPRINT)
    assert store.read_embeddings(FINGERPRINT).tolist() == matrix.T.tolist()


@pytest.mark.parametrize("kind", ["exemplars", "embeddings"])
def test_exemplars_and_embeddings_of_something_else_are_refused_by_the_name_of_both_values(store, kind):
    store.write_exemplars(np.array([1, 0]), np.array([0.5, 0.5], dtype=np.float32), FINGERPRINT)
    store.write_embeddings(np.ones((2, 3), dtype=np.float32), FINGERPRINT)
    words = rf"{kind}\.\w+ was made with pool = 'abc', but this run has pool = 'xyz'\. Use a fresh output folder"
    with pytest.raises(ValueError, match=words):
        getattr(store, f"read_{kind}")({**FINGERPRINT, "pool": "xyz"})


def test_nothing_is_stored_as_a_pickle(store):
    store.write_round(0, columns(), SUMMARY)
    store.write_exemplars(np.array([1, 0]), np.array([0.5, 0.5], dtype=np.float32), FINGERPRINT)
    store.write_embeddings(np.ones((2, 3), dtype=np.float32), FINGERPRINT)
    assert {Path(name).suffix for name in files_under(store.folder)} == {"", ".json", ".parquet", ".safetensors"}


def test_an_output_folder_named_like_a_partition_changes_no_column(tmp_path):
    store = Store(tmp_path / "seed=1" / "miwv=2")
    store.write_round(0, columns(), SUMMARY)
    assert store.read_round(0).scores.column_names == list(COLUMNS)
    assert store.read_round(0).column("miwv")[0] == 0.5
