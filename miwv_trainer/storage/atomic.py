"""
Writing to the disk: files and folders that are whole or not there.

What is written gets a temporary name beside its own, is flushed to the disk and renamed. A process that is killed, or a
disk that is full, leaves what stood there before. Every file that this library writes, moves or deletes goes through
these functions, except the journal of a running round.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from miwv_trainer.foreign_errors import quote_error


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Gives a temporary path beside `target`. After the block, the file there is flushed and renamed to `target`."""
    # Beside the target, because a rename is atomic only within one file system. With the number of the process, because
    # two of them may write the same file.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with explain_write_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            # Without this, the file may be empty after a power loss: its name may reach the disk before its contents.
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
            # The rename itself is on the disk only when the folder is.
            sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """
    Gives a new folder beside `target`. After the block, it is renamed to `target` and replaces what stood there.

    The files in it are flushed by `atomic_path`, which must write them.
    """
    partial, old = (target.with_name(f".{target.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    delete(partial)
    try:
        with explain_write_errors(target):
            partial.mkdir(parents=True)
        yield partial
        with explain_write_errors(target):
            # A folder that is not empty cannot be replaced in one step, so the old one is moved out of the way first.
            if target.exists():
                os.replace(target, old)
            os.replace(partial, target)
            sync_folder(target.parent)
    finally:
        # Between the two renames there is no `target`. After an error there, the old folder is moved back; after a kill
        # it is still there, under its hidden name.
        if old.exists() and not target.exists():
            os.replace(old, target)
        delete(partial)
        delete(old)


@contextmanager
def explain_write_errors(target: Path) -> Iterator[None]:
    """Turns an error of the disk into one that says what could not be written, and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{target} could not be written ({quote_error(error)}). What stood there before is unchanged. Free "
            "space on the disk, or give another output folder."
        ) from error


def write_text(target: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with atomic_path(target) as path:
        path.write_text(text, encoding="utf-8")


def write_bytes(target: Path, content: bytes) -> None:
    """Writes a file as it is given, whole or not at all."""
    with atomic_path(target) as path:
        path.write_bytes(content)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, if they are not there."""
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def move_into(folder: Path, paths: Sequence[Path]) -> None:
    """Moves files and folders into a folder of the same file system, which is made if it is not there."""
    make_folder(folder)
    for path in paths:
        os.replace(path, folder / path.name)


def delete(path: Path) -> None:
    """Deletes a file or a folder, if it is there. A folder that cannot be deleted stays, because it does no harm."""
    # A link to a folder is deleted as a link: what it points to belongs to somebody else.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
