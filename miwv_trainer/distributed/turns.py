"""
Pieces of work dealt to the ranks, and what they make of them put together, the same on any number of ranks.

The pieces must be composed over the whole pool, whatever the number of ranks: what a batch or a matrix product gives
for one sample depends, in its last bits, on the other samples in it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from tqdm.auto import tqdm

from miwv_trainer.distributed.world import Turn, World

PieceT = TypeVar("PieceT")
ResultT = TypeVar("ResultT")


def run_in_turns(
    world: World, work: Sequence[PieceT], run: Callable[[PieceT], ResultT], task: str
) -> list[tuple[PieceT, ResultT]]:
    """
    This rank's pieces of work, each with what `run` made of it. All ranks call this together.

    Ranks agree after every turn of one piece each, so that an error on one rank ends all of them within a turn, and not
    after the hour that the others need for their shares.

    Args:
        work: The pieces, the largest first, the same on all ranks.
        run: Must not forward a model whose parameters are split over ranks.
        task: What the pieces are for, for progress bars and errors, such as "embedding the instructions".
    """
    # No forward waits for other ranks here, so that a rank that fails can tell them.
    world = replace(world, sharded=False)
    pending, finished = deque(world.split_between_ranks(work)), []
    description = task[0].upper() + task[1:]
    with tqdm(total=len(pending), desc=description, disable=not world.shows_progress) as progress:
        turn = Turn(has_more=True)
        while turn.has_more:
            with world.run_turn(task) as turn:
                if pending:
                    piece = pending.popleft()
                    finished.append((piece, run(piece)))
                    progress.update()
                turn.has_more = bool(pending)
    return finished


def gather_rows(world: World, parts: Iterable[tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray:
    """
    `(count, ...)` the rows that the ranks have made, on every rank, to the bit. All ranks call this together.

    Args:
        parts: `(R,)` row numbers and `(R, ...)` rows that this rank has made. Each row is of one rank, and rank 0 has
            made some: the first piece of work is its.
    """
    rows: np.ndarray | None = None
    for numbers, part in parts:
        if rows is None:
            rows = np.zeros((count, *part.shape[1:]), dtype=part.dtype)
        rows[numbers] = part
    # A rank without work learns the shape from rank 0.
    like = world.broadcast_from_main(None if rows is None else rows[:0])
    if rows is None:
        assert like is not None
        rows = np.zeros((count, *like.shape[1:]), dtype=like.dtype)
    # As whole numbers: a sum of floats would turn -0.0 into 0.0, and NaN into another NaN.
    return world.all_reduce_sum(rows.view(f"i{rows.itemsize}")).view(rows.dtype)
