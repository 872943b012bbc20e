"""Every kind of tokenised dataset gives the same pool; what is none is refused by the number of its sample."""

import datasets
import numpy as np
import pytest
import torch

from miwv_trainer.data.turn_markers import TurnMarkers
from tests.helpers.tokenized import (
    BOS,
    CHAT_MARKERS,
    IDS,
    LABELS,
    MASKS,
    NO_MARKERS,
    USER,
    MapStyle,
    as_lists,
    labelled_dataset,
    labelled_rows,
    pool_from,
    pool_of,
    tensors,
)


def many_chunks():
    parts = [datasets.Dataset.from_list([row]) for row in labelled_rows()]
    return datasets.concatenate_datasets(parts)


def behind_an_index():
    reversed_rows = datasets.Dataset.from_list(labelled_rows()[::-1])
    return reversed_rows.select([2, 1, 0])


DATASETS = {
    "a list of dicts": lambda: labelled_rows(),
    "torch dataset of lists": lambda: MapStyle(labelled_rows()),
    "torch dataset of tensors": lambda: MapStyle(tensors(labelled_rows())),
    "torch subset": lambda: torch.utils.data.Subset(MapStyle(labelled_rows()), [0, 1, 2]),
    "datasets": labelled_dataset,
    "datasets in several chunks": many_chunks,
    "datasets behind an index": behind_an_index,
    "datasets with torch format": lambda: labelled_dataset().with_format("torch"),
    "datasets with numpy format": lambda: labelled_dataset().with_format("numpy"),
    "datasets with some columns formatted": lambda: labelled_dataset().with_format("torch", columns=["labels"]),
    "datasets with 32-bit ids": lambda: labelled_dataset().cast_column(
        "input_ids", datasets.Sequence(datasets.Value("int32"))
    ),
    "datasets with large lists": lambda: labelled_dataset().cast_column(
        "input_ids", datasets.LargeList(datasets.Value("int64"))
    ),
    "datasets with a transform": lambda: labelled_dataset().with_transform(lambda batch: dict(batch)),
    "datasets with a column more": lambda: labelled_dataset().add_column("topic", ["a", "b", "c"]),
}


@pytest.mark.parametrize("kind", DATASETS)
def test_every_kind_of_map_style_dataset_gives_the_same_pool(kind):
    pool = pool_from(DATASETS[kind]())
    assert as_lists(pool) == (IDS, MASKS)
    assert pool.fingerprint == pool_of(IDS, MASKS).fingerprint


def test_a_file_gives_the_same_fingerprint_as_the_rows_it_holds(tmp_path):
    labelled_dataset().to_json(tmp_path / "any_name.jsonl")
    labelled_dataset().to_parquet(tmp_path / "other_name.parquet")
    cache = str(tmp_path / "cache")
    from_json = datasets.load_dataset("json", data_files=str(tmp_path / "any_name.jsonl"), cache_dir=cache)["train"]
    from_parquet = datasets.Dataset.from_parquet(str(tmp_path / "other_name.parquet"), cache_dir=cache)
    assert pool_from(from_json).fingerprint == pool_from(from_parquet).fingerprint == pool_of(IDS, MASKS).fingerprint


def test_a_transform_that_tokenizes_raw_columns_is_read_as_what_it_yields():
    def look_up(batch):
        return {"input_ids": [IDS[n] for n in batch["number"]], "labels": [LABELS[n] for n in batch["number"]]}

    raw = datasets.Dataset.from_dict({"number": [0, 1, 2]}).with_transform(look_up)
    assert as_lists(pool_from(raw)) == (IDS, MASKS)


def test_columns_of_lists_of_one_fixed_length_are_read_too():
    fixed = datasets.Sequence(datasets.Value("int64"), length=3)
    dataset = datasets.Dataset.from_dict(
        {"input_ids": [[5, 6, 7], [8, 9, 10]], "labels": [[-100, 6, 7], [-100, -100, 10]]},
        features=datasets.Features({"input_ids": fixed, "labels": fixed}),
    )
    assert as_lists(pool_from(dataset)) == ([[5, 6, 7], [8, 9, 10]], [[0, 1, 1], [0, 0, 1]])


