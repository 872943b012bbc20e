"""What a page shows of a pool's texts: cut so that they fit a number of bytes, those that matter most the least."""

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from miwv_trainer.data.columns import conversation, instruction_text

CUT = " …[cut]"
MOST = 20_000  # bytes of one text
WEIGHT = 8  # of a sample that matters, against any other


def prompts_and_responses(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """What the user said and what follows, of each row; a row without known columns has empty texts."""
    prompts, responses = [], []
    for row in rows:
        prompts.append(instruction_text(row) or "")
        responses.append(_response(row))
    return prompts, responses


def _response(row: Mapping[str, Any]) -> str:
    try:
        messages, given = conversation(row)
    except ValueError:
        return ""
    first = given or next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    if len(messages) <= first + 1:
        return "\n\n".join(message["content"] for message in messages[first:])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages[first:])


def encodable(text: str) -> str:
    """Half of a surrogate pair, which UTF-8 has no bytes for, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def sizes_of(texts: Iterable[str]) -> np.ndarray:
    """`(n,)` bytes of each text as JSON."""
    return np.asarray([len(as_json(text)) for text in texts], dtype=np.int64)


def shortened(texts: Sequence[str], sizes: np.ndarray, matters: np.ndarray, budget: int) -> tuple[list[str], int, int]:
    """
    The texts, so that together they take at most `budget` bytes as JSON where that is possible at all.

    Args:
        sizes: `(N,)`, from `sizes_of`.
        matters: `(N,)` which texts may be `WEIGHT` times as long as the others.

    Returns:
        The texts, those that were cut ending in `CUT`; the greatest number of bytes of one that matters, and of
        another.
    """
    weights = np.where(matters, WEIGHT, 1)
    low, high = 0, MOST
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(sizes, np.minimum(middle * weights, MOST)).sum() <= budget:
            low = middle
        else:
            high = middle - 1
    limits = np.minimum(low * weights, MOST)
    cut = [
        text if size <= limit else _cut(text, int(limit))
        for text, size, limit in zip(texts, sizes.tolist(), limits.tolist(), strict=True)
    ]
    return cut, min(low * WEIGHT, MOST), min(low, MOST)


def _cut(text: str, limit: int) -> str:
    room = max(0, limit - len(as_json(CUT)) + 2)
    kept = text.encode()[:room].decode("utf-8", "ignore")
    while kept and (size := len(as_json(kept))) > room:
        kept = kept.encode()[: min(len(kept.encode()) - 1, len(kept.encode()) * room // size)].decode("utf-8", "ignore")
    return kept.rstrip() + CUT


def as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def packed(json_text: bytes) -> str:
    """
    Compressed, in base64: a third of the size, and letters and digits alone, so that nothing in it can end the script
    element that it stands in or begin another.
    """
    return base64.b64encode(gzip.compress(json_text, compresslevel=5, mtime=0)).decode()
