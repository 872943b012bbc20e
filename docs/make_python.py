"""Writes the list of public names in python.md from their docstrings: python -m docs.make_python"""

import inspect
import re

import miwv_trainer
from benchmarks.measure_code import ROOT, write_between_markers

PAGE = ROOT / "docs" / "python.md"


def read_first_sentence(name: str) -> str:
    """
    The first sentence of what a public name is documented by.

    Raises:
        ValueError: it has no docstring.
    """
    docstring = inspect.getdoc(getattr(miwv_trainer, name))
    if not docstring:
        raise ValueError(f"miwv_trainer.{name} has no docstring: say in one sentence what it is.")
    return re.split(r"(?<=\.)\s", " ".join(docstring.split("\n\n")[0].split()))[0]


def list_names() -> str:
    """One line per public name, in the order of `__all__`."""
    lines = [f"| `{name}` | {read_first_sentence(name)} |" for name in miwv_trainer.__all__]
    return "\n".join(["| name | |", "|---|---|", *lines])


def main() -> None:
    write_between_markers(PAGE, "names", list_names())


if __name__ == "__main__":
    main()
