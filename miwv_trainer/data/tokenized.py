"""A tokenised dataset, such as a Trainer's, to a pool without preamble."""

from collections.abc import Iterator, Mapping

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miwv_trainer.data.map_style import MapStyleDataset, check_map_style, has_own_columns, list_columns
from miwv_trainer.data.pool import IGNORED_LABEL, Pool, Samples, TokenizedSample, check_count, join, stack

RESPONSE_COLUMNS = ("labels", "completion_mask", "assistant_masks")
# Read only to notice samples that share a line.
POSITIONS = "position_ids"
PACKED = "several samples share a line, so none can be chosen by itself. Set `packing=False`."
# 20,000 samples of 150 tokens take 0.02 s in whole columns and 1.3 s row by row (2 cores of an AMD EPYC, 2026-11-25). A
# part of this many rows bounds what is held twice while it is copied.
ROWS_READ_AT_ONCE = 10_000


def read_tokenized(dataset: MapStyleDataset) -> Pool:
    """
    Reads a tokenised dataset as a pool without preamble.

    A token is response if its label is not -100. Without `labels`, it is response if `completion_mask` and
    `assistant_masks` are 1, as far as these columns exist. Tokens whose `attention_mask` is 0 are padding and are left
    out.

    Raises:
        TypeError: the dataset is not map-style.
        ValueError: it lacks a column, has fewer than two samples, is packed, or its columns differ in length.
    """
    check_map_style(dataset)
    check_count(len(dataset))
    columns = list_columns(dataset)
    _check_columns(columns)
    wanted = [name for name in ("input_ids", "attention_mask", POSITIONS, *RESPONSE_COLUMNS) if name in columns]
    if isinstance(dataset, datasets.Dataset) and has_own_columns(dataset):
        return join(_read_arrow(dataset, wanted))
    rows = (dataset[index] for index in range(len(dataset)))
    picked = ({name: row[name] for name in wanted if name in row} for row in rows)
    return join([stack([_read_sample(index, row) for index, row in enumerate(picked)])])


def _check_columns(columns: list[str]) -> None:
    found = ", ".join(columns) or "none"
    if "seq_lengths" in columns:
        raise ValueError(f"The pool is packed (column `seq_lengths`): {PACKED}")
    if "input_ids" not in columns:
        raise ValueError(
            f"The pool has no `input_ids` (columns: {found}): tokenise it before it goes to the Trainer, with "
            "`miwv_trainer.tokenize`, or use TRL's SFTTrainer, which does it itself."
        )
    if not any(name in columns for name in RESPONSE_COLUMNS):
        raise ValueError(
            f"The pool has no `labels` (columns: {found}), so response tokens cannot be told from the prompt. Give "
            "`labels` that are -100 everywhere but on the response; `miwv_trainer.tokenize` makes them."
        )


def _read_arrow(dataset: datasets.Dataset, columns: list[str]) -> Iterator[Samples]:
    """Reads many rows at a time. A part that holds a faulty row is read row by row, which raises and names the row."""
    first = 0
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=ROWS_READ_AT_ONCE):
        lists = {name: table[name].combine_chunks() for name in columns}
        # Arrow gives a column in which every row is null a type of its own. Such a column says nothing.
        if POSITIONS in lists and pa.types.is_null(lists[POSITIONS].type):
            del lists[POSITIONS]
        _check_lists(lists)
        yield _read_columns(lists) or stack([_read_sample(first + r, _read_cells(lists, r)) for r in range(len(table))])
        first += len(table)


def _read_columns(lists: dict[str, pa.ListArray]) -> Samples | None:
    """None if a list or a number is null, numbers are not whole, or the columns' lists differ in length."""
    values = {name: column.flatten() for name, column in lists.items()}
    lengths = {name: pc.list_value_length(column).to_numpy(zero_copy_only=False) for name, column in lists.items()}
    if any(column.null_count for column in (*lists.values(), *values.values())):
        return None
    if not all(pa.types.is_integer(numbers.type) or pa.types.is_boolean(numbers.type) for numbers in values.values()):
        return None
    if not all(np.array_equal(other, lengths["input_ids"]) for other in lengths.values()):
        return None
    arrays = {name: numbers.to_numpy(zero_copy_only=False) for name, numbers in values.items()}
    ids, is_response = arrays["input_ids"], _find_response(arrays)
    # Nulls and lengths are checked, so that from here on all columns have one flat array with the same ends of rows.
    ends = np.cumsum(lengths["input_ids"])
    if _shares_a_line(arrays.get("attention_mask"), arrays.get(POSITIONS), ends[:-1]):
        return None
    if "attention_mask" not in arrays:
        return Samples(ids, is_response, lengths["input_ids"])
    is_kept = arrays["attention_mask"] != 0
    # Number of kept tokens before each position: its differences at the ends of rows are the rows' new lengths.
    kept_before = np.concatenate([[0], np.cumsum(is_kept)])
    kept = np.diff(kept_before[np.concatenate([[0], ends])])
    return Samples(ids[is_kept], is_response[is_kept], kept)


