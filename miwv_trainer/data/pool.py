"""The pool as token ids: a preamble shown once, and for every sample its prompt and its response.

Everything after this file works on these arrays alone, so a pool that came through a Trainer and the same pool that
came from a file give the same scores. Tokens lie in one flat array with offsets: a million samples of 200 tokens
take 1 GB, and no Python object per token.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch

IGNORED_LABEL = -100


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
        groups: `(N,)` number of each sample's group, from 0, where there are groups.
    """

    preamble: np.ndarray
    tokens: np.ndarray
    is_response: np.ndarray
    offsets: np.ndarray
    texts: Sequence[str] | None = field(default=None, compare=False)
    groups: np.ndarray | None = field(default=None, compare=False)

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
    Lays tokenised samples out as a pool and takes the preamble they share off their beginnings.

    Raises:
        ValueError: fewer than two samples, no response in any of them, or no prompt in any of them.
    """
    samples = list(sequences)
    check_count(len(samples))
    return split_preamble(join([stack(samples)], texts), markers)


def group_numbers(rows: Any, column: str) -> np.ndarray:
    """
    `(N,)` numbers of the groups that a column of a dataset names, from 0; values are told apart as text.

    Raises:
        ValueError: there is no such column.
    """
    columns = list(rows[0])
    if column not in columns:
        raise ValueError(
            f"`group_column` is {column!r}, but the dataset has the columns {', '.join(columns)}. Give one of them, "
            "and keep it when you tokenise; a MIWVCallback made by hand needs a `pool` with groups."
        )
    is_plain = isinstance(rows, datasets.Dataset)  # a row of which would be decoded whole
    values = rows[column] if is_plain else [rows[index][column] for index in range(len(rows))]
    _, numbers = np.unique([str(value) for value in values], return_inverse=True)
    return numbers.astype(np.int64)


def with_groups(pool: Pool, rows: Any, column: str | None) -> Pool:
    """The pool with the groups that a column of its dataset names; the pool itself where none is asked for."""
    return pool if column is None else replace(pool, groups=group_numbers(rows, column))


class Samples(NamedTuple):
    """Samples one after the other: `(T,)` ids, `(T,)` which are response, `(n,)` the tokens of each."""

    ids: np.ndarray
    is_response: np.ndarray
    lengths: np.ndarray


def stack(samples: Sequence[TokenizedSample]) -> Samples:
    ids, masks = zip(*samples, strict=True)
    return Samples(np.concatenate(ids), np.concatenate(masks), np.asarray([len(sample) for sample in ids]))


def join(parts: Iterable[Samples], texts: Sequence[str] | None = None) -> Pool:
    """A pool without preamble."""
    narrow = [Samples(ids.astype(np.int32), mask.astype(bool), lengths) for ids, mask, lengths in parts]
    return Pool(
        preamble=np.empty(0, dtype=np.int32),
        tokens=np.concatenate([part.ids for part in narrow]),
        is_response=np.concatenate([part.is_response for part in narrow]),
        offsets=np.cumsum(np.concatenate([[0], *(part.lengths for part in narrow)]), dtype=np.int64),
        texts=texts,
    )


def split_preamble(whole: Pool, markers: TurnMarkers) -> Pool:
    """
    Takes the preamble that the samples share off their beginnings; `whole` has none yet.

    Raises:
        ValueError: no response in any sample, or no prompt in any of them.
    """
    preamble = _shared_preamble(whole, markers)
    starts = whole.offsets[:-1]
    is_kept = np.ones(len(whole.tokens), dtype=bool)
    for position in range(len(preamble)):
        is_kept[starts + position] = False
    pool = Pool(
        preamble=preamble,
        tokens=whole.tokens[is_kept],
        is_response=whole.is_response[is_kept],
        offsets=whole.offsets - len(preamble) * np.arange(len(whole.offsets)),
        texts=whole.texts,
    )
    _check_usable(pool)
    return pool


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


def check_count(count: int) -> None:
    if count == 0:
        raise ValueError(
            "The pool is empty: give at least two samples. (SFTTrainer drops samples whose response lies beyond "
            "`max_length`; if it dropped all of them, raise it.)"
        )
    if count == 1:
        raise ValueError("The pool has one sample: every sample needs another one as its exemplar, so give two.")


def _shared_preamble(whole: Pool, markers: TurnMarkers) -> np.ndarray:
    """
    What stands before the first user's turn, if that is the same in every sample; else BOS alone, if all have it.

    A longest common prefix would be wrong: it would take the first words off prompts that begin alike.
    """
    tokens, starts = whole.tokens, whole.offsets[:-1]
    prompt_ends = starts + whole.prompt_tokens
    header = np.asarray(markers.user_header, dtype=np.int64)
    if len(header):
        found = find_all_tokens(tokens, header)
        first = np.append(found, len(tokens))[np.searchsorted(found, starts)]
        before = first - starts
        shared = tokens[: before[0]]
        if (
            (first + len(header) <= prompt_ends).all()
            and (before == len(shared)).all()
            and all((tokens[starts + position] == token).all() for position, token in enumerate(shared))
        ):
            return shared.copy()
    if markers.bos is None or (whole.lengths == 0).any() or (tokens[starts] != markers.bos).any():
        return np.empty(0, dtype=np.int32)
    # SmolLM2's BOS, <|im_start|>, opens every turn; so does Llama-2's.
    places = np.flatnonzero(tokens == markers.bos)
    sample = np.searchsorted(whole.offsets, places, side="right") - 1
    opens_turns = ((starts[sample] < places) & (places < prompt_ends[sample])).any()
    if opens_turns or (len(header) > 0 and header[0] == markers.bos):
        return np.empty(0, dtype=np.int32)
    return np.asarray([markers.bos], dtype=np.int32)


def find_all_tokens(sequence: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """Every position of `pattern` in `sequence`, ascending."""
    starts = np.flatnonzero(sequence[: max(len(sequence) - len(pattern) + 1, 0)] == pattern[0])
    for position, token in enumerate(pattern[1:], start=1):
        starts = starts[sequence[starts + position] == token]
    return starts


def find_tokens(sequence: np.ndarray, pattern: np.ndarray) -> int:
    """First position of `pattern` in `sequence`, or -1."""
    found = find_all_tokens(sequence, pattern)
    return int(found[0]) if len(found) else -1


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


NO_EXEMPLAR = -1
