"""README, docs and docstrings agree with the code and with what is parsed."""

import argparse
import ast
import importlib
import inspect
import re
import runpy
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.run as torchrun
from accelerate.commands.launch import launch_command_parser

import miwv_trainer
from benchmarks.measure_code import WINGS
from miwv_trainer.cli.main import main
from miwv_trainer.cli.options import OPTIONS
from miwv_trainer.config import MIWVConfig
from miwv_trainer.selection.measured import Measured
from tests.helpers.launch import ROOT

README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = [ROOT / "examples" / "train.py", ROOT / "examples" / "train_trl.py"]


def text_of(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return text if path.suffix == ".md" else ast.get_docstring(ast.parse(text)) or ""


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, str]]:
    """
    Every command line in code blocks, docstrings and backticks that starts something of this project; in a sentence it
    may leave out what is required.
    """
    for path in (*DOCUMENTS, *SCRIPTS):
        text = text_of(path)
        lines = re.sub(r"\\\n\s*", "", text).splitlines() + [
            f"{' '.join(span.split())} ..." for span in re.findall(r"`([^`]+)`", without_code(text))
        ]
        for line in lines:
            line = re.sub(r"\s#.*$", "", line).strip()
            line = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line)
            if re.match(
                r"(miwv (score|select|report) |python (-m )?\w|accelerate launch .*(\.py|-m )|torchrun .*\.py)", line
            ):
                yield path.name, line


class _Parsed(Exception):
    pass


