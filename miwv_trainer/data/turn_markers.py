"""The tokens by which a chat template marks turns, and how to find and remove tokens in a sequence."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

Ids = TypeVar("Ids", list[int], np.ndarray)


@dataclass(frozen=True)
class TurnMarkers:
    """
    How a chat template marks turns, as token ids.

    Args:
        user_header: The tokens that open a user's turn. Empty if they cannot be told from the template.
        generation_prompt: The tokens between the last user's words and the response.
        bos: The tokenizer's beginning-of-sequence token, if it has one.
        end_of_turn: The text that follows the last answer of a conversation.
    """

    user_header: tuple[int, ...] = ()
    generation_prompt: tuple[int, ...] = ()
    bos: int | None = None
    end_of_turn: str = ""


def find_all_tokens(sequence: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """Every position of `pattern` in `sequence`, ascending."""
    # Candidates are the places of the first token; each further token thins them out.
    starts = np.flatnonzero(sequence[: max(len(sequence) - len(pattern) + 1, 0)] == pattern[0])
    for position, token in enumerate(pattern[1:], start=1):
        starts = starts[sequence[starts + position] == token]
    return starts


def find_tokens(sequence: np.ndarray, pattern: np.ndarray) -> int:
    """The first position of `pattern` in `sequence`, or -1."""
    found = find_all_tokens(sequence, pattern)
    return int(found[0]) if len(found) else -1


def make_blank_test(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], bool]:
    """A function that says whether a token is only white space. It decodes each token once."""
    return functools.cache(lambda token: not tokenizer.decode([token]).strip())


def strip_blank_end(ids: Ids, is_blank: Callable[[int], bool]) -> Ids:
    """The tokens without the blank ones at their end."""
    end = len(ids)
    while end and is_blank(int(ids[end - 1])):
        end -= 1
    return ids[:end]
