"""
The ranks of a run: what each of them computes, what they tell each other, and how all end when one fails.

Messages travel between CPUs over a gloo group of their own. Work that only rank 0 does can take an hour (embedding a
pool, searching neighbours), and a collective of the training's group that waited that long would end the run: its
timeout is 30 minutes by default. Here no rank waits for longer than a heartbeat or a forward takes: in a block that all
ranks run together, those that work send a heartbeat every few seconds; after each turn of forwards, all ranks agree
whether one failed and whether one has more.
"""

import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from miwv_trainer.distributed.sharding import is_sharded
from miwv_trainer.foreign_errors import join_lines, quote_error

T = TypeVar("T")
HEARTBEAT_SECONDS = 20.0
# Much longer than a heartbeat or the longest forward. Only a machine that disappeared without closing its connections
# is silent for this long.
TIMEOUT = timedelta(minutes=30)


class Messages:
    """
    The gloo group over which ranks exchange messages, until it is closed.

    gloo's threads hold the tensors of a message for a moment longer than the rank that waits for it. A thread that lets
    go of one when the interpreter has begun to exit aborts the process ("terminate called without an active exception",
    pytorch/pytorch#190489). The threads end when nothing refers to the group any more, so every World of a process
    refers to this object instead, which drops the group when it is closed.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group: dist.ProcessGroup | None = group

    @property
    def is_closed(self) -> bool:
        return self._group is None

    @property
    def group(self) -> dist.ProcessGroup:
        if self._group is None:
            raise RuntimeError("The messages between ranks were closed. `World.current` opens them again.")
        return self._group

    def close(self) -> None:
        """Ends the group and waits for its threads."""
        if self._group is None:
            return
        # Whoever has destroyed the running process group has destroyed this one with it.
        with suppress(ValueError):
            dist.destroy_process_group(self._group)
        self._group = None


# `new_group` is a collective and each group keeps threads and sockets, so one is made for each process group.
_messages: WeakKeyDictionary[dist.ProcessGroup, Messages] = WeakKeyDictionary()


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
    The ranks that take part.

    Args:
        rank: This process.
        size: Number of processes.
        device: Where this process computes.
        sharded: Whether parameters are split over ranks, so that each forward waits for all of them.
        messages: How ranks exchange messages; None in a world of one.
        quiet: Whether no progress is shown, not even by rank 0.
    """

    rank: int
    size: int
    device: torch.device
    sharded: bool = False
    messages: Messages | None = None
    quiet: bool = False

    @classmethod
    def current(cls, device: torch.device, model: nn.Module | None = None, quiet: bool = False) -> "World":
        """
        The running process group, or a world of one. All ranks must call it: the first call makes the message group.

        Args:
            model: The model that will be forwarded, with its wrappers. Without it, nothing counts as sharded.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls(0, 1, device, quiet=quiet)
        sharded = model is not None and is_sharded(model)
        return cls(dist.get_rank(), dist.get_world_size(), device, sharded, _open_messages(), quiet)

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group of messages; None in a world of one."""
        return None if self.messages is None else self.messages.group

    def close(self) -> None:
        """Ends the exchange of messages. Each rank calls it when no rank has anything left to say."""
        if self.messages is not None:
            self.messages.close()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def shows_progress(self) -> bool:
        return self.is_main and not self.quiet

    def restrict_to_this_rank(self) -> "World":
        """A world for work that a rank does by itself."""
        return World(0, 1, self.device, self.sharded, quiet=not self.shows_progress)

    def split_between_ranks(self, work: Sequence[T]) -> list[T]:
        """
        This rank's part of the work. Pieces go to ranks 0, 1, 2, 2, 1, 0, 0, 1, ...

        If the pieces are sorted by size, two ranks differ by at most one piece in number and by at most the first
        piece in size. (In the order 0, 1, 2, 0, 1, 2, rank 0 would get the largest piece of every three.)
        """
        starts = range(0, len(work), self.size)
        places = (self.rank if turn % 2 == 0 else self.size - 1 - self.rank for turn in range(len(starts)))
        indices = [start + place for start, place in zip(starts, places, strict=True)]
        # The last turn may not reach all ranks.
        return [work[index] for index in indices if index < len(work)]

    def broadcast_from_main(self, value: T) -> T:
        """Returns rank 0's value on every rank."""
        if self.size == 1:
            return value
        values = [value]
        # On the CPU: a message on the GPU would wait behind the kernels of the training.
        with _explain_lost_contact():
            dist.broadcast_object_list(values, src=0, group=self.group, device=torch.device("cpu"))
        return values[0]

    def broadcast_array(self, array: np.ndarray | None) -> np.ndarray:
        """Returns rank 0's array on every rank, without the copies that `broadcast_from_main` makes to pickle it."""
        kind = self.broadcast_from_main(None if array is None else (array.shape, array.dtype.str))
        if self.is_main and array is not None:
            tensor = torch.from_numpy(np.ascontiguousarray(array))
        else:
            shape, dtype = cast(tuple[tuple[int, ...], str], kind)
            tensor = torch.from_numpy(np.empty(shape, dtype))
        if self.size > 1:
            with _explain_lost_contact():
                dist.broadcast(tensor, src=0, group=self.group)
        return tensor.numpy()

    def all_gather(self, value: T) -> list[T]:
        """Returns the values of all ranks, in their order, on every rank."""
        values = [value] * self.size
        if self.size > 1:
            with _explain_lost_contact():
                dist.all_gather_object(values, value, group=self.group)
        return values

    def all_reduce_sum(self, array: np.ndarray) -> np.ndarray:
        """Returns the sum over ranks on every rank. It is exact if each element is non-zero on one rank only."""
        if self.size == 1:
            return array
        # `all_reduce` writes into its argument, and the caller's array is not ours.
        tensor = torch.from_numpy(array.copy())
        with _explain_lost_contact():
            dist.all_reduce(tensor, group=self.group)
        return tensor.numpy()

    @contextmanager
    def run_together(self, task: str) -> Iterator[None]:
        """
        Runs the block on every rank, however long each rank takes. If it fails on one rank, it fails on all.

        Work that rank 0 does while the others wait belongs into such a block too. Inside it, ranks must exchange no
        messages of their own: a thread exchanges heartbeats over the same group.

        Args:
            task: What the block does, for messages: "Rank 1 failed while <task>".

        Raises:
            RuntimeError: on the ranks that did not fail; it names a rank that did. That rank raises its own error.
            ConnectionError: another rank's process is gone.
        """
        if self.size == 1:
            yield
            return
        is_done, error = threading.Event(), None
        # The executor waits for its thread: one that lives on at the interpreter's exit can abort the process.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="heartbeat") as background:
            heartbeats = background.submit(self._send_heartbeats, is_done)
            try:
                yield
            except Exception as raised:
                error = raised
            finally:
                is_done.set()
        # When another rank is gone, too, this rank's own error is the one that helps.
        if error is not None and heartbeats.exception() is not None:
            raise error
        heartbeats.result()
        self._agree(task, error)

    def _send_heartbeats(self, is_done: threading.Event) -> None:
        """Exchanges heartbeats until all ranks are done: every few seconds, and at once when this rank is done."""
        working = 1
        while working:
            is_done.wait(HEARTBEAT_SECONDS)
            (working,) = self.all_reduce_sum(np.array([not is_done.is_set()], dtype=np.int64))

    @contextmanager
    def run_turn(self, task: str) -> Iterator[Turn]:
        """
        Runs at most one forward on every rank. If it fails on one rank, it fails on all, as in `run_together`.

        If parameters are sharded, every rank must run exactly one forward, and an error cannot be agreed on, because
        the other ranks wait inside the forward. The failing rank then prints its error and exits, and the launcher
        ends the other ranks.
        """
        error, turn = None, Turn()
        try:
            yield turn
        except Exception as raised:
            # The launcher ends the ranks that wait in the forward; their own timeout would come after 30 minutes.
            if self.sharded and self.size > 1:
                self._end_process(task)
            error = raised
        turn.has_more = self._agree(task, error, turn.has_more)

    def _agree(self, task: str, error: Exception | None, has_more: bool = False) -> bool:
        """Returns whether any rank has more to do. Raises on all ranks if one has an error."""
        # Two flags in one message, because this runs after every forward. Texts are exchanged only after a failure.
        failed, more = self.all_reduce_sum(np.array([error is not None, has_more], dtype=np.int64))
        if failed:
            messages = self.all_gather(None if error is None else f"{type(error).__name__}: {join_lines(str(error))}")
            if error is not None:
                raise error
            rank, message = next((rank, message) for rank, message in enumerate(messages) if message is not None)
            raise RuntimeError(f"Rank {rank} failed while {task}: {message}")
        return bool(more)

    def _end_process(self, task: str) -> NoReturn:
        """Prints the error that is being handled and ends this process."""
        traceback.print_exc()
        print(f"Rank {self.rank} failed while {task} and ends the run.", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # Not `sys.exit`: its handlers (the process group's among them) could wait for ranks that wait for this one.
        os._exit(1)


def _open_messages() -> Messages:
    """The messages of the running process group, opened where they are not open."""
    running = dist.group.WORLD
    assert running is not None
    if running not in _messages or _messages[running].is_closed:
        _messages[running] = Messages(dist.new_group(backend="gloo", timeout=TIMEOUT))
    return _messages[running]


@contextmanager
def _explain_lost_contact() -> Iterator[None]:
    """Turns the error of a message that did not get through into one that says what that means."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            f"Another rank's process is gone, or silent for {TIMEOUT.seconds // 60} minutes; what it printed, or the "
            f"launcher did, says why ({quote_error(error)})."
        ) from error