def parsers_of(start: Callable[[], Any], typed: list[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """
    Parses `typed` with the parser that a script makes, as far as the end of parsing, and gives that parser's options.
    Three dots among the words stand for whatever is required.
    """
    parse, depth, found = argparse.ArgumentParser.parse_known_args, [0], set()

    def parse_and_stop(parser: Any, *arguments: Any, **named: Any) -> Any:
        found.update(parser._option_string_actions)
        for action in parser._actions if "..." in typed else ():
            action.required = False
        depth[0] += 1
        parsed = parse(parser, *arguments, **named)
        depth[0] -= 1
        if depth[0] == 0:
            if parsed[1]:
                parser.error(f"unrecognized arguments: {parsed[1]}")
            raise _Parsed
        return parsed

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
        patched.setattr(sys, "argv", ["started", *(word for word in typed if word != "...")])
        with pytest.raises(_Parsed):
            start()
    return found


def started(script: str, is_module: bool) -> Callable[[], Any]:
    if is_module and script == "miwv_trainer":
        return main
    if is_module:
        return importlib.import_module(script).main
    return lambda: runpy.run_path(str(ROOT / script), run_name="__main__")


def options_in(line: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The options that are known where a command line is parsed by all that parse it."""
    words = shlex.split(line)
    known: set[str] = set()
    if words[0] == "miwv":
        return parsers_of(main, words[1:], monkeypatch)
    if words[0] == "python":
        is_module, rest = words[1] == "-m", words[2:] if words[1] == "-m" else words[1:]
        return parsers_of(started(rest[0], is_module), rest[1:], monkeypatch)
    if words[0] == "accelerate":
        parser, rest = launch_command_parser(), words[2:]
    else:
        parser, rest = torchrun.get_args_parser(), words[1:]
    found = parser.parse_args(rest)
    known |= set(parser._option_string_actions)
    assert not getattr(found, "config_file", None) or (ROOT / found.config_file).is_file()
    return known | parsers_of(started(found.training_script, found.module), found.training_script_args, monkeypatch)


@pytest.mark.parametrize(("document", "line"), sorted(set(commands())))
def test_every_command_is_one_that_is_parsed(document: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    assert options_in(line, monkeypatch)


def test_the_commands_are_found() -> None:
    found = [line for _, line in commands()]
    for beginning in (
        "miwv score",
        "miwv select",
        "miwv report",
        "python -m benchmarks",
        "accelerate launch",
        "torchrun",
    ):
        assert sum(line.startswith(beginning) for line in found) >= 1, beginning
    assert len(found) >= 20


@pytest.mark.parametrize(
    "line", ["miwv select --scores O --fracton 0.1", "torchrun --nproc 2 examples/train.py --loar 1 ..."]
)
def test_a_command_of_wrong_options_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        options_in(line, monkeypatch)


def miwv_options(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    required = {"score": "--model M --dataset D", "select": "--scores O --fraction 0.1", "report": "--run O"}
    return {
        command: parsers_of(main, [command, *options.split()], monkeypatch) - {"-h", "--help"}
        for command, options in required.items()
    }


def test_every_option_of_miwv_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "\n".join(map(text_of, DOCUMENTS))
    of_fields = {option: name.partition("=")[0] for name, option in OPTIONS.items()}
    for command, options in miwv_options(monkeypatch).items():
        for option in options:
            assert f"{option}`" in told or f"| `{of_fields.get(option)}` |" in told, (command, option)


def test_every_option_that_is_written_about_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    known = set().union(*miwv_options(monkeypatch).values())
    for _, line in commands():
        known |= options_in(line, monkeypatch)
    for path in DOCUMENTS:
        written = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", without_code(text_of(path))))
        # Of Hugging Face's, git's and ms-swift's own commands.
        assert written - known <= {"--repo-type", "--lazy_tokenize", "--streaming"}, path.name


def test_the_page_on_scores_of_your_own_lists_all_that_a_function_gets() -> None:
    text = (ROOT / "docs" / "curricula.md").read_text(encoding="utf-8")
    listed = re.findall(
        r"^\| (`[^|]+) \|", text.partition("`Measured` holds")[2].partition("Nothing is")[0], re.MULTILINE
    )
    names = [name for cell in listed for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(names) == sorted([*(field.name for field in fields(Measured)), "miwv"])


def table_of_fields() -> dict[str, str]:
    section = text_of(README).split("## Configuration")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section, re.MULTILINE))


def test_the_readme_lists_every_field_with_its_default() -> None:
    table = table_of_fields()
    assert list(table) and set(table) == {field.name for field in fields(MIWVConfig)}
    for field in fields(MIWVConfig):
        default = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
        shown = table[field.name]
        assert default is None if shown == "none" else ast.literal_eval(shown.strip("`")) == default, field.name


def slugs(path: Path) -> set[str]:
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "RESULTS.md"], ids=str)
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in slugs(target), link


def test_every_file_that_is_written_about_exists() -> None:
    for path in DOCUMENTS:
        for name in re.findall(
            r"`((?:tests|examples|docs|ds_configs|benchmarks|miwv_trainer)/[\w./]*)`", text_of(path)
        ):
            assert (ROOT / name).exists(), (path.name, name)
        for name in re.findall(rf"`((?:{'|'.join(WINGS)})/[\w./]*)`", text_of(path)):
            assert (ROOT / "miwv_trainer" / name).exists(), (path.name, name)


def links_of(path: Path) -> set[Path]:
    """The files of this project that a page links to."""
    links = re.findall(r"\]\(([^)#\s]+)[^)\s]*\)", without_code(path.read_text(encoding="utf-8")))
    return {(path.parent / link).resolve() for link in links if not link.startswith("https://")}


def test_the_readme_leads_to_every_document() -> None:
    """In two clicks: it links the page itself, or the documentation's first page does."""
    start = ROOT / "docs" / "index.md"
    assert start in links_of(README)
    assert set((ROOT / "docs").glob("*.md")) <= links_of(README) | links_of(start)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_are_python(path: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        tree = ast.parse(block)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        for call in calls:
            exported = getattr(miwv_trainer, call.func.id, None)  # type: ignore[attr-defined]
            if exported is not None:
                taken = exported.__init__ if inspect.isclass(exported) else exported
                named = {keyword.arg for keyword in call.keywords}
                assert named <= set(inspect.signature(taken).parameters), call.func.id  # type: ignore[attr-defined]


def test_every_make_target_that_is_written_about_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in (*DOCUMENTS, ROOT / ".ci" / "run"):
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE)) <= targets, path.name


def test_every_extra_that_is_written_about_exists() -> None:
    extras = set(re.findall(r'^    "(\w+)": \[', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"embed", "faiss", "trl", "peft"} <= extras
    for path in DOCUMENTS:
        assert set(re.findall(r"extra `(\w+)`", text_of(path))) <= extras, path.name


LOWERED_EXTRAS = {"trl", "peft", "deepspeed", "sentence-transformers"}


def lower_bounds() -> dict[str, str]:
    """Of setup.py, without those of tools and of extras whose lowest version is not run."""
    found = dict(re.findall(r'"([\w-]+)>=([\d.]+)[",]', (ROOT / "setup.py").read_text(encoding="utf-8")))
    required = (ROOT / "setup.py").read_text(encoding="utf-8").split("install_requires=[")[1].split("]")[0]
    return {name: bound for name, bound in found.items() if f'"{name}>=' in required or name in LOWERED_EXTRAS}


def pinned(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE))


def same_version(short: str, long: str) -> bool:
    """2.0 is 2.0.0."""
    return re.fullmatch(re.escape(short) + r"(\.0)*", long) is not None


def test_the_lower_bounds_are_the_versions_of_the_lowest_set() -> None:
    lowest, bounds = pinned("constraints/lowest.txt"), lower_bounds()
    assert len(bounds) >= 15
    for name, bound in bounds.items():
        # Of its lowest version there is no CPU build; docs/versions.md tells of the run with it.
        if name != "torch":
            assert name in lowest and same_version(bound, lowest[name]), name
    # The others are what these versions need beside them, and tools that take these versions.
    tools = {"ipykernel", "ipython", "jupyter-client", "virtualenv"}
    assert set(lowest) - set(bounds) == {"pandas", "pydantic", "tokenizers", *tools}


def test_the_readme_states_the_minimum_versions() -> None:
    stated = re.search(r"at least (.+?) \(`constraints/lowest.txt`", " ".join(text_of(README).split()))
    assert stated
    named = dict(re.findall(r"(\w+) ([\d.]+\d)", stated[1]))
    assert {"torch", "transformers", "accelerate", "datasets", "trl"} == set(named)
    assert named == {name: bound for name, bound in lower_bounds().items() if name in named}


def test_what_is_tested_together_is_within_the_bounds() -> None:
    sets = ["constraints.txt", *(f"constraints/{path.name}" for path in (ROOT / "constraints").glob("*.txt"))]
    assert len(sets) >= 7
    for tested in map(pinned, sets):
        for name, bound in lower_bounds().items():
            if name in tested:
                numbers = [[int(number) for number in version.split(".")] for version in (bound, tested[name])]
                assert numbers[0] <= numbers[1], name


def test_each_set_changes_what_is_tested_together() -> None:
    today = pinned("constraints.txt")
    for path in (ROOT / "constraints").glob("*.txt"):
        own = pinned(f"constraints/{path.name}")
        assert any(today.get(name) != version for name, version in own.items()), path.name


def raised_by(function: Any) -> set[str]:
    """Names of the errors that a function's own lines raise."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {call.func.id for call in raised if isinstance(call.func, ast.Name)}


def exported() -> list[Any]:
    """What the package exports, with public methods; `on_...` are TrainerCallback's, told of in the class."""
    found: list[Any] = []
    for name in miwv_trainer.__all__:
        value = getattr(miwv_trainer, name)
        found.append(value)
        if inspect.isclass(value):
            methods = [method for key, method in vars(value).items() if key[0] != "_" and key[:3] != "on_"]
            found += [method for method in methods if inspect.isfunction(method)]
    return found


@pytest.mark.parametrize("value", exported(), ids=lambda value: value.__qualname__)
def test_what_is_exported_has_a_docstring_that_names_its_errors(value: Any) -> None:
    assert value.__doc__
    if inspect.isfunction(value):
        for error in raised_by(value):
            assert error in value.__doc__, error
