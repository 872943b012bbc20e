"""The pool as token ids: a preamble shown once, and for every sample its prompt and its response.

Everything after this file works on these arrays alone, so a pool that came through a Trainer and the same pool that
came from a file give the same scores. Tokens lie in one flat array with offsets: a million samples of 200 tokens
take 1 GB, and no Python object per token.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import torch

IGNORED_LABEL = -100
RESPONSE_COLUMNS = ("labels", "completion_mask", "assistant_masks")


class TokenizedSample(NamedTuple):
    """One tokenised sample: its ids, and which of them are response. Both of shape `(length,)`."""

    ids: np.ndarray
    is_response: np.ndarray


@dataclass(frozen=True)
class TurnMarkers:
    """
    How a chat template marks turns, as token ids.

    Args:
        user_header: What opens a user's turn. Empty if the template gives none that can be told.
        generation_prompt: What follows the last user's words up to where the response begins.
        bos: The tokenizer's beginning-of-sequence token, if it has one.
    """

    user_header: tuple[int, ...] = ()
    generation_prompt: tuple[int, ...] = ()
    bos: int | None = None


@dataclass(frozen=True)
class Pool:
    """
    N instruction samples as token ids.

    Args:
        preamble: `(p,)`. What stands once before the first user's turn (BOS, a system turn all samples share).
        tokens: `(T,)`. All samples, one after the other, without preamble.
        is_response: `(T,)`. Which of these tokens are response, all assistant turns together.
        offsets: `(N + 1,)`. Sample `i` is `tokens[offsets[i]:offsets[i + 1]]`.
        texts: The N instructions as text, where they are known.
    """

    preamble: np.ndarray
    tokens: np.ndarray
    is_response: np.ndarray
    offsets: np.ndarray
    texts: Sequence[str] | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def sample(self, index: int) -> np.ndarray:
        """Token ids of one sample, prompt and response, without preamble."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def response_mask(self, index: int) -> np.ndarray:
        """Which tokens of `sample(index)` are response."""
        return self.is_response[self.offsets[index] : self.offsets[index + 1]]

    def prompt(self, index: int) -> np.ndarray:
        """Token ids before the first response token."""
        return self.sample(index)[: self.prompt_tokens[index]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """`(N,)` tokens of each sample, without preamble."""
        return np.diff(self.offsets)

    @cached_property
    def response_tokens(self) -> np.ndarray:
        """`(N,)` number of response tokens."""
        counts = np.concatenate([[0], np.cumsum(self.is_response)])
        return np.diff(counts[self.offsets])

    @cached_property
    def prompt_tokens(self) -> np.ndarray:
        """`(N,)` number of tokens before the first response token; all of them where there is none."""
        positions = np.flatnonzero(self.is_response)
        first = np.searchsorted(positions, self.offsets[:-1])
        has_response = self.response_tokens > 0
        starts = np.where(has_response, np.append(positions, 0)[first], self.offsets[1:])
        return starts - self.offsets[:-1]

    @property
    def has_prompt_and_response(self) -> np.ndarray:
        """`(N,)` whether a sample has both; only those can be scored."""
        return (self.response_tokens > 0) & (self.prompt_tokens > 0)

    @cached_property
    def duplicate_groups(self) -> np.ndarray:
        """`(N,)` the same number for samples whose tokens and response are the same."""
        first_seen: dict[bytes, int] = {}
        groups = np.empty(len(self), dtype=np.int64)
        for index in range(len(self)):
            key = self.sample(index).tobytes() + self.response_mask(index).tobytes()
            groups[index] = first_seen.setdefault(hashlib.sha256(key).digest(), index)
        return groups

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every token id and of what is response: the same pool under any file name."""
        digest = hashlib.sha256()
        for array, kind in (
            (self.preamble, np.int32),
            (self.offsets, np.int64),
            (self.tokens, np.int32),
            (self.is_response, np.bool_),
        ):
            digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
        return digest.hexdigest()


def build_pool(sequences: Iterable[TokenizedSample], markers: TurnMarkers, texts: Sequence[str] | None = None) -> Pool:
    """
    Joins tokenised samples to a pool and takes their shared preamble off.

    Raises:
        ValueError: fewer than two samples, no response in any of them, or no prompt in any of them.
    """
    samples = list(sequences)
    _check_count(len(samples))
    preamble = _shared_preamble([ids for ids, _ in samples], _prompt_ends(samples), markers)
    cut = len(preamble)
    pool = Pool(
        preamble=preamble,
        tokens=np.concatenate([ids[cut:] for ids, _ in samples]).astype(np.int32),
        is_response=np.concatenate([mask[cut:] for _, mask in samples]).astype(bool),
        offsets=np.cumsum([0, *(len(ids) - cut for ids, _ in samples)], dtype=np.int64),
        texts=texts,
    )
    _check_usable(pool)
    return pool


def read_tokenized(dataset: Any) -> Iterator[TokenizedSample]:
    """
    Reads `input_ids` and what is response from a tokenised, map-style dataset.

    The response is where `labels` is not -100; without `labels`, where `completion_mask` or `assistant_masks` is 1.
    Positions at which an `attention_mask` column is 0 are padding and are left out.

    Raises:
        TypeError: the dataset is not map-style.
        ValueError: it lacks a column, is empty, or its columns differ in length.
    """
    check_map_style(dataset)
    _check_count(len(dataset))
    columns = _columns(dataset)
    _check_columns(columns)
    wanted = [name for name in ("input_ids", "attention_mask", *RESPONSE_COLUMNS) if name in columns]
    for index, row in enumerate(_iterate_rows(dataset, wanted)):
        yield _sequence(index, row)


def check_map_style(dataset: Any) -> None:
    """Raises `TypeError` unless the dataset has a length and can be indexed."""
    if isinstance(dataset, dict):
        raise TypeError(
            f"The pool is a dictionary of splits ({', '.join(map(str, dataset))}); pass one of them, such as "
            f"dataset[{next(iter(dataset), 'train')!r}]."
        )
    is_iterable_only = isinstance(dataset, torch.utils.data.IterableDataset)
    if is_iterable_only or not (hasattr(type(dataset), "__len__") and hasattr(type(dataset), "__getitem__")):
        raise TypeError(
            f"The pool must be a map-style dataset, one with a length and indexing, but got {type(dataset).__name__}. "
            "Samples of an IterableDataset cannot be chosen by index: load it without `streaming=True`, or "
            "materialise it with `Dataset.from_generator`."
        )


def _check_count(count: int) -> None:
    if count == 0:
        raise ValueError(
            "The pool is empty: give at least two samples. (SFTTrainer drops samples whose response lies beyond "
            "`max_length`; if it dropped all of them, raise it.)"
        )
    if count == 1:
        raise ValueError("The pool has one sample: every sample needs another one as its exemplar, so give two.")


def _columns(dataset: Any) -> list[str]:
    # Under a transform, the columns are those that it yields.
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
        return dataset.column_names
    first = dataset[0]
    if not isinstance(first, dict) and not hasattr(first, "keys"):
        raise ValueError(
            "Samples of the pool must be dictionaries with `input_ids` and `labels`, but the first is a "
            f"{type(first).__name__}."
        )
    return list(first.keys())


def _check_columns(columns: list[str]) -> None:
    found = ", ".join(columns) or "none"
    if "seq_lengths" in columns:
        raise ValueError(
            "The pool is packed (column `seq_lengths`): several samples share a line, so none can be chosen by "
            "itself. Set `packing=False`."
        )
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


def _iterate_rows(dataset: Any, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows with the named columns, through Arrow where the dataset has it (20 times faster than lists)."""
    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
        for index in range(len(dataset)):
            row = dataset[index]
            yield {name: row[name] for name in columns if name in row}
        return
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=10_000):
        arrays = {name: table[name].combine_chunks() for name in columns}
        _check_lists(arrays)
        for row_number in range(len(table)):
            # `ListScalar.values` is a view of the child array, None where the list itself is null.
            cells = {name: array[row_number].values for name, array in arrays.items()}
            yield {name: None if cell is None else cell.to_numpy(zero_copy_only=False) for name, cell in cells.items()}


