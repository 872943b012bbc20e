"""The wheel that is built from the tree, and what runs with nothing but what it requires."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.launch import ROOT
from tests.helpers.tiny import instruction_rows, save_tiny

PACKAGE = ROOT / "miwv_trainer"
# What the extras of setup.py bring.
OPTIONAL = (
    *("sentence_transformers", "faiss", "faiss_cpu", "trl", "peft", "deepspeed", "gguf", "rouge_score"),
    *("schedulefree", "matplotlib", "pytest"),
)
# Hides them from imports and from whoever asks what is installed. Python runs a module of this name at its start.
HIDING = """
import sys
from importlib.machinery import PathFinder

OPTIONAL = {optional!r}


class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in OPTIONAL else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *context):
        found = PathFinder.find_distributions(*context)
        return (entry for entry in found if entry.metadata["Name"].lower().replace("-", "_") not in OPTIONAL)


sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def pip(python: Path | str, *arguments: object) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "-q", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # A copy: building writes into the tree, and takes what an earlier build left there.
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("miwv_trainer", "tests", "examples", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip(sys.executable, "wheel", folder, "--no-deps", "--no-build-isolation", "-w", folder / "dist")
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    save_tiny(folder / "model")
    (folder / "ten.jsonl").write_text("".join(json.dumps(row) + "\n" for row in instruction_rows(10)))
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
        entry = archive.read(next(name for name in archive.namelist() if name.endswith("entry_points.txt"))).decode()
    tree = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    templates = {path.relative_to(ROOT).as_posix() for path in (PACKAGE / "report" / "templates").iterdir()}
    assert templates and names == tree | templates | {"miwv_trainer/py.typed"}
    assert {f"miwv_trainer/metrics/{path.name}" for path in (PACKAGE / "metrics").glob("*.py")} <= names
    assert "miwv = miwv_trainer.cli.main:main" in entry
    required = [line for line in re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE) if "extra ==" not in line]
    assert {"torch", "transformers", "huggingface_hub"} <= {re.split(r"[<>=]", line)[0] for line in required}
    named = {re.split(r"[<>=]", line)[0].replace("-", "_") for line in required}
    assert not named & set(OPTIONAL)


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "HF_HUB_OFFLINE": "1", **variables}


def command_lines(pool: Path, output: Path) -> list[list[str]]:
    dataset = pool / "ten.jsonl"
    lines = (
        f"score --model {pool / 'model'} --dataset {dataset} --output {output} --embedder tfidf --fraction 0.2",
        f"select --scores {output} --dataset {dataset} --fraction 0.3 --format dataset",
        f"report --run {output} --dataset {dataset}",
    )
    return [line.split() for line in lines]


def check_what_was_made(printed: str, output: Path) -> None:
    assert printed.count("round 0 (step 0): 2 of 10 selected") == 2  # by score and by report
    assert "3 of 10 samples, MIWV" in printed
    assert len((output / "selected.jsonl").read_text().splitlines()) == 2
    assert (output / "selected" / "README.md").is_file()
    assert (output / "report" / "index.html").is_file()


def run(command: list[object], folder: Path, variables: dict[str, str]) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=variables, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


ALL_IN_ONE = """
import importlib.util, json, sys
from miwv_trainer.cli.main import main
assert not [name for name in json.loads(sys.argv[1]) if importlib.util.find_spec(name)]
assert [main(typed) for typed in json.loads(sys.argv[2])] == [0, 0, 0]
"""


def test_everything_runs_without_what_is_optional(pool: Path, tmp_path: Path) -> None:
    """In a process of its own, where it cannot have been imported."""
    (tmp_path / "sitecustomize.py").write_text(HIDING.format(optional=OPTIONAL))
    variables = environment(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    lines = command_lines(pool, tmp_path / "O")
    printed = run([sys.executable, "-c", ALL_IN_ONE, json.dumps(OPTIONAL), json.dumps(lines)], tmp_path, variables)
    check_what_was_made(printed, tmp_path / "O")


@pytest.mark.slow
def test_the_wheel_installs_into_an_empty_environment(wheel: Path, pool: Path, tmp_path: Path) -> None:
    """Minutes, and the network."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    programs = tmp_path / "venv" / "bin"
    pip(programs / "python", "install", "-c", ROOT / "constraints.txt", wheel)
    # Without the tree's folder on its path.
    variables = environment()
    installed = subprocess.run(
        [programs / "python", "-c", "import miwv_trainer; print(miwv_trainer.__file__, miwv_trainer.__version__)"],
        capture_output=True, text=True, env=variables, cwd=tmp_path, check=True,
    ).stdout  # fmt: skip
    assert str(tmp_path / "venv") in installed and installed.split()[1] in wheel.name
    found = {entry.metadata["Name"].lower().replace("-", "_") for entry in distributions(tmp_path / "venv")}
    assert {"torch", "transformers", "miwv_trainer"} <= found
    assert not found & set(OPTIONAL)
    for name, command in (("O", [programs / "miwv"]), ("P", [programs / "python", "-m", "miwv_trainer"])):
        assert "{score,select,report}" in run([*command, "--help"], tmp_path, variables)
        lines = command_lines(pool, tmp_path / name)
        check_what_was_made("".join(run([*command, *line], tmp_path, variables) for line in lines), tmp_path / name)


def distributions(folder: Path) -> list[importlib.metadata.Distribution]:
    return list(importlib.metadata.distributions(path=[str(path) for path in folder.glob("lib/python*/site-packages")]))
