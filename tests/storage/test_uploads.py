"""What a run writes beside the model stays out of the Trainer's uploads."""

from pathlib import Path

from miwv_trainer.storage.uploads import keep_out_of_uploads


def test_the_folder_is_named_once_behind_what_stood_there(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*.log")
    for _ in range(2):
        keep_out_of_uploads(tmp_path, tmp_path / "miwv")
    assert (tmp_path / ".gitignore").read_text() == "*.log\nmiwv/\n"


def test_a_folder_below_is_named_by_its_path_and_one_elsewhere_not_at_all(tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.mkdir()
    keep_out_of_uploads(output, tmp_path / "scores" / "miwv")
    assert not (output / ".gitignore").exists()
    keep_out_of_uploads(output, output / "scores" / "miwv")
    assert (output / ".gitignore").read_text() == "scores/miwv/\n"
