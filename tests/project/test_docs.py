"""The documentation: its code runs, its page of settings is the docstring, and it builds as a site."""

import ast
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
from typing import Any, Literal, get_args, get_origin, get_type_hints

import datasets
import pytest
from transformers import DataCollatorForSeq2Seq, TrainingArguments

from miwv_trainer import MIWVConfig, tokenize
from miwv_trainer.choices import PRESETS
from miwv_trainer.cli import main as cli
from tests.helpers.launch import ROOT
from tests.helpers.templates import template
from tests.helpers.tiny import instruction_rows, save_tiny, tiny_model, tiny_tokenizer

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md"])
# What a page's commands read and write.
MODELS, POOLS, OUTPUTS = ("M", "path/to/model"), ("pool.jsonl",), ("O", "out", "OUTPUT")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """The command lines of a block, and their words without comments; continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [(line, words) for line in lines if (words := shlex.split(line, comments=True))]


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
    for name in MODELS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tiny_tokenizer(chat_template=template("qwen2_5")).save_pretrained(save_tiny(folder / name))
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, as it stands: Python in one namespace, and what `miwv` is told to do."""
    if not any(language in ("python", "bash") for language, _ in blocks(page)):
        pytest.skip("no code")
    monkeypatch.chdir(workplace)
    for output in OUTPUTS:
        shutil.rmtree(output, ignore_errors=True)
    namespace: dict[str, Any] = {"__name__": "page", **(given(workplace) if page.name == "README.md" else {})}
    if page.name == "report.md":  # a run that is there already
        assert cli.main("score --model M --dataset pool.jsonl --output O --embedder tfidf".split()) == 0
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, page.name, "exec"), namespace)
        elif language == "bash":
            for line, words in commands(text):
                if words[0] == "miwv" and "# needs" not in line:
                    assert cli.main(words[1:]) == 0, words


# What runs the commands of the pages' blocks that are not run above, on a machine without a GPU and without a hub.
RUN_BY = {
    r"make (install|lint|quickstart|test)( |$)|bash \.ci/run": ".ci/run",
    r"make test-(with|core|beside) ?": ".github/workflows",
    r"pip install ": "tests/project/test_wheel.py",
    r"make compare|python examples/compare\.py": "tests/project/test_compare.py",
    r"(OMP_NUM_THREADS=2 )?python -m benchmarks": "tests/project/test_benchmarks.py",
    r"torchrun .* -m benchmarks\.shared_embedding": "tests/project/test_shared_embedding.py",
    r"accelerate launch .* examples/|torchrun .* examples/": "tests/project/test_examples.py",
    r"(accelerate launch|torchrun) .* -m miwv_trainer score": "tests/cli/test_main.py",
}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_a_command_is_run_by_a_test_or_says_what_it_needs(page: Path) -> None:
    lines = [each for language, text in blocks(page) if language == "bash" for each in commands(text)]
    for line, words in lines:
        found = [path for pattern, path in RUN_BY.items() if re.match(pattern, " ".join(words))]
        assert words[0] == "miwv" or found or "# needs" in line, f"{line}: say '# needs ...', or name what runs it"
        assert all((ROOT / path).exists() for path in found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_stands_in_a_block_of_bash(page: Path) -> None:
    """Else neither test above sees it."""
    for language, text in blocks(page):
        assert language in ("bash", "python") or not re.search(
            r"^(miwv|make|python|torchrun|accelerate launch) ", text, re.MULTILINE
        )


def test_the_page_of_settings_has_a_section_for_each_field_with_its_default_and_choices() -> None:
    """Read from the page as people read it, beside the class itself."""
    page = (DOCS / "configuration.md").read_text()
    sections = re.findall(r"^## `(\w+)`\n\n(.+)\n\n((?:.+\n)+)", page, re.MULTILINE)
    assert [name for name, _, _ in sections] == [field.name for field in fields(MIWVConfig)]
    default, hints = MIWVConfig(), get_type_hints(MIWVConfig)
    for name, kind, text in sections:
        value = getattr(default, name)
        told = re.findall(r"defaults to `(.*)`", kind)
        assert told == [] if value is None else ast.literal_eval(told[0]) == value, (name, kind)
        if get_origin(hints[name]) is Literal:
            assert tuple(re.findall(r'`"(\w+)"`', kind.partition(";")[0])) == get_args(hints[name])
        assert text[0].isupper() and text.endswith(".\n"), name


def test_the_description_of_presets_gives_all_that_they_set() -> None:
    (told,) = [text for name, text in MIWVConfig.describe() if name == "preset"]
    for preset, values in PRESETS.items():
        sentence = told.partition(f'`"{preset}"` sets ')[2].partition(". ")[0]
        found = {name: ast.literal_eval(value) for name, value in re.findall(r"`(\w+)=([^`]+)`", sentence)}
        assert found == values, preset


@pytest.mark.parametrize("script", sorted(DOCS.glob("make_*.py")), ids=lambda path: path.stem)
def test_what_a_script_writes_into_the_pages_is_in_them(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load(script)
    pages = {name: tmp_path / name for name in ("README", "PAGE") if hasattr(made, name)}
    originals = {name: getattr(made, name).read_text() for name in pages}
    for name, page in pages.items():
        shutil.copy(getattr(made, name), page)
        monkeypatch.setattr(made, name, page)
    made.main()
    for name, page in pages.items():
        assert page.read_text() == originals[name], "run `make docs`"


def test_every_file_of_the_package_has_one_line_in_the_list() -> None:
    listed = (DOCS / "code.md").read_text().split("<!-- files: ")[1].split("<!-- end of files")[0]
    named = []
    for head, *lines in (part.splitlines() for part in listed.split("### ")[1:]):
        folder = match[1] if (match := re.match(r"`(\w+/)`", head)) else ""
        named += [folder + name for line in lines for name in re.findall(r"^\| `(\w+\.py)` \| .{10}", line)]
    tree = [path.relative_to(ROOT / "miwv_trainer").as_posix() for path in (ROOT / "miwv_trainer").rglob("*.py")]
    assert sorted(named) == sorted(path for path in tree if not path.endswith("/__init__.py"))


def test_a_file_without_a_docstring_is_named(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"bare\.py has no docstring: say in one sentence what it does\."):
        load(DOCS / "make_code.py").first_sentence(tmp_path / "bare.py")


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r": (\w+\.md)", (ROOT / "mkdocs.yml").read_text()))
    assert named == {page.name for page in DOCS.glob("*.md")}


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "how" / "index.html").read_text()
    assert "exemplar_tree.svg" in page and "fonts.googleapis" not in page