def test_rows_beyond_one_arrow_batch_stay_in_order():
    count = 10_003  # one batch is 10,000
    ids = [[index + 1, index + 2] for index in range(count)]
    pool = pool_from(datasets.Dataset.from_dict({"input_ids": ids, "labels": [[-100, i[1]] for i in ids]}))
    assert pool.tokens.tolist() == [token for pair in ids for token in pair]
    assert pool.is_response.tolist() == [False, True] * count


@pytest.mark.parametrize("column", ["completion_mask", "assistant_masks"])
@pytest.mark.parametrize("build", [datasets.Dataset.from_list, MapStyle])
def test_without_labels_a_mask_column_says_what_is_response(column, build):
    rows = [{"input_ids": i, column: m} for i, m in zip(IDS, MASKS, strict=True)]
    assert as_lists(pool_from(build(rows))) == (IDS, MASKS)


def test_where_both_masks_exist_the_response_is_what_both_mark():
    rows = [
        {"input_ids": [5, 6, 7, 8], "completion_mask": [0, 1, 1, 1], "assistant_masks": [1, 0, 1, 1]},
        {"input_ids": [5, 6], "completion_mask": [0, 1], "assistant_masks": [0, 1]},
    ]
    assert as_lists(pool_from(rows))[1] == [[0, 0, 1, 1], [0, 1]]


def test_labels_take_precedence_over_masks():
    rows = [{**row, "completion_mask": [1] * len(row["input_ids"])} for row in labelled_rows()]
    assert as_lists(pool_from(rows))[1] == MASKS


def test_a_label_is_response_even_where_it_is_token_zero():
    rows = [{"input_ids": [5, 0], "labels": [-100, 0]}, {"input_ids": [6, 7], "labels": [-100, 7]}]
    assert as_lists(pool_from(rows)) == ([[5, 0], [6, 7]], [[0, 1], [0, 1]])


@pytest.mark.parametrize("build", [datasets.Dataset.from_list, lambda rows: MapStyle(tensors(rows))])
def test_padding_on_either_side_is_left_out(build):
    padded = [
        {
            "input_ids": [5, 6, 7, 8, 0, 0],
            "labels": [-100, -100, 7, 8, -100, -100],
            "attention_mask": [1, 1, 1, 1, 0, 0],
        },
        {
            "input_ids": [0, 0, 0, 0, 9, 10],
            "labels": [-100, -100, -100, -100, -100, 10],
            "attention_mask": [0, 0, 0, 0, 1, 1],
        },
        {
            "input_ids": [11, 12, 13, 14, 15, 0],
            # a label on padding, as a collator that pads labels with the pad token leaves it
            "labels": [-100, 12, -100, 14, -100, 0],
            "attention_mask": [1, 1, 1, 1, 1, 0],
        },
    ]
    pool = pool_from(build(padded))
    assert as_lists(pool) == (IDS, MASKS)
    assert pool.fingerprint == pool_of(IDS, MASKS).fingerprint


def test_samples_that_are_no_dictionaries_are_refused():
    with pytest.raises(ValueError, match="must be dictionaries with `input_ids` and `labels`, but.* is a tuple"):
        pool_from(MapStyle([(IDS[0], LABELS[0]), (IDS[1], LABELS[1])]))


def test_a_packed_dataset_is_refused():
    rows = [{**row, "seq_lengths": [len(row["input_ids"])]} for row in labelled_rows()]
    with pytest.raises(ValueError, match="packed .*`seq_lengths`.*Set `packing=False`"):
        pool_from(datasets.Dataset.from_list(rows))


