"""What is written is whole or not there, whenever writing fails."""

import os
from pathlib import Path

import pytest

from miwv_trainer.storage.atomic import atomic_folder, atomic_path, delete, write_text
from tests.helpers.stored import fail_to_replace, files_under


def test_a_rename_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    target = tmp_path / "state.json"
    write_text(target, "old")
    monkeypatch.setattr(os, "replace", fail_to_replace)
    with pytest.raises(OSError, match="the disk is full"):
        write_text(target, "new")
    assert files_under(tmp_path) == ["state.json"]
    assert target.read_text(encoding="utf-8") == "old"


def test_a_block_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path):
    target = tmp_path / "state.json"
    write_text(target, "old")
    with pytest.raises(RuntimeError, match="halfway"), atomic_path(target) as path:
        path.write_text("ne", encoding="utf-8")
        raise RuntimeError("halfway")
    assert files_under(tmp_path) == ["state.json"]
    assert target.read_text(encoding="utf-8") == "old"


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append("fsync") or fsync(descriptor))
    monkeypatch.setattr(os, "replace", lambda *paths: events.append("replace") or replace(*paths))
    write_text(tmp_path / "new folder" / "state.json", "ünïcode\n")
    assert events == ["fsync", "replace", "fsync"]
    assert (tmp_path / "new folder" / "state.json").read_bytes() == "ünïcode\n".encode()


def write_folder(target: Path, name: str) -> None:
    with atomic_folder(target) as partial:
        write_text(partial / name, name)


def test_a_folder_replaces_the_earlier_one_as_a_whole(tmp_path):
    for name in ("old.txt", "new.txt"):
        write_folder(tmp_path / "selected", name)
    assert files_under(tmp_path) == ["selected", "selected/new.txt"]


def test_a_block_that_fails_leaves_the_old_folder_and_no_temporary_one(tmp_path):
    write_folder(tmp_path / "selected", "old.txt")
    with pytest.raises(RuntimeError, match="halfway"), atomic_folder(tmp_path / "selected") as partial:
        write_text(partial / "new.txt", "new")
        raise RuntimeError("halfway")
    assert files_under(tmp_path) == ["selected", "selected/old.txt"]


@pytest.mark.parametrize("failing", [2, 3], ids=["the old folder is not moved", "the new folder is not moved"])
def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch, failing):
    write_folder(tmp_path / "selected", "old.txt")
    replace, calls = os.replace, []

    def fail_once(*paths):
        calls.append(paths)
        (fail_to_replace if len(calls) == failing else replace)(*paths)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(OSError, match="selected could not be written .the disk is full.*Free space on the disk"):
        write_folder(tmp_path / "selected", "new.txt")
    assert files_under(tmp_path) == ["selected", "selected/old.txt"]


def test_deleting_takes_files_and_folders_and_not_what_a_link_points_to(tmp_path):
    write_folder(tmp_path / "kept", "file.txt")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    write_folder(tmp_path / "folder", "file.txt")
    for name in ("link", "folder", "kept/file.txt", "nothing there"):
        delete(tmp_path / name)
    assert files_under(tmp_path) == ["kept"]
