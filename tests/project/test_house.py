"""Data flows one way, from wing to wing, and what only some wings may do is done nowhere else."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import measure_code
from tests.helpers.launch import ROOT
from tests.helpers.syntax import (
    find_disk_access,
    find_disk_changes,
    find_global_randomness,
    find_patches,
    find_ranks,
    find_trainers,
    find_unsafe_loading,
    list_imports,
)

PACKAGE = ROOT / "miwv_trainer"
# In the order in which data flows. The files beside the folders are the first wing (what may be set) and the last (what
# is imported, what is run).
WINGS = (*measure_code.WINGS, "package")
PURE = ("config", "embeddings", "selection", "metrics")
FIRST, LAST = (
    ("version", "compat", "checks", "choices", "descriptions", "foreign_errors", "own_scores", "config"),
    ("__init__", "__main__"),
)
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


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def files_imported(path: Path) -> set[Path]:
    """The package's files that a file takes something from; a folder that is only on the way does not count."""
    names = {name for name in list_imports(TREES[path]) if name in MODULES}
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


# What CONTRIBUTING.md allows in some wings alone: what finds it in a file, and where it may be.
RULES: dict[str, tuple[Callable[[ast.AST], set[str]], Callable[[Path], bool]]] = {
    "ranks": (find_ranks, lambda path: wing_of(path) == "distributed"),
    "a Trainer": (find_trainers, lambda path: wing_of(path) == "training"),
    "changes of the disk": (find_disk_changes, lambda path: wing_of(path) == "storage"),
    "files": (find_disk_access, lambda path: wing_of(path) not in PURE and not is_pure_data(path)),
    "global randomness": (find_global_randomness, lambda path: False),
    "patches of other libraries": (find_patches, lambda path: False),
    "pickles and code of strangers": (find_unsafe_loading, lambda path: False),
}


def is_pure_data(path: Path) -> bool:
    return wing_of(path) == "data" and path.stem not in ("encoders", "files", "models", "text_files")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_does_only_what_its_wing_may_do(path: Path) -> None:
    broken = {name: find(TREES[path]) for name, (find, may_be_in) in RULES.items() if not may_be_in(path)}
    assert {name: found for name, found in broken.items() if found} == {}


@pytest.mark.parametrize("name", [name for name, (_, may_be_in) in RULES.items() if any(map(may_be_in, FILES))])
def test_what_a_wing_may_do_alone_is_found_there(name: str) -> None:
    find, may_be_in = RULES[name]
    assert any(find(TREES[path]) for path in FILES if may_be_in(path))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ranks", "def f():\n    import torch.distributed as dist"),
        ("ranks", "from accelerate import PartialState"),
        ("ranks", "from accelerate.utils.memory import clear_device_cache\nimport accelerate"),
        ("a Trainer", "from transformers import Seq2SeqTrainer"),
        ("a Trainer", "from transformers.trainer_utils import get_last_checkpoint"),
        ("changes of the disk", "path.write_text('a')"),
        ("changes of the disk", "open(path, 'ab')"),
        ("changes of the disk", "path.open('w')"),
        ("changes of the disk", "open(path, mode=given)"),
        ("changes of the disk", "os.replace(a, b)"),
        ("changes of the disk", "table.to_parquet(path)"),
        ("changes of the disk", "with atomic_path(path) as temporary:\n    pass\nfigure.savefig(path)"),
        ("files", "import os"),
        ("files", "from pathlib import Path"),
        ("files", "open(path)"),
        ("files", "SentenceTransformer(name)"),
        ("files", "AutoTokenizer.from_pretrained(name)"),
        ("global randomness", "np.random.shuffle(order)"),
        ("global randomness", "random.shuffle(order)"),
        ("global randomness", "torch.manual_seed(0)"),
        ("patches of other libraries", "import transformers\ntransformers.Trainer.train = train"),
        ("patches of other libraries", "from transformers import Trainer\nsetattr(Trainer, 'train', train)"),
        ("patches of other libraries", "import sys\nsys.modules['a'] = b"),
        ("pickles and code of strangers", "import pickle"),
        ("pickles and code of strangers", "np.load(path)"),
        ("pickles and code of strangers", "torch.load(path, weights_only=True)"),
        ("pickles and code of strangers", "eval(text)"),
        ("pickles and code of strangers", "load(name, trust_remote_code=True)"),
    ],
)
def test_what_breaks_a_rule_is_found(name: str, code: str) -> None:
    assert RULES[name][0](ast.parse(code))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ranks", "from accelerate.utils.memory import clear_device_cache"),
        ("a Trainer", "from transformers import PreTrainedModel"),
        ("changes of the disk", "with atomic_path(path) as temporary:\n    figure.savefig(temporary)"),
        ("changes of the disk", "open(path, 'rb').read()"),
        ("global randomness", "np.random.default_rng(seed).shuffle(order)"),
        ("global randomness", "generator.random()"),
        ("patches of other libraries", "import torch\nmodel.training = torch.tensor(1)"),
        ("pickles and code of strangers", "np.load(path, allow_pickle=False)"),
        ("pickles and code of strangers", "model.eval()"),
    ],
)
def test_what_keeps_a_rule_is_not_found(name: str, code: str) -> None:
    assert not RULES[name][0](ast.parse(code))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_longer_than_the_limit(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_imports_are_absolute() -> None:
    assert [path for path in FILES if any(name.startswith(".") for name in list_imports(TREES[path]))] == []


def test_no_test_module_imports_from_another() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\bfrom tests[.\w]*\.test_\w+ import", text), path


def test_tests_mirror_the_wings() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {*WINGS, "helpers", "launched", "foreign", "project"} - {"config", "package"}