PACKED_ROWS = {
    "positions begin again": {"position_ids": [0, 1, 0, 1, 2]},
    "positions begin again, no padding": {"position_ids": [0, 1, 2, 0, 1], "attention_mask": [1] * 5},
    "the mask numbers the samples": {"attention_mask": [1, 1, 2, 2, 0]},
}


@pytest.mark.parametrize("build", [MapStyle, datasets.Dataset.from_list])
@pytest.mark.parametrize("columns", PACKED_ROWS.values(), ids=PACKED_ROWS)
def test_samples_that_share_a_line_are_refused(build, columns):
    """As LLaMA-Factory packs: no `seq_lengths`, and samples in one line all the same."""
    alone = {name: [int(name == "attention_mask")] * 5 for name in columns}
    alone |= {"position_ids": [0, 1, 2, 3, 4]} if "position_ids" in columns else {}
    row = {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, -100, 8, 9]}
    with pytest.raises(ValueError, match="Sample 1 of the pool is packed: several samples share a line.*`packing=Fal"):
        pool_from(build([{**row, **alone}, {**row, **columns}, {**row, **alone}]))
    assert len(pool_from(build([{**row, **alone}] * 3))) == 3


@pytest.mark.parametrize("build", [MapStyle, datasets.Dataset.from_list])
def test_positions_of_padding_do_not_count_as_packing(build):
    """Tokenizers may pad on either side, and number what they pad as they like."""
    left = {"input_ids": [0, 0, 7, 8, 9], "attention_mask": [0, 0, 1, 1, 1], "position_ids": [1, 1, 0, 1, 2]}
    right = {"input_ids": [7, 8, 9, 0, 0], "attention_mask": [1, 1, 1, 0, 0], "position_ids": [0, 1, 2, 0, 0]}
    labels = {"labels": [-100, -100, -100, 8, 9]}, {"labels": [-100, 8, 9, -100, -100]}
    pool = pool_from(build([{**row, **more} for row, more in zip((left, right), labels, strict=True)]))
    assert as_lists(pool) == ([[7, 8, 9], [7, 8, 9]], [[0, 1, 1], [0, 1, 1]])


@pytest.mark.parametrize("build", [MapStyle, datasets.Dataset.from_list])
def test_positions_that_are_not_there_are_no_packing(build):
    rows = [{**row, "position_ids": None} for row in labelled_rows()]
    assert as_lists(pool_from(build(rows))) == as_lists(pool_from(build(labelled_rows())))


def test_positions_in_three_rows_are_no_packing():
    """Vision models number height, width and time."""
    rows = [{**row, "position_ids": [[3, 2, 1, 0, 0][: len(row["input_ids"])]] * 3} for row in labelled_rows()]
    assert len(pool_from(MapStyle(rows))) == len(pool_from(datasets.Dataset.from_list(rows))) == 3


def test_a_dataset_that_is_not_tokenized_is_refused_with_what_to_do():
    rows = datasets.Dataset.from_dict({"instruction": ["a", "b"], "output": ["c", "d"]})
    words = r"no `input_ids` \(columns: instruction, output\).*miwv_trainer.tokenize.*SFTTrainer"
    with pytest.raises(ValueError, match=words):
        pool_from(rows)


def test_a_dataset_without_labels_is_refused_with_what_to_do():
    rows = datasets.Dataset.from_dict({"input_ids": IDS, "topic": ["a", "b", "c"]})
    with pytest.raises(ValueError, match=r"no `labels` \(columns: input_ids, topic\).*-100 everywhere but on the resp"):
        pool_from(rows)


@pytest.mark.parametrize("labels", [[1, 2], [None, None]], ids=["a number each", "all null"])
def test_a_column_that_holds_no_lists_is_refused(labels):
    dataset = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3, 4]], "labels": labels})
    with pytest.raises(ValueError, match="column `labels` must hold a list of whole numbers in every line, but"):
        pool_from(dataset)


