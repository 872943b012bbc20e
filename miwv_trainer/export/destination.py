"""Where a selection may be written: checked before anything is read or written."""

from pathlib import Path
from typing import Literal, get_args

Format = Literal["jsonl", "parquet", "dataset"]
FORMATS: tuple[Format, ...] = get_args(Format)
CARD_FILE = "README.md"
# The card's tag, by which a folder is known that may be replaced.
TAG = "miwv_trainer"
ENDINGS: dict[Format, str] = {"jsonl": ".jsonl", "parquet": ".parquet", "dataset": ""}


def check_destination(kind: Format, target: Path, dataset: str, option: str) -> None:
    """
    Refuses a target that would destroy something or that does not fit the format.

    Args:
        kind: Format that is to be written.
        target: File or folder to write.
        dataset: The pool, as it was typed.
        option: The option that gave the target, for messages.

    Raises:
        ValueError: the name does not fit the format, the pool lies there, or something that this command did not write.
    """
    if target.suffix != ENDINGS[kind] and kind != "dataset":
        raise ValueError(f"`{option}` must end in {ENDINGS[kind]} with `--format {kind}`, but got {target}.")
    if target.exists() and Path(dataset).exists() and target.samefile(dataset):
        raise ValueError(f"{target} is the pool itself: give another file as `{option}`.")
    check_outside(target, dataset, option)
    if kind == "dataset":
        _check_folder(target, option)
    elif target.is_dir():
        raise ValueError(f"{target} is a folder: give a file as `{option}`, or `--format dataset`.")


def check_outside(target: Path, dataset: str, option: str) -> None:
    """Raises `ValueError` if `target` lies in the folder that holds the pool, whose files are all read as the pool."""
    folder = Path(dataset).expanduser().resolve()
    if folder.is_dir() and target.resolve().is_relative_to(folder):
        raise ValueError(
            f"{target} lies in {dataset}, all files of which are the pool: give another place as `{option}`."
        )


def _check_folder(target: Path, option: str) -> None:
    """A folder is replaced as a whole, so it must hold nothing but an earlier selection, known by its card's tag."""
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file, but `--format dataset` writes a folder: give another one as `{option}`.")
    # The whole tree, not only the top: a file of somebody else's may lie deep in data/.
    found = {path.relative_to(target).as_posix() for path in target.rglob("*")}
    others = sorted(name for name in found if name not in (CARD_FILE, "data") and not name.startswith("data/train-"))
    is_ours = not others and CARD_FILE in found and f"- {TAG}\n" in (target / CARD_FILE).read_text(encoding="utf-8")
    if found and not is_ours:
        raise ValueError(
            f"{target} holds {', '.join((others or sorted(found))[:3])}, which this command did not write: give an "
            f"empty or a new folder as `{option}`."
        )
