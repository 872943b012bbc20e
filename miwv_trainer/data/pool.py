"""
The pool as token ids: a preamble that all samples share, and for every sample its prompt and its response.

Everything after this file works on these arrays alone, so a pool that came through a Trainer and the same pool read
from a file give the same scores. Tokens lie in one flat array with offsets: a million samples of 200 tokens take 1 GB
(int32 ids and a bool mask). Lists of Python integers would take about seven times as much (36 bytes a token).
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

IGNORED_LABEL = -100
A_POOL = "a pool (`pool_from_rows(rows, tokenizer)`)"
# Stands in an array of exemplars for "this sample has none".
NO_EXEMPLAR = -1


def rank_columns(exemplars: np.ndarray) -> np.ndarray:
    """Returns `(N, m)` exemplars, the nearest of each sample first, of such an array or of `(N,)` nearest ones."""
    return exemplars if exemplars.ndim == 2 else exemplars[:, None]


class TokenizedSample(NamedTuple):
    """One tokenised sample: `(length,)` token ids, and `(length,)` bool, which of them are response."""

    ids: np.ndarray
    is_response: np.ndarray


class Samples(NamedTuple):
    """Samples one after the other: `(T,)` token ids, `(T,)` which are response, `(n,)` the number of tokens of each."""

    ids: np.ndarray
    is_response: np.ndarray
    lengths: np.ndarray


class SampleHashes(NamedTuple):
    """
    What the N samples are known by outside of this pool, each `(N,)` uint64; 0 where it is not known.

    Args:
        ids: Of the token ids, and of which of them are response.
        text: Of everything the sample says.
        words: Of the last question before the answers, and of the answers.
        answer: Of the beginning of the answers.
        from_columns: Whether the texts were read from columns of the dataset; else they were decoded.
    """

    ids: np.ndarray
    text: np.ndarray
    words: np.ndarray
    answer: np.ndarray
    from_columns: bool


def find_complete_samples(prompt_tokens: np.ndarray, response_tokens: np.ndarray) -> np.ndarray:
    """
    Returns `(N,)` bool, whether a sample has both a prompt and a response; only such samples can be scored.

    Takes the two `(N,)` token counts instead of a pool, because a stored round has only the counts.
    """
    return (response_tokens > 0) & (prompt_tokens > 0)


@dataclass(frozen=True)
class Pool:
    """
    N instruction samples as token ids.

    Args:
        preamble: `(p,)` int32. The tokens before the first user's turn (BOS, a system turn that all samples share).
        tokens: `(T,)` int32. All samples, one after the other, without preamble.
        is_response: `(T,)` bool. Which of these tokens are response, all assistant turns together.
        offsets: `(N + 1,)` int64. Sample `i` is `tokens[offsets[i]:offsets[i + 1]]`.
        texts: The N instructions as text, if they are known.
        groups: `(N,)` int64. The number of each sample's group, from 0, if there are groups.
        is_trained_whole: Whether training puts its loss on prompts too, so that its labels are not `is_response`.
        source: The name of the dataset that a Trainer trains on, if it has one.
        opening: `(o,)` int32. The generation prompt, with which most prompts end; None if it is not known.
        column_scores: `(N,)` float32. The numbers of the dataset's `score_column`, NaN where there is none.
        hashes: By which a sample is found in a file, if they were asked for.
        find_cut_samples: Finds the samples whose tokens hold less than their columns of text, which takes decoding all
            of them; None where that cannot be told, or where nothing can have been cut.
    """

    preamble: np.ndarray
    tokens: np.ndarray
    is_response: np.ndarray
    offsets: np.ndarray
    # Not a part of what is compared: the same pool has texts or not, depending on the embedder.
    texts: Sequence[str] | None = field(default=None, compare=False)
    groups: np.ndarray | None = field(default=None, compare=False)
    is_trained_whole: bool = field(default=False, compare=False)
    source: str | None = field(default=None, compare=False)
    opening: np.ndarray | None = field(default=None, compare=False)
    column_scores: np.ndarray | None = field(default=None, compare=False)
    hashes: SampleHashes | None = field(default=None, compare=False)
    find_cut_samples: Callable[[], np.ndarray] | None = field(default=None, compare=False)

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
        """`(N,)` number of tokens of each sample, without preamble."""
        return np.diff(self.offsets)

    @cached_property
    def response_tokens(self) -> np.ndarray:
        """`(N,)` number of response tokens."""
        counts = np.concatenate([[0], np.cumsum(self.is_response)])
        return np.diff(counts[self.offsets])

    @cached_property
    def prompt_tokens(self) -> np.ndarray:
        """`(N,)` number of tokens before the first response token; all tokens if a sample has no response."""
        # One binary search for all samples. A loop over a million of them in Python would take seconds.
        positions = np.flatnonzero(self.is_response)
        first = np.searchsorted(positions, self.offsets[:-1])
        has_response = self.response_tokens > 0
        # Samples after the last response look beyond the end of `positions`: they read the 0, which is not used.
        starts = np.where(has_response, np.append(positions, 0)[first], self.offsets[1:])
        return starts - self.offsets[:-1]

    @cached_property
    def response_begins(self) -> np.ndarray:
        """`(responses,)` where in `tokens` a stretch of response begins: one for each turn of the assistant's."""
        begins = self.is_response & ~np.concatenate([[False], self.is_response[:-1]])
        begins[self.offsets[:-1][self.lengths > 0]] |= self.is_response[self.offsets[:-1][self.lengths > 0]]
        return np.flatnonzero(begins)

    @property
    def has_prompt_and_response(self) -> np.ndarray:
        """`(N,)` whether a sample has both a prompt and a response; only such samples can be scored."""
        return find_complete_samples(self.prompt_tokens, self.response_tokens)

    @cached_property
    def duplicate_groups(self) -> np.ndarray:
        """`(N,)` index of the first sample with the same tokens and the same response."""
        # Digests, not the tokens themselves: those would be a second copy of the pool, as Python objects.
        first_seen: dict[bytes, int] = {}
        groups = np.empty(len(self), dtype=np.int64)
        for index in range(len(self)):
            # The mask too: the same text with another part of it as response is another sample.
            key = self.sample(index).tobytes() + self.response_mask(index).tobytes()
            groups[index] = first_seen.setdefault(hashlib.sha256(key).digest(), index)
        return groups

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all token ids and response masks. It is the same for the same pool under any file name."""
        digest = hashlib.sha256()
        # Each array is cast to one type first: a pool of int64 ids has the fingerprint of the same ids as int32.
        for array, kind in (
            (self.preamble, np.int32),
            (self.offsets, np.int64),
            (self.tokens, np.int32),
            (self.is_response, np.bool_),
        ):
            digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
        return digest.hexdigest()


def stack(samples: Sequence[TokenizedSample]) -> Samples:
    """Puts samples one after the other."""
    ids, masks = zip(*samples, strict=True)
    return Samples(np.concatenate(ids), np.concatenate(masks), np.asarray([len(sample) for sample in ids]))


def join(parts: Iterable[Samples], texts: Sequence[str] | None = None) -> Pool:
    """Makes a pool without preamble of samples that were read in parts."""
    # Tokenizers give int64, which is twice the memory for nothing: no vocabulary reaches 2^31.
    narrow = [Samples(ids.astype(np.int32), mask.astype(bool), lengths) for ids, mask, lengths in parts]
    return Pool(
        preamble=np.empty(0, dtype=np.int32),
        tokens=np.concatenate([part.ids for part in narrow]),
        is_response=np.concatenate([part.is_response for part in narrow]),
        offsets=np.cumsum(np.concatenate([[0], *(part.lengths for part in narrow)]), dtype=np.int64),
        texts=texts,
    )


def check_count(count: int) -> None:
    """Raises `ValueError` unless there are two samples: every sample needs another one as its exemplar."""
    if count == 0:
        raise ValueError(
            "The pool is empty: give at least two samples. (SFTTrainer drops samples whose response lies beyond "
            "`max_length`; if it dropped all of them, raise it.)"
        )
    if count == 1:
        raise ValueError("The pool has one sample: every sample needs another one as its exemplar, so give two.")
