"""Deals runs to processes: each takes the next run that no other has, until all are done.

A run belongs to the process that holds its lock, which the system takes from a process that dies. So `torchrun`,
several machines on one disk, and the same command typed twice all share the work. None of them needs a process group.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from filelock import FileLock, Timeout

SECONDS = 0.2  # between two looks at what other processes have finished


class Named(Protocol):
    """Something to do, by the name of its file."""

    @property
    def slug(self) -> str: ...


Work = TypeVar("Work", bound=Named)


def leave_launcher() -> tuple[int, int]:
    """
    Makes a process that a launcher started one that is alone, with a device of its own.

    The Trainer would otherwise join all processes to train one model.

    Returns:
        Its rank, and the number of processes.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    # Counted by NVML, which does not start CUDA: after that, the variable would change nothing.
    count = torch.cuda.device_count()
    if count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(number) for number in range(count)]
        # A process that saw several devices would train on all of them. More processes than devices share these.
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[local_rank % count]
    return rank, size


@contextmanager
def hold(path: Path, waits: bool = True) -> Iterator[bool]:
    """Holds a lock beside `path` for the block. Gives False if another process holds it and this one does not wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(timeout=-1 if waits else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def deal(work: Sequence[Work], folder: Path, is_done: Callable[[Work], bool]) -> Iterator[Work]:
    """
    Gives what this process is to do, in order, and ends when everything is done, also what other processes do.

    Args:
        folder: Where the locks lie.
        is_done: Whether the result of something is there. It must be when the next thing is asked for.
    """
    left = list(work)
    while left:
        taken = False
        for one in [one for one in left if not is_done(one)]:
            with hold(folder / one.slug, waits=False) as is_ours:
                if is_ours and not is_done(one):
                    taken = True
                    yield one
        left = [one for one in left if not is_done(one)]
        if left and not taken:
            time.sleep(SECONDS)