def _check_lists(arrays: dict[str, Any]) -> None:
    for name, array in arrays.items():
        kind = array.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            raise ValueError(
                f"The pool's column `{name}` must hold a list of whole numbers in every line, but its type is {kind}."
            )


def _sequence(index: int, row: dict[str, Any]) -> TokenizedSample:
    arrays = {name: _vector(index, name, value) for name, value in row.items()}
    if "input_ids" not in arrays:
        raise ValueError(f"Sample {index} of the pool has no `input_ids`.")
    ids = arrays["input_ids"]
    for name, array in arrays.items():
        if len(array) != len(ids):
            raise ValueError(
                f"Sample {index} of the pool has {len(ids)} `input_ids` but {len(array)} `{name}`; both must have the "
                "same length."
            )
    is_response = _response(index, arrays)
    if "attention_mask" in arrays:
        kept = arrays["attention_mask"] != 0
        ids, is_response = ids[kept], is_response[kept]
    return TokenizedSample(ids, is_response)


def _vector(index: int, name: str, value: Any) -> np.ndarray:
    array = np.asarray(value if value is not None else [None])
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iub"):
        raise ValueError(
            f"Sample {index} of the pool: `{name}` must be a flat list of whole numbers, but has shape {array.shape} "
            f"and type {array.dtype}."
        )
    return array.astype(np.int64)


