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


def check_everything_runs(command: list[str], pool: Path, output: Path, variables: dict[str, str]) -> None:
    """`command` starts `miwv`."""
    said, scoring = {}, f"score --model {pool / 'model'} --dataset {pool / 'ten.jsonl'} --output {output}"
    for typed in (
        "--help",
        f"{scoring} --embedder tfidf --fraction 0.2",
        f"select --scores {output} --dataset {pool / 'ten.jsonl'} --fraction 0.3 --format dataset",
        f"report --run {output} --dataset {pool / 'ten.jsonl'}",
    ):
        done = subprocess.run(
            [*command, *typed.split()], capture_output=True, text=True, env=variables, cwd=output.parent
        )
        assert done.returncode == 0, done.stderr[-3000:]
        said[typed.split()[0]] = done.stdout
    assert "{score,select,report}" in said["--help"]
    assert "round 0 (step 0): 2 of 10 selected" in said["score"] and "2 of 10 selected" in said["report"]
    assert "3 of 10 samples, MIWV" in said["select"]
    assert len((output / "selected.jsonl").read_text().splitlines()) == 2
    assert (output / "selected" / "README.md").is_file()


def test_everything_runs_without_what_is_optional(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDING.format(optional=OPTIONAL))
    variables = environment(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    hidden = subprocess.run([sys.executable, "-c", "import peft"], capture_output=True, text=True, env=variables)
    assert "No module named 'peft'" in hidden.stderr
    subprocess.run([sys.executable, "-c", "import miwv_trainer"], check=True, env=variables)
    check_everything_runs([sys.executable, "-m", "miwv_trainer"], pool, tmp_path / "O", variables)


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
    check_everything_runs([str(programs / "miwv")], pool, tmp_path / "O", variables)
    check_everything_runs([str(programs / "python"), "-m", "miwv_trainer"], pool, tmp_path / "P", variables)


def distributions(folder: Path) -> list[importlib.metadata.Distribution]:
    return list(importlib.metadata.distributions(path=[str(path) for path in folder.glob("lib/python*/site-packages")]))
