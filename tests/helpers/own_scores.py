"""Scores of the user's own, as functions that a process can find by their names."""

import os

import numpy as np

from miwv_trainer import Measured


def shortest_first(measured: Measured) -> np.ndarray:
    """Reads nothing that is forwarded."""
    return -measured.response_tokens


def easiest_first(measured: Measured) -> np.ndarray:
    return -measured.zero_shot_loss


def middle_miwv(measured: Measured) -> np.ndarray:
    """The nearer to the median, the better; samples of odd length have none."""
    distance = -np.abs(measured.miwv - np.nanmedian(measured.miwv))
    return np.where(measured.response_tokens % 2 == 1, np.nan, distance)


def nothing(measured: Measured) -> np.ndarray:
    return np.full(len(measured.response_tokens), np.nan)


def ratio_of_losses(measured: Measured) -> np.ndarray:
    """As docs/curricula.md has it."""
    ratio = measured.zero_shot_loss / measured.response_loss
    return np.where(ratio > 1, np.nan, ratio)


MOST_TOKENS = 6


def clipped(measured: Measured) -> np.ndarray:
    return np.minimum(measured.zero_shot_loss, 5) / np.minimum(measured.response_tokens, MOST_TOKENS)


def clipped_in_place(measured: Measured) -> np.ndarray:
    """The same, by changing what it gets."""
    tokens, losses = measured.response_tokens, measured.zero_shot_loss
    tokens[tokens > MOST_TOKENS] = MOST_TOKENS
    losses[losses > 5] = 5
    for each in (measured.similarity, measured.one_shot_loss, measured.exemplars):
        if each is not None:
            each[:] = -1
    return losses / tokens


def another_on_each_rank(measured: Measured) -> np.ndarray:
    return measured.response_tokens + int(os.environ.get("RANK", "0"))


def too_many(measured: Measured) -> np.ndarray:
    return np.zeros(len(measured.response_tokens) + 1)


def in_several_lines(measured: Measured) -> np.ndarray:
    raise ValueError("columns do not match:\n    left: a\n\n    right: b\n")


def in_vain(measured: Measured) -> np.ndarray:
    raise KeyError("quality")