def _response(index: int, arrays: dict[str, np.ndarray]) -> np.ndarray:
    if "labels" in arrays:
        return arrays["labels"] != IGNORED_LABEL
    masks = [arrays[name] != 0 for name in RESPONSE_COLUMNS[1:] if name in arrays]
    if not masks:
        raise ValueError(f"Sample {index} of the pool has no `labels`.")
    return np.logical_and.reduce(masks)


def _prompt_ends(samples: list[TokenizedSample]) -> list[int]:
    return [int(np.argmax(mask)) if mask.any() else len(mask) for _, mask in samples]


def _shared_preamble(ids: list[np.ndarray], prompt_ends: list[int], markers: TurnMarkers) -> np.ndarray:
    """
    What stands before the first user's turn, if that is the same in every sample; else BOS alone, if all have it.

    A longest common prefix would be wrong: it would take the first words off prompts that begin alike.
    """
    header = np.asarray(markers.user_header, dtype=np.int64)
    if len(header):
        ends = [find_tokens(sample[:end], header) for sample, end in zip(ids, prompt_ends, strict=True)]
        first = ids[0][: max(ends[0], 0)]
        if all(
            end == len(first) and np.array_equal(sample[:end], first) for sample, end in zip(ids, ends, strict=True)
        ):
            return first.astype(np.int32)
    every_one_has_bos = markers.bos is not None and all(len(s) and s[0] == markers.bos for s in ids)
    # SmolLM2's BOS, <|im_start|>, opens every turn; so does Llama-2's.
    opens_turns = any((s[1:end] == markers.bos).any() for s, end in zip(ids, prompt_ends, strict=True))
    opens_turns = opens_turns or (len(header) > 0 and header[0] == markers.bos)
    if every_one_has_bos and not opens_turns:
        return np.asarray([markers.bos], dtype=np.int32)
    return np.empty(0, dtype=np.int32)


def find_tokens(sequence: np.ndarray, pattern: np.ndarray) -> int:
    """First position of `pattern` in `sequence`, or -1."""
    last_start = max(len(sequence) - len(pattern) + 1, 0)
    for start in np.flatnonzero(sequence[:last_start] == pattern[0]):
        if np.array_equal(sequence[start : start + len(pattern)], pattern):
            return int(start)
    return -1


def _check_usable(pool: Pool) -> None:
    if not (pool.response_tokens > 0).any():
        raise ValueError(
            "Not one sample of the pool has a response token: all labels are -100. If a maximum length cut the "
            "responses off, raise it."
        )
    if not pool.has_prompt_and_response.any():
        raise ValueError(
            "No prompt can be told from the response: in every sample of the pool the labels begin with the first "
            "token. MIWV is defined for instruction and response. Give prompt/completion pairs, or messages with "
            "`assistant_only_loss=True`, instead of plain text."
        )
