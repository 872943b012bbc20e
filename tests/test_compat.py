"""Differences between versions of other libraries: each answered in compat.py, and nowhere else."""

import ast
import re
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from miwv_trainer import compat
from miwv_trainer.compat import (
    is_at_least,
    load_varlen_attention,
    make_column,
    make_gguf_options,
    read_parallelism,
    read_sampling_strategy,
)
from tests.helpers.launch import ROOT
from tests.helpers.trainers import arguments


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch):
    """Makes the package believe that a library is installed in some version."""
    return lambda found: monkeypatch.setattr(compat, "version", lambda name: found)


@pytest.mark.parametrize(
    ("found", "lowest", "expected"),
    [("5.2.0", "5.2", True), ("5.10.0", "5.2", True), ("5.1.9", "5.2", False), ("2.13.0+cpu", "2.13", True)],
)
def test_versions_are_compared_by_their_numbers(found: str, lowest: str, expected: bool, pretend) -> None:
    pretend(found)
    assert is_at_least("transformers", lowest) is expected


def test_the_version_that_is_installed_is_asked_for() -> None:
    found = metadata.version("torch").partition("+")[0]
    assert is_at_least("torch", found) and not is_at_least("torch", f"{int(found.partition('.')[0]) + 1}.0")


def test_before_1_12_accelerate_has_no_sequence_parallelism(pretend) -> None:
    config = SimpleNamespace(tp_size=2, cp_size=None)
    pretend("1.11.0")
    assert read_parallelism(config) == {"tp_size": 2, "cp_size": 1}  # type: ignore[arg-type]
    pretend("1.12.0")
    assert read_parallelism(SimpleNamespace(tp_size=1, cp_size=1, sp_size=4)) == {  # type: ignore[arg-type]
        "tp_size": 1, "cp_size": 1, "sp_size": 4,
    }  # fmt: skip


@pytest.mark.parametrize(("grouped", "expected"), [(True, "group_by_length"), (False, "random")])
def test_before_5_2_group_by_length_says_how_samples_are_drawn(grouped: bool, expected: str, pretend) -> None:
    pretend("5.1.0")
    assert read_sampling_strategy(SimpleNamespace(group_by_length=grouped)) == expected  # type: ignore[arg-type]


def test_the_strategy_of_real_arguments_is_read(tmp_path: Path) -> None:
    assert read_sampling_strategy(arguments(tmp_path)) == "random"
    name = "train_sampling_strategy" if is_at_least("transformers", "5.2") else "group_by_length"
    given = {name: "group_by_length" if name == "train_sampling_strategy" else True}
    assert read_sampling_strategy(arguments(tmp_path, **given)) == "group_by_length"


def test_gguf_weights_are_unpacked_by_the_older_loader_before_5_17(pretend) -> None:
    pretend("5.16.1")
    assert make_gguf_options("a.gguf") == {"gguf_file": "a.gguf"}


@pytest.mark.skipif(not is_at_least("transformers", "5.17"), reason="transformers has GgufConfig from 5.17 on")
def test_gguf_weights_are_unpacked_on_request_from_5_17_on() -> None:
    options = make_gguf_options("a.gguf")
    assert options["gguf_file"] == "a.gguf" and options["quantization_config"].dequantize is True


def test_values_of_several_types_are_refused_before_datasets_4_7_and_not_made_text(pretend) -> None:
    with_text = make_column("a", ["b", None])
    pretend("4.6.1")
    assert make_column("a", ["b", None]).to_list() == with_text.to_list() == [{"a": "b"}, {"a": None}]
    with pytest.raises((ValueError, TypeError)):
        make_column("a", [1, "two"])


@pytest.mark.parametrize(("found", "has_it"), [("2.6.0", False), ("2.10.1", False), ("2.12.0", True)])
def test_variable_length_attention_is_torchs_where_it_takes_windows(found: str, has_it: bool, pretend) -> None:
    if not is_at_least("torch", "2.12"):
        pytest.skip("this torch has none")
    pretend(found)
    assert (load_varlen_attention() is not None) == has_it


def test_no_other_file_asks_for_a_version() -> None:
    others = "transformers|torch|accelerate|datasets|trl|peft|numpy"
    asks = re.compile(rf"importlib\.metadata|import packaging|packaging\.|is_at_least|({others})\.__version__")
    files = sorted((ROOT / "miwv_trainer").rglob("*.py"))
    assert [path.name for path in files if asks.search(path.read_text(encoding="utf-8"))] == ["compat.py"]


# Names of the standard library that Python 3.10 lacks, as far as code like this might use them.
SINCE_3_11 = {
    "datetime": {"UTC"},
    "typing": {"LiteralString", "Never", "NotRequired", "Required", "Self", "TypeVarTuple", "Unpack", "assert_never"},
    "enum": {"StrEnum", "verify"},
    "contextlib": {"chdir"},
    "hashlib": {"file_digest"},
}


@pytest.mark.parametrize("folder", ["miwv_trainer", "tests", "examples", "benchmarks"])
def test_nothing_is_taken_from_the_standard_library_that_python_3_10_lacks(folder: str) -> None:
    found = []
    for path in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                found += [
                    (path.name, alias.name)
                    for alias in node.names
                    if alias.name in SINCE_3_11.get(node.module or "", ())
                ]
            if isinstance(node, ast.Attribute) and node.attr in SINCE_3_11.get(ast.unparse(node.value), ()):
                found.append((path.name, node.attr))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                # The order of the bytes has a default from 3.11 on.
                needed = {"from_bytes": 2, "to_bytes": 2}.get(node.func.attr, 0)
                if len(node.args) + len(node.keywords) < needed:
                    found.append((path.name, node.func.attr))
            if isinstance(node, ast.Import):
                found += [(path.name, alias.name) for alias in node.names if alias.name == "tomllib"]
    assert found == []
