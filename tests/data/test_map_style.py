"""What is no map-style dataset is refused with a way out."""

import datasets
import pytest

from miwv_trainer.data.map_style import check_map_style, find_name
from miwv_trainer.data.tokenized import read_tokenized
from tests.helpers.tokenized import (
    Stream,
    labelled_dataset,
    labelled_rows,
)


@pytest.mark.parametrize("split", [datasets.DatasetDict, dict])
def test_a_dictionary_of_splits_is_refused_with_the_names_of_the_splits(split):
    splits = split({"train": labelled_dataset(), "test": labelled_dataset()})
    with pytest.raises(TypeError, match=r"dictionary of splits \(train, test\); pass one of them.*dataset\['train'\]"):
        check_map_style(splits)


@pytest.mark.parametrize(
    "stream",
    [Stream(), labelled_dataset().to_iterable_dataset(), (row for row in labelled_rows()), object(), None],
    ids=["torch", "datasets", "generator", "object", "None"],
)
def test_a_dataset_without_length_or_index_is_refused_with_a_way_out(stream):
    words = f"must be a map-style dataset.*got {type(stream).__name__}.*without `streaming=True`.*from_generator"
    with pytest.raises(TypeError, match=words):
        read_tokenized(stream)


def test_a_dataset_has_the_name_of_its_folder_if_it_was_loaded_from_one(tmp_path):
    (tmp_path / "rivers").mkdir()
    labelled_dataset().to_json(tmp_path / "rivers" / "train.jsonl")
    loaded = datasets.load_dataset(str(tmp_path / "rivers"), split="train", cache_dir=str(tmp_path / "cache"))
    assert find_name(loaded.select([0]).map(lambda row: {"more": 1})) == "rivers"
    files = str(tmp_path / "rivers" / "train.jsonl")
    named_by_reader = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    for unnamed in (named_by_reader, labelled_dataset(), labelled_rows()):
        assert find_name(unnamed) is None
