"""Facts about stored rounds that several parts of a report state: masks, the threshold, what changed."""

from typing import NamedTuple

import numpy as np

from miwv_trainer.rounds.stored_config import restore_config
from miwv_trainer.selection.scores import get_score
from miwv_trainer.storage.stored_round import StoredRound


class Moves(NamedTuple):
    """How many samples stayed in a selection, entered it and left it, from one round to the next."""

    stayed: int
    entered: int
    left: int


def count_moves(before: StoredRound, current: StoredRound) -> Moves:
    stayed = len(np.intersect1d(current.selection, before.selection))
    return Moves(stayed, len(current.selection) - stayed, len(before.selection) - stayed)


def find_finite(current: StoredRound, *columns: str) -> np.ndarray:
    """`(N,)` bool: which samples have a finite number in all of these columns."""
    return np.all([np.isfinite(current.column(name).astype(np.float64)) for name in columns], axis=0)


def find_selected(current: StoredRound) -> np.ndarray:
    """`(N,)` bool: which samples are selected."""
    return current.column("selected").astype(bool)


def find_miwv_threshold(current: StoredRound) -> float | None:
    """
    The MIWV at which the selection ends: its lowest, or its highest where the lowest MIWV are selected.

    None where another score was ranked or samples were drawn: the selected samples then have MIWV of any size.
    """
    config = restore_config(current)
    score, miwv = get_score(config), current.column("miwv")[current.selection]
    if not score.ranks_miwv or config.selection != "top" or not len(miwv):
        return None
    return float(miwv.max() if score.is_lowest_first else miwv.min())


def explain_missing_miwv(current: StoredRound) -> str:
    """A sentence that says why a round has no MIWV."""
    score = get_score(restore_config(current))
    why = "not one of its samples has two finite losses" if score.needs_exemplars else f"its score is {score.label}"
    return f"Round {current.number} has no MIWV: {why}."
