"""The documentation: its code runs, its commands exist, its links lead somewhere, and it builds."""

import argparse
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pytest
import torch.distributed.run
import trl
from accelerate.commands.launch import launch_command_parser
from transformers import DataCollatorForSeq2Seq, TrainingArguments

from miwv_trainer import MIWVConfig, cli, tokenize
from tests.launched import ROOT
from tests.tiny import instruction_rows, save_tiny, tiny_model, tiny_tokenizer

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
RUN = {page.name for page in PAGES if page.parent == DOCS} | {"README.md"}
# What a page's commands read and write.
MODELS, POOLS, OUTPUTS = ("M", "path/to/model"), ("pool.jsonl",), ("O", "out", "OUTPUT")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found]


def commands(text: str) -> list[list[str]]:
    """The command lines of a block, each as words; continued lines joined, comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model and a pool where the pages have them."""
    folder = tmp_path_factory.mktemp("workplace")
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text()
    for name in MODELS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tiny_tokenizer(chat_template=template).save_pretrained(save_tiny(folder / name))
    rows = [
        {"prompt": f"{row['instruction']} {row['input']}".strip(), "completion": " " + row["output"]}
        for row in instruction_rows(48)
    ]
    for name in POOLS:
        datasets.Dataset.from_list(rows).to_json(folder / name)
    yield folder


def given(folder: Path) -> dict[str, Any]:
    """What the README's blocks take as the user's own."""
    rows = datasets.load_dataset("json", data_files=str(folder / "pool.jsonl"), split="train")
    return {
        "model": tiny_model(),
        "dataset": tokenize(rows, tiny_tokenizer()).select_columns(["input_ids", "labels"]),
        "args": TrainingArguments(
            str(folder / "given"), max_steps=2, report_to="none", save_strategy="no", use_cpu=True
        ),
        "collator": DataCollatorForSeq2Seq(tiny_tokenizer()),
        "tokenizer": tiny_tokenizer(),
    }


@pytest.mark.parametrize("page", [page for page in PAGES if page.name in RUN], ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom: Python in one namespace, and what `miwv` is told to do."""
    if not any(language in ("python", "bash") for language, _ in blocks(page)):
        pytest.skip("no code")
    monkeypatch.chdir(workplace)
    for output in OUTPUTS:
        shutil.rmtree(output, ignore_errors=True)
    namespace: dict[str, Any] = {"__name__": "page", **(given(workplace) if page.name == "README.md" else {})}
    if page.name == "report.md":  # a run that is there already
        assert cli.main("score --model M --dataset pool.jsonl --output OUTPUT --embedder tfidf".split()) == 0
    for language, text in blocks(page):
        if language == "python":
            exec(
                compile(text.replace('report_to="none"', 'report_to="none", use_cpu=True'), page.name, "exec"),
                namespace,
            )
        elif language == "bash":
            for words in commands(text):
                if words[0] == "miwv":
                    assert cli.main(with_tfidf(words[1:])) == 0, words


def with_tfidf(words: list[str]) -> list[str]:
    """The default embedder would be downloaded."""
    return words if words[0] != "score" or "--embedder" in words else [*words, "--embedder", "tfidf"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_known_to_what_they_call(page: Path) -> None:
    for language, text in blocks(page):
        if language == "bash":
            for words in commands(text):
                check_command(words)


def check_command(words: list[str]) -> None:
    """Raises where a command names an option, a target or a file that is not there."""
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert rest[0] in targets, words
    elif program == "miwv":
        cli.make_parser(cli.score, cli.select, cli.report).parse_args(rest)
    elif program in ("export", "cd", "pip"):
        pass
    elif program == "bash" or "/" in program:
        assert program == ".venv/bin/pre-commit" or (ROOT / rest[0]).is_file(), words
    elif program == "accelerate":
        launched = launch_command_parser().parse_args(rest[1:])
        assert launched.config_file is None or (ROOT / launched.config_file).is_file(), words
        check_script([launched.training_script, *launched.training_script_args], launched.module)
    elif program == "torchrun":
        launched = torch.distributed.run.get_args_parser().parse_args(rest)
        check_script([launched.training_script, *launched.training_script_args], launched.module)
    else:
        while "=" in program:  # environment
            program, *rest = rest
        assert program == "python", words
        check_script(rest[1:] if rest[0] == "-m" else rest, rest[0] == "-m")


def check_script(words: list[str], is_module: bool) -> None:
    name, *options = words
    if is_module and name == "miwv_trainer":
        cli.make_parser(cli.score, cli.select, cli.report).parse_args(options)
        return
    if is_module and name == "pytest":
        assert all((ROOT / word).exists() for word in options if word.startswith("tests/")), words
        return
    path = ROOT / (name.replace(".", "/") + ".py" if is_module else name)
    assert path.is_file(), words
    source = path.read_text() + (ROOT / "benchmarks" / "cases.py").read_text()
    for option in [word for word in options if word.startswith("--")]:
        name = option.lstrip("-")
        known = f'"{option}"' in source or f"    {name}: " in source or name in transformers_options()
        assert known, (option, words)


def transformers_options() -> set[str]:
    classes = (TrainingArguments, trl.SFTConfig, trl.ModelConfig, MIWVConfig)
    return {field.name for one in classes for field in fields(one)}


def test_a_command_with_an_option_that_is_not_there_is_noticed() -> None:
    for line in ("miwv score --modle M --dataset D", "python examples/train.py --fractoin 0.1", "make tset"):
        with pytest.raises((SystemExit, AssertionError)):
            check_command(line.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{page.name} links to {target}; there are {slugs}"


def test_the_page_of_settings_is_the_docstring() -> None:
    made = load(DOCS / "make_configuration.py")
    assert (DOCS / "configuration.md").read_text() == made.page(), "run `python docs/make_configuration.py`"
    found = {name: (kind, description) for name, kind, description in made.entries()}
    assert list(found) == [field.name for field in fields(MIWVConfig)]
    default = MIWVConfig()
    for name, (kind, _) in found.items():
        value = getattr(default, name)
        told = re.findall(r"defaults to `(.*)`", kind)
        assert told == [] if value is None else told and eval(told[0]) == value, (name, kind)


def test_the_readmes_table_has_every_setting_and_its_default() -> None:
    section = (ROOT / "README.md").read_text().split("## Configuration")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE))
    default = MIWVConfig()
    assert set(rows) == {field.name for field in fields(MIWVConfig)}
    for name, told in rows.items():
        value, told = getattr(default, name), told.strip("`")
        if value is not None:
            assert eval(told) == value, (name, told, value)
        else:
            assert not re.fullmatch(r"[\d.]+|True|False|\"\w*\"", told), (name, told)


def test_every_option_of_the_command_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    parser = cli.make_parser(cli.score, cli.select, cli.report)
    (commands,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for name, command in commands.choices.items():
        for action in command._actions:
            assert action.help, f"`miwv {name}` has no help for {action.option_strings or action.dest}"


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r": (\w+\.md)", (ROOT / "mkdocs.yml").read_text()))
    assert named == {page.name for page in DOCS.glob("*.md")}


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "how" / "index.html").read_text()
    assert "exemplar_tree.svg" in page and "fonts.googleapis" not in page
