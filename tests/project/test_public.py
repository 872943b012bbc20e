"""The public names: all that README, docs and examples import is among them, and each of them is documented."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import miwv_trainer
from tests.helpers.launch import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = [*sorted((ROOT / "examples").glob("*.py")), *sorted((ROOT / "docs").glob("*.py"))]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
PUBLIC = {*miwv_trainer.__all__, "__version__"}


def code_of(path: Path) -> str:
    """The Python code of a script, of a notebook's cells or of a page's blocks."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")
    if path.suffix == ".md":
        return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    return text


def find_private_imports(code: str) -> Iterator[str]:
    """What is imported from inside the package, as `module.name`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("miwv_trainer."))
        elif isinstance(node, ast.ImportFrom) and node.module == "miwv_trainer":
            yield from (f"miwv_trainer.{name.name}" for name in node.names if name.name not in PUBLIC)
        elif isinstance(node, ast.ImportFrom) and re.match(r"miwv_trainer\.(?!metrics$)", node.module or ""):
            yield f"{node.module}.{node.names[0].name}"


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS, *NOTEBOOKS], ids=lambda path: path.name)
def test_nothing_is_imported_from_inside_the_package(path: Path) -> None:
    assert list(find_private_imports(code_of(path))) == []


def test_an_import_from_inside_is_found() -> None:
    code = """
import miwv_trainer
import miwv_trainer.storage.store
from miwv_trainer import Pool, Store
from miwv_trainer.metrics import metric_path
def later():
    from miwv_trainer.data.files import load_rows
"""
    found = set(find_private_imports(code))
    assert found == {"miwv_trainer.storage.store", "miwv_trainer.Store", "miwv_trainer.data.files.load_rows"}


def test_code_is_found_where_it_is_looked_for() -> None:
    users = [path for path in [*PAGES, *SCRIPTS, *NOTEBOOKS] if "from miwv_trainer import" in code_of(path)]
    assert {path.suffix for path in users} == {".md", ".py", ".ipynb"} and len(users) >= 12


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_name_that_is_written_about_is_public(path: Path) -> None:
    """`miwv_trainer.tokenize` in a sentence, say; a file's or a logger's name is another thing."""
    for name in re.findall(r"`miwv_trainer\.(\w+)`", path.read_text(encoding="utf-8")):
        assert name in {*PUBLIC, "metrics"}, name


def test_public_names_are_there_and_none_twice() -> None:
    assert len(miwv_trainer.__all__) == len(set(miwv_trainer.__all__))
    for name in miwv_trainer.__all__:
        assert getattr(miwv_trainer, name).__module__.startswith("miwv_trainer.")
