"""Data flows one way: a file imports only from its own wing and from the wings above it."""

import ast
import re
from pathlib import Path

import pytest

from benchmarks import measure_code
from tests.helpers.launch import ROOT

PACKAGE = ROOT / "miwv_trainer"
# In the order in which data flows. The files beside the folders are the first wing (what may be set) and the last (what
# is imported, what is run).
WINGS = (*measure_code.WINGS, "package")
PURE = ("config", "embeddings", "selection", "metrics")
FIRST, LAST = ("version", "compat", "checks", "descriptions", "config"), ("__init__", "__main__")
FILES = sorted(PACKAGE.rglob("*.py"))


def wing_of(path: Path) -> str:
    folder, *rest = path.relative_to(PACKAGE).parts
    if rest:
        return folder
    return "package" if path.stem in LAST else "config"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """Names of modules and of what is taken from them, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def files_imported(path: Path) -> set[Path]:
    """The package's files that a file takes something from; a folder that is only on the way does not count."""
    names = {name for name in imported(path) if name in MODULES}
    return {MODULES[name] for name in names if not any(other.startswith(f"{name}.") for other in names)} - {path}


def shown(paths: set[Path]) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in paths)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_its_own_wing_and_from_those_above_it(path: Path) -> None:
    allowed = WINGS[: WINGS.index(wing_of(path)) + 1]
    assert shown({other for other in files_imported(path) if wing_of(other) not in allowed}) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    left = {path: files_imported(path) for path in FILES}
    while free := {path for path, others in left.items() if not others & left.keys()}:
        for path in free:
            del left[path]
    assert shown(set(left)) == []


def test_every_file_is_in_a_wing_of_the_plan() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(WINGS) - {"config", "package"}
    assert {path.stem for path in PACKAGE.glob("*.py")} <= {*FIRST, *LAST}


@pytest.mark.parametrize("path", [p for p in FILES if wing_of(p) in PURE], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_pure_wings_know_no_ranks_no_disk_and_no_trainer(path: Path) -> None:
    names = imported(path)
    forbidden = ("torch.distributed", "accelerate", "deepspeed", "os", "pathlib", "shutil", "transformers.Trainer")
    assert not {name for name in names for other in forbidden if name == other or name.startswith(other + ".")}
    assert "open(" not in re.sub(r"\w+open\(", "", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_one_wing_knows_the_process_group(path: Path) -> None:
    names = [name for name in imported(path) if name.startswith(("torch.distributed", "deepspeed", "accelerate.state"))]
    assert not names or wing_of(path) == "distributed"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_longer_than_the_limit(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_pickle_is_nowhere() -> None:
    for path in FILES:
        assert not {"pickle", "joblib", "dill"} & imported(path)
        assert "torch.save" not in path.read_text(encoding="utf-8")


def test_no_test_module_imports_from_another() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\bfrom tests[.\w]*\.test_\w+ import", text), path


def test_tests_mirror_the_wings() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {*WINGS, "helpers", "launched", "foreign", "project"} - {"config", "package"}
