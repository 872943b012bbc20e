"""Keeping a run's files out of what the Trainer uploads.

`Trainer.push_to_hub` uploads everything in `output_dir` but checkpoints. Scores, embeddings of the prompts and the
lock of the folder would become public with the model. The hub's client skips what a `.gitignore` beside them names.
"""

from pathlib import Path

from miwv_trainer.storage.atomic import write_text

IGNORED_BY = ".gitignore"


def keep_out_of_uploads(output: Path, folder: Path) -> None:
    """Names a folder in the `.gitignore` of `output`, behind what stands there, if it lies in `output`."""
    output, folder = output.resolve(), folder.resolve()
    if not folder.is_relative_to(output):
        return
    path, rule = output / IGNORED_BY, f"{folder.relative_to(output).as_posix()}/"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if rule not in lines:
        write_text(path, "".join(f"{line}\n" for line in [*lines, rule]))
