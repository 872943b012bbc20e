"""Keeps two runs from writing to one output folder."""

import logging
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from miwv_trainer.storage.atomic import make_folder

logger = logging.getLogger(__name__)
LOCK = "in-use.lock"
# The locks of this process. A lock ends with its Python object, so they are kept here until they are released.
_claimed: dict[Path, BaseFileLock] = {}


def claim_folder(folder: Path) -> None:
    """
    Locks a folder against other processes until it is released or this process ends, even by SIGKILL.

    Raises:
        RuntimeError: another process has claimed it.
    """
    # Resolved, so that the same folder under two names, through a link, is one.
    path = (folder / LOCK).resolve()
    if path in _claimed:
        return
    try:
        make_folder(folder)
        lock = FileLock(path)
        lock.acquire(timeout=0)
        _claimed[path] = lock
    except Timeout:
        raise RuntimeError(
            f"Another run is writing to {folder}. Wait until it has ended, or give another output folder."
        ) from None
    except NotImplementedError:
        # Some network file systems have no locks. A run there is better than none.
        logger.warning("%s is on a file system without locks: make sure that no other run uses it.", folder)


def release_folder(folder: Path) -> None:
    """Lets other processes write to the folder again."""
    lock = _claimed.pop((folder / LOCK).resolve(), None)
    if lock is not None:
        lock.release()