def test_a_sample_without_input_ids_is_refused_by_its_number():
    with pytest.raises(ValueError, match="Sample 1 of the pool has no `input_ids`"):
        pool_from(MapStyle([labelled_rows()[0], {"labels": [1]}]))


@pytest.mark.parametrize("build", [MapStyle, datasets.Dataset.from_list])
@pytest.mark.parametrize("column", ["labels", "attention_mask"])
def test_columns_of_different_lengths_are_refused_by_sample_number(build, column):
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in labelled_rows()]
    rows[2][column] = rows[2][column][:-1]
    with pytest.raises(ValueError, match=f"Sample 2 of the pool has 5 `input_ids` but 4 `{column}`"):
        pool_from(build(rows))


@pytest.mark.parametrize(
    "bad, shown",
    [
        ([[5, 6]], r"shape \(1, 2\) and type int64"),
        ([5.0, 6.0], r"shape \(2,\) and type float64"),
        (["a", "b"], r"shape \(2,\) and type <U1"),
        (None, r"shape \(1,\) and type object"),
        (torch.ones(1, 2), r"shape \(1, 2\) and type float32"),
        (7, r"shape \(\) and type int64"),
    ],
)
def test_ids_that_are_no_flat_list_of_whole_numbers_are_refused(bad, shown):
    rows = [labelled_rows()[0], {"input_ids": bad, "labels": [-100, 6]}]
    with pytest.raises(ValueError, match=f"Sample 1 of the pool: `input_ids` must be a flat list.* has {shown}"):
        pool_from(MapStyle(rows))


def test_a_null_in_an_arrow_column_is_refused_by_its_sample_number():
    dataset = datasets.Dataset.from_dict({"input_ids": [[5, 6], [7, 8]], "labels": [[-100, 6], None]})
    with pytest.raises(ValueError, match="Sample 1 of the pool: `labels` must be a flat list of whole numbers"):
        pool_from(dataset)


def test_a_sample_without_labels_is_refused_by_its_number():
    with pytest.raises(ValueError, match="Sample 1 of the pool has no `labels`"):
        pool_from(MapStyle([labelled_rows()[0], {"input_ids": [5, 6]}]))


@pytest.mark.parametrize("seed", range(20))
def test_whole_columns_and_single_rows_are_read_as_the_same_pool(seed):
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(25):
        length = int(generator.integers(0 if seed % 2 else 3, 9))
        ids = generator.integers(BOS, 9, length)
        labels = np.where(generator.random(length) < 0.5, ids, -100)
        kept = (generator.random(length) < 0.8).astype(int)
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist(), "attention_mask": kept.tolist()})
    rows[3] = {"input_ids": [5, 6], "labels": [-100, 6], "attention_mask": [1, 1]}
    if seed % 3 == 0:  # a preamble for all
        opening = {"input_ids": [5, USER], "labels": [-100, -100], "attention_mask": [1, 1]}
        rows = [{name: opening[name] + values for name, values in row.items()} for row in rows]
    expected = [(np.array(row["input_ids"]), np.array(row["labels"])) for row in rows]
    kept = [np.array(row["attention_mask"], dtype=bool) for row in rows]
    for markers in (NO_MARKERS, CHAT_MARKERS, TurnMarkers(bos=BOS)):
        by_column = pool_from(datasets.Dataset.from_list(rows), markers)
        by_row = pool_from(MapStyle(rows), markers)
        assert by_column.fingerprint == by_row.fingerprint
        for index, ((ids, labels), mask) in enumerate(zip(expected, kept, strict=True)):
            assert [*by_column.preamble.tolist(), *by_column.sample(index).tolist()] == ids[mask].tolist()
            hidden = [False] * len(by_column.preamble)
            assert [*hidden, *by_column.response_mask(index).tolist()] == (labels[mask] != -100).tolist()
    assert len(pool_from(datasets.Dataset.from_list(rows), CHAT_MARKERS).preamble) == (seed % 3 == 0)
