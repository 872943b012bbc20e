"""Data flows one way: a file imports only from those above it."""

import ast
import re
from pathlib import Path

import pytest

from tests.launched import ROOT

PACKAGE = ROOT / "miwv_trainer"
PURE = (
    *("checks", "config", "vectors", "pool", "rendering", "packing", "scores", "guards", "diversity", "selection"),
    *("rescoring", "ordering", "sampler"),
)

# What people type and look at; beside the rooms, since nothing imports them.
ENTRANCES = (
    *("__init__", "__main__", "cli", "options", "report", "card", "export"),
    *("reasons", "charts", "drawing", "texts", "page"),
)


def order() -> list[str]:
    """The rooms from top to bottom, as the README lists them."""
    listed = (ROOT / "README.md").read_text(encoding="utf-8").split("## Reading the code")[1].split("## ")[0]
    return re.findall(r"(\w+)\.py ", listed)


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def rooms(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("miwv_trainer.")}


@pytest.mark.parametrize("room", order())
def test_a_room_imports_only_from_those_above_it(room: str) -> None:
    above = order()[: order().index(room)]
    assert rooms(PACKAGE / f"{room}.py") <= set(above)


def test_every_file_is_a_room_or_an_entrance() -> None:
    files = {path.stem for path in PACKAGE.glob("*.py")}
    assert files == {*order(), *ENTRANCES}


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_know_no_ranks_no_disk_and_no_trainer(room: str) -> None:
    names = imported(PACKAGE / f"{room}.py")
    forbidden = ("torch.distributed", "accelerate", "deepspeed", "os", "pathlib", "shutil", "transformers.Trainer")
    assert not {name for name in names for other in forbidden if name == other or name.startswith(other + ".")}
    assert "open(" not in re.sub(r"\w+open\(", "", (PACKAGE / f"{room}.py").read_text(encoding="utf-8"))


def test_only_distributed_knows_the_process_group() -> None:
    for path in PACKAGE.glob("*.py"):
        knows = any(name.startswith(("torch.distributed", "deepspeed")) for name in imported(path))
        assert knows == (path.stem == "distributed")


def test_pickle_is_nowhere() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not {"pickle", "joblib", "dill"} & imported(path)
        assert "torch.save" not in path.read_text(encoding="utf-8")


def test_no_file_is_much_longer_than_300_lines() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 375, path.name
