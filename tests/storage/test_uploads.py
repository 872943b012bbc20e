"""What a run writes beside the model stays out of the Trainer's uploads."""

from pathlib import Path

from miwv_trainer.storage.uploads import keep_out_of_uploads


def test_the_folder_is_named_once_behind_what_stood_there(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*.log")
    for _ in range(2):
        keep_out_of_uploads(tmp_path, "miwv")
    assert (tmp_path / ".gitignore").read_text() == "*.log\nmiwv/\n"
