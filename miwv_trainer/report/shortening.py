"""Cuts a pool's texts so that together they fit a number of bytes, those of selected samples the least."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from miwv_trainer.report.embedded_json import encode_json

CUT = " …[cut]"
# Bytes of one text, however few there are. A single huge text would else take the room of thousands of others.
LONGEST = 20_000
# Selected samples are what people read: a text that matters may be this many times as long as another.
WEIGHT = 8


@dataclass(frozen=True)
class Shortened:
    """
    Texts that fit a number of bytes.

    Args:
        texts: The texts in their order; those that were cut end in `CUT`.
        limit: Most bytes of a text that matters.
        limit_of_others: Most bytes of any other text.
    """

    texts: list[str]
    limit: int
    limit_of_others: int


def replace_surrogates(text: str) -> str:
    """Puts a question mark in place of each half of a surrogate pair, which UTF-8 has no bytes for."""
    return text.encode("utf-8", "replace").decode()


def measure_texts(texts: Iterable[str]) -> np.ndarray:
    """`(n,)` bytes of each text as JSON."""
    return np.asarray([len(encode_json(text)) for text in texts], dtype=np.int64)


def shorten_texts(texts: Sequence[str], sizes: np.ndarray, matters: np.ndarray, budget: int) -> Shortened:
    """
    Cuts texts so that together they take at most `budget` bytes as JSON, as far as cutting can reach that.

    Args:
        texts: The texts.
        sizes: `(n,)` from `measure_texts`.
        matters: `(n,)` bool; these texts may be `WEIGHT` times as long as the others.
        budget: Bytes.
    """
    weights = np.where(matters, WEIGHT, 1)
    # Bisection: the total of the cut texts grows with the limit.
    low, high = 0, LONGEST
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(sizes, np.minimum(middle * weights, LONGEST)).sum() <= budget:
            low = middle
        else:
            high = middle - 1
    limits = np.minimum(low * weights, LONGEST)
    shortened = [
        text if size <= limit else _cut_text(text, limit)
        for text, size, limit in zip(texts, sizes.tolist(), limits.tolist(), strict=True)
    ]
    return Shortened(shortened, min(low * WEIGHT, LONGEST), min(low, LONGEST))


def _cut_text(text: str, limit: int) -> str:
    """The beginning of a text, with `CUT` behind it at most `limit` bytes as JSON."""
    room = max(0, limit - len(encode_json(CUT)) + 2)  # both have quotes
    kept = text.encode()[:room].decode("utf-8", "ignore")
    # JSON writes some characters, such as line ends, longer than UTF-8: cut again by the ratio of the two.
    while kept and (size := len(encode_json(kept))) > room:
        bytes_kept = len(kept.encode())
        kept = kept.encode()[: min(bytes_kept - 1, bytes_kept * room // size)].decode("utf-8", "ignore")
    return kept.rstrip() + CUT