def _read_cells(lists: dict[str, pa.ListArray], row: int) -> dict[str, np.ndarray | None]:
    # `ListScalar.values` is a view of the child array, None where the list itself is null.
    cells = {name: column[row].values for name, column in lists.items()}
    return {name: None if cell is None else cell.to_numpy(zero_copy_only=False) for name, cell in cells.items()}


def _shares_a_line(mask: np.ndarray | None, positions: np.ndarray | None, starts: np.ndarray | None = None) -> bool:
    """
    Whether several samples share a line: the mask numbers them (LLaMA-Factory's neat packing), or positions start again
    within a line (packing of TRL, transformers and LLaMA-Factory).

    Padding may stand anywhere, so only positions of two neighbours that are both no padding are compared.

    Args:
        starts: Where further lines start, if the arrays hold several.
    """
    if mask is not None and mask.max(initial=0) > 1:
        return True
    if positions is None:
        return False
    falls = np.diff(positions) < 0
    # Positions fall from one line to the next, which is no packing.
    if starts is not None:
        falls[starts[(starts > 0) & (starts <= len(falls))] - 1] = False
    return bool(falls.any() if mask is None else (falls & (mask[1:] != 0) & (mask[:-1] != 0)).any())


def _check_lists(columns: dict[str, pa.Array]) -> None:
    for name, column in columns.items():
        kind = column.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            raise ValueError(
                f"The pool's column `{name}` must hold a list of whole numbers in every line, but its type is {kind}."
            )


def _read_sample(index: int, row: Mapping[str, object]) -> TokenizedSample:
    positions = np.asarray(row.get(POSITIONS))
    arrays = {name: _read_vector(index, name, value) for name, value in row.items() if name != POSITIONS}
    if "input_ids" not in arrays:
        raise ValueError(f"Sample {index} of the pool has no `input_ids`.")
    ids = arrays["input_ids"]
    for name, array in arrays.items():
        if len(array) != len(ids):
            raise ValueError(
                f"Sample {index} of the pool has {len(ids)} `input_ids` but {len(array)} `{name}`; both must have the "
                "same length."
            )
    if not any(name in arrays for name in RESPONSE_COLUMNS):
        raise ValueError(f"Sample {index} of the pool has no `labels`.")
    is_flat = positions.shape == ids.shape and positions.dtype.kind in "iu"  # vision models number in three rows
    if _shares_a_line(arrays.get("attention_mask"), positions if is_flat else None):
        raise ValueError(f"Sample {index} of the pool is packed: {PACKED}")
    is_response = _find_response(arrays)
    if "attention_mask" in arrays:
        kept = arrays["attention_mask"] != 0
        ids, is_response = ids[kept], is_response[kept]
    return TokenizedSample(ids, is_response)


def _read_vector(index: int, name: str, value: object) -> np.ndarray:
    array = np.asarray(value if value is not None else [None])
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iub"):
        raise ValueError(
            f"Sample {index} of the pool: `{name}` must be a flat list of whole numbers, but has shape {array.shape} "
            f"and type {array.dtype}."
        )
    return array.astype(np.int64)


def _find_response(arrays: dict[str, np.ndarray]) -> np.ndarray:
    # Labels come first: the training's loss is computed on them, whatever masks lie beside them. With both masks, TRL
    # trains on the tokens that both mark.
    if "labels" in arrays:
        return arrays["labels"] != IGNORED_LABEL
    return np.logical_and.reduce([arrays[name] != 0 for name in RESPONSE_COLUMNS[1:] if name in arrays])
