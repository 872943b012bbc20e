"""Files that are whole or not there: a temporary name beside their own, flushed to the disk and renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Gives a temporary path beside `target`; at the end it is flushed to the disk and takes the target's name."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with explain_write_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
            sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def explain_write_errors(target: Path) -> Iterator[None]:
    """Says what could not be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{target} could not be written ({error}). What stood there before is unchanged. Free space on the disk, "
            "or give another output folder."
        ) from error


def write_text(target: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with atomic_path(target) as path:
        path.write_text(text, encoding="utf-8")


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
