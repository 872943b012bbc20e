"""What `miwv` imports before it has anything to compute."""

import ast
import inspect
import subprocess
import sys

import pytest

import miwv_trainer
from miwv_trainer.cli.main import main
from miwv_trainer.version import __version__

# Each takes between half a second and several seconds to import.
HEAVY = {"torch", "transformers", "datasets", "accelerate", "huggingface_hub", "pyarrow", "scipy", "sklearn", "trl"}
IMPORTED_AFTER = """
import sys
from miwv_trainer.cli.main import main
for words in {lines!r}:
    try:
        main(words.split())
    except SystemExit as ended:
        print(words, ended.code, file=sys.stderr)
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


def imported_after(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_and_wrong_options_import_nothing_heavy() -> None:
    lines = ["--help", "--version", "score --help", "select --help", "report", "score --fracton 1"]
    found = imported_after(IMPORTED_AFTER.format(lines=lines))
    assert "miwv_trainer" in found
    assert found & HEAVY == set()


@pytest.mark.parametrize("name", ["__version__", "MIWVConfig"])
def test_what_needs_no_torch_is_had_without_it(name: str) -> None:
    code = f"import sys, miwv_trainer\nprint(miwv_trainer.{name}, file=sys.stderr)\n"
    code += "print(*{name.partition('.')[0] for name in sys.modules})"
    assert imported_after(code) & HEAVY == set()


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"miwv_trainer {__version__}\n"


def test_names_are_imported_from_where_type_checkers_look_for_them() -> None:
    block = next(node for node in ast.parse(inspect.getsource(miwv_trainer)).body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(told) == set(miwv_trainer.__all__) <= set(dir(miwv_trainer))
    for name, module in told.items():
        assert getattr(miwv_trainer, name) is getattr(sys.modules[module], name)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'miwv_trainer' has no attribute 'atach'"):
        miwv_trainer.atach  # noqa: B018
