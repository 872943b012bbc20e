"""One run at a time writes to an output folder."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from miwv_trainer.storage import lock
from miwv_trainer.storage.lock import LOCK, claim_folder, release_folder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "miwv"
    release_folder(tmp_path / "miwv")


@pytest.fixture
def other_run(folder: Path) -> Iterator[FileLock]:
    """A lock that is none of this module's, as another process holds it."""
    folder.mkdir()
    held = FileLock(folder / LOCK)
    yield held
    held.release()


def test_a_folder_that_another_run_has_claimed_is_refused(folder: Path, other_run: FileLock) -> None:
    other_run.acquire()
    with pytest.raises(
        RuntimeError, match=r"Another run is writing to .*miwv\. Wait until it has ended, or give another"
    ):
        claim_folder(folder)
    other_run.release()
    claim_folder(folder)


def test_a_claim_ends_when_it_is_released(folder: Path, other_run: FileLock) -> None:
    claim_folder(folder)
    with pytest.raises(TimeoutError):
        other_run.acquire(timeout=0)
    release_folder(folder)
    other_run.acquire(timeout=0)


def test_a_run_that_claims_its_folder_again_or_through_a_link_keeps_one_claim(folder: Path) -> None:
    claim_folder(folder)
    (folder.parent / "link").symlink_to(folder)
    claim_folder(folder.parent / "link")
    release_folder(folder)
    FileLock(folder / LOCK).acquire(timeout=0)


def test_a_file_system_without_locks_is_warned_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class NoLock:
        def __init__(self, path: Path) -> None:
            pass

        def acquire(self, timeout: float) -> None:
            raise NotImplementedError

    monkeypatch.setattr(lock, "FileLock", NoLock)
    with caplog.at_level(logging.WARNING):
        claim_folder(folder)
    assert "miwv is on a file system without locks: make sure that no other run uses it." in caplog.text
