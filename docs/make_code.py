"""Writes the lists of files in README.md and code.md from the modules' docstrings: python -m docs.make_code"""

import ast
import re
from pathlib import Path

from benchmarks.measure_code import PACKAGE, ROOT, WINGS, write_between_markers

README, PAGE = ROOT / "README.md", ROOT / "docs" / "code.md"


def first_sentence(path: Path) -> str:
    """
    The first sentence of a module's docstring, in one line.

    Raises:
        ValueError: The module has no docstring.
    """
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{path} has no docstring: say in one sentence what it does.")
    text = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", text)[0].rstrip(".")


def files_of(wing: str) -> list[Path]:
    """The files of a wing without the docstring-only `__init__.py`; `config` has those beside the folders."""
    folder = PACKAGE if wing == "config" else PACKAGE / wing
    return [path for path in sorted(folder.glob("*.py")) if wing == "config" or path.stem != "__init__"]


def list_wings() -> str:
    """One line per wing, in the order in which data flows."""
    lines = [(f"{wing}/", first_sentence(PACKAGE / wing / "__init__.py")) for wing in WINGS[1:]]
    lines.insert(0, ("config.py", first_sentence(PACKAGE / "config.py")))
    return "\n".join(["```text", *(f"{name:13}{sentence}" for name, sentence in lines), "```"])


def list_files() -> str:
    """One line per file, under its wing."""
    parts = []
    for wing in WINGS:
        head = (
            "Beside the folders" if wing == "config" else f"`{wing}/`: {first_sentence(PACKAGE / wing / '__init__.py')}"
        )
        lines = [f"| `{path.name}` | {first_sentence(path)} |" for path in files_of(wing)]
        parts.append("\n".join([f"### {head}", "", "| | |", "|---|---|", *lines]))
    return "\n\n".join(parts)


def main() -> None:
    write_between_markers(README, "wings", list_wings())
    write_between_markers(PAGE, "files", list_files())


if __name__ == "__main__":
    main()
