"""The two files of a round: their columns, types and nulls, and what they were made from."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from miwv_trainer.storage import provenance, stored_round
from miwv_trainer.storage.store import Store
from tests.helpers.measured import NAN
from tests.helpers.stored import COLUMNS, FINGERPRINT, SUMMARY, columns, files_under


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


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
        "ids_hash": 3,
        "text_hash": None,
        "words_hash": None,
        "answer_hash": None,
        "response_loss": None,
        "further_exemplars": None,
        "further_similarities": None,
        "further_losses": None,
    }


def test_further_exemplars_are_lists_of_as_many_as_a_sample_has(store):
    further = {
        "further_exemplars": np.array([[2, 0], [0, -1], [-1, -1]]),
        "further_similarities": np.array([[0.5, 0.25], [0.125, NAN], [NAN, NAN]], dtype=np.float32),
        "further_losses": np.array([[1.5, NAN], [2.5, NAN], [NAN, NAN]], dtype=np.float32),
    }
    summary = {**SUMMARY, "fingerprint": {**FINGERPRINT, "exemplars_per_sample": 3}}
    store.write_round(0, {**columns(), **further}, summary)
    lines = pq.read_table(store.round_folder(0) / "scores.parquet").to_pylist()
    assert [line["further_exemplars"] for line in lines] == [[2, 0], [0], []]
    assert [line["further_similarities"] for line in lines] == [[0.5, 0.25], [0.125], []]
    assert [line["further_losses"] for line in lines] == [[1.5, None], [2.5], []]
    read = store.read_round(0)
    for name, values in zip(("exemplar", "similarity", "one_shot_loss"), further.values(), strict=True):
        assert np.array_equal(
            read.ranked(name), np.column_stack([columns()[name], values]), equal_nan=name != "exemplar"
        )


def test_a_round_of_one_exemplar_a_sample_has_no_lists(store):
    read = store.write_round(0, columns(), SUMMARY)
    assert read.ranked("exemplar").tolist() == [[index] for index in columns()["exemplar"].tolist()]
    assert read.scores["further_losses"].null_count == 3


def test_hashes_that_an_older_version_did_not_write_are_read_as_not_known(store):
    store.write_round(0, {name: values for name, values in columns().items() if "hash" not in name}, SUMMARY)
    path = store.round_folder(0) / "scores.parquet"
    pq.write_table(pq.read_table(path).select(list(COLUMNS)[:11]), path)
    assert store.read_round(0).column("text_hash").tolist() == [0, 0, 0]
    assert store.read_round(0).column("miwv")[0] == 0.5


def test_a_round_is_two_files_that_other_programs_can_read(store):
    store.write_round(0, columns(), SUMMARY)
    assert files_under(store.folder) == ["round-000", "round-000/round.json", "round-000/scores.parquet"]
    described = json.loads((store.round_folder(0) / "round.json").read_text(encoding="utf-8"))
    assert described == {"version": 1, **SUMMARY}


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
    for module in (provenance, stored_round):
        monkeypatch.setattr(module, "FORMAT_VERSION", 0)
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


def test_an_output_folder_named_like_a_partition_changes_no_column(tmp_path):
    store = Store(tmp_path / "seed=1" / "miwv=2")
    store.write_round(0, columns(), SUMMARY)
    assert store.read_round(0).scores.column_names == list(COLUMNS)
    assert store.read_round(0).column("miwv")[0] == 0.5
