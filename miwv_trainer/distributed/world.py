"""The only file that knows ranks, DeepSpeed and FSDP: dealing work, agreeing, reducing.

Messages travel between the CPUs, over a gloo group of their own, so that no collective of the training's group is
pending while a rank computes. No rank waits for an answer longer than a heartbeat or a forward takes: in a block that
all run `together` those that work say so every few seconds, and after each turn of forwards all agree whether one
failed and whether one has more.
"""

import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from miwv_trainer.distributed.sharding import is_sharded

T = TypeVar("T")
HEARTBEAT_SECONDS = 20.0
# Far beyond a heartbeat and the longest forward: only a machine that vanished without closing its connections is silent
# for so long.
TIMEOUT = timedelta(minutes=30)
_message_groups: WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = WeakKeyDictionary()


@dataclass
class Turn:
    """
    One turn of forwards, at most one on each rank.

    `has_more` says whether this rank has more to forward; after the turn, whether any rank has.
    """

    has_more: bool = False


@dataclass(frozen=True)
class World:
    """
    Who takes part.

    Args:
        rank: This process.
        size: Number of processes.
        device: Where this process computes.
        sharded: Whether parameters are split over ranks, so that each forward waits for all of them.
        group: What messages travel over; None in a world of one.
        quiet: Whether no progress is shown, not even by rank 0.
    """

    rank: int
    size: int
    device: torch.device
    sharded: bool = False
    group: dist.ProcessGroup | None = None
    quiet: bool = False

    @classmethod
    def current(cls, device: torch.device, model: nn.Module | None = None, quiet: bool = False) -> "World":
        """
        The running process group, or a world of one. On all ranks alike: the first call makes the group of messages.

        Args:
            model: What will be forwarded, wrapped as it is; without it, a world in which nothing is sharded.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls(0, 1, device, quiet=quiet)
        sharded = model is not None and is_sharded(model)
        return cls(dist.get_rank(), dist.get_world_size(), device, sharded, _message_group(), quiet)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def shows_progress(self) -> bool:
        return self.is_main and not self.quiet

    def deal(self, work: Sequence[T]) -> list[T]:
        """
        This rank's share, dealt as 0, 1, 2, 2, 1, 0, 0, 1, ...: where work is sorted by size, shares differ by no more
        than one piece in number, and by no more than the first one in size.
        """
        turns = range(0, len(work), self.size)
        places = (self.rank if turn % 2 == 0 else self.size - 1 - self.rank for turn in range(len(turns)))
        at = [start + place for start, place in zip(turns, places, strict=True)]
        return [work[index] for index in at if index < len(work)]

    def share(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        with _contact():
            dist.broadcast_object_list(box, src=0, group=self.group, device=torch.device("cpu"))
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Each rank's value, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _contact():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def sum_slots(self, array: np.ndarray) -> np.ndarray:
        """Sum over ranks. Exact where each slot is non-zero on one rank only."""
        if self.size == 1:
            return array
        tensor = torch.from_numpy(array.copy())
        with _contact():
            dist.all_reduce(tensor, group=self.group)
        return tensor.numpy()

    @contextmanager
    def together(self, doing: str) -> Iterator[None]:
        """
        Runs the block on every rank, however long it takes each, and lets all of them fail if one does.

        What rank 0 does alone goes into such a block too. Within it ranks exchange nothing but heartbeats, which a
        thread sends and answers.

        Raises:
            RuntimeError: on the ranks that did not fail, naming one that did. That one raises its own error.
            ConnectionError: another rank's process is gone.
        """
        if self.size == 1:
            yield
            return
        is_done, error = threading.Event(), None
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="heartbeat") as background:
            heartbeats = background.submit(self._beat, is_done)
            try:
                yield
            except Exception as raised:
                error = raised
            finally:
                is_done.set()
        if error is not None and heartbeats.exception() is not None:
            raise error
        heartbeats.result()
        self._agree(doing, error)

    def _beat(self, is_done: threading.Event) -> None:
        """Messages until all ranks are done: at once when this one is, every few seconds while it is not."""
        working = 1
        while working:
            is_done.wait(HEARTBEAT_SECONDS)
            (working,) = self.sum_slots(np.array([not is_done.is_set()], dtype=np.int64))

    @contextmanager
    def turn(self, doing: str) -> Iterator[Turn]:
        """
        Runs one forward, or none, on every rank, and lets all of them fail if one does, as `together` does.

        Where parameters are sharded, every rank must run one, and an error cannot be agreed on: the others wait inside
        the forward. So the failing rank prints and exits, and the launcher ends the rest.
        """
        error, turn = None, Turn()
        try:
            yield turn
        except Exception as raised:
            if self.sharded and self.size > 1:
                self._exit(doing)
            error = raised
        turn.has_more = self._agree(doing, error, turn.has_more)

    def _agree(self, doing: str, error: Exception | None, has_more: bool = False) -> bool:
        """Whether any rank has more to do. Raises on all ranks where one has an error."""
        failed, more = self.sum_slots(np.array([error is not None, has_more], dtype=np.int64))
        if failed:
            messages = self.gather(None if error is None else f"{type(error).__name__}: {error}")
            if error is not None:
                raise error
            rank, message = next((rank, message) for rank, message in enumerate(messages) if message is not None)
            raise RuntimeError(f"Rank {rank} failed while {doing}: {message}")
        return bool(more)

    def _exit(self, doing: str) -> NoReturn:
        """Ends this process at once, inside an `except`."""
        traceback.print_exc()
        print(f"Rank {self.rank} failed while {doing} and ends the run.", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _message_group() -> dist.ProcessGroup:
    """The group of messages beside the running process group, made by the first call."""
    running = dist.group.WORLD
    assert running is not None
    if running not in _message_groups:
        _message_groups[running] = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return _message_groups[running]


@contextmanager
def _contact() -> Iterator[None]:
    """Says what it means that a message did not get through."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            f"Another rank's process is gone, or silent for {TIMEOUT.seconds // 60} minutes; what it printed, or the "
            f"launcher did, says why ({error})."
        ) from error
