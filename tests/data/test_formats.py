"""Every line on the page of formats becomes what the page says, and every format is on the page."""

import json
import re
from collections.abc import Iterator

import pytest

from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.columns import parse_names
from miwv_trainer.data.formats import FORMATS
from tests.helpers.launch import ROOT
from tests.helpers.tiny import tiny_tokenizer

PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
TEMPLATE = (
    "{% if tools %}{{ '{' + tools[0].name + '}' }}{% endif %}"
    "{% if documents %}{{ '{' + documents[0].title + '}' }}{% endif %}"
    "{% if mood %}{{ '{' + mood + '}' }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for call in m.tool_calls %}({{ call.function.name }})"
    "{% endfor %}{% if m.role == 'assistant' %}▮{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def rows_of(heading: str) -> Iterator[list[str]]:
    """The cells of the table below a heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    for line in re.findall(r"^\|(.*)\|$", section, flags=re.MULTILINE)[2:]:
        yield [re.sub(r"^(`+)(.*)\1$", r"\2", cell[1:-1]) for cell in line.split("|")]


READ = [("", *cells[1:]) for cells in rows_of("Columns")] + [tuple(cells) for cells in rows_of("Other names")]


def rendered(line: str, names: str = "") -> tuple[str, str]:
    """Prompt and response of a line, as the page writes them."""
    tokenizer = tiny_tokenizer(TEMPLATE, eos_token="▮")
    row = json.loads(line)
    pool = pool_from_rows([row, row], tokenizer, columns=parse_names(names) if names else None)
    response = tokenizer.decode(pool.sample(0)[pool.response_mask(0)])
    preamble = tokenizer.decode(pool.preamble)
    return (preamble + tokenizer.decode(pool.prompt(0))).replace("\n", "⏎"), response.replace("\n", "⏎")


@pytest.mark.parametrize("names, line, prompt, response", READ)
def test_a_line_becomes_what_the_page_says(names: str, line: str, prompt: str, response: str) -> None:
    assert rendered(line, names) == (prompt, response)


@pytest.mark.parametrize("line, error", [cells[1:] for cells in rows_of("What is refused")])
def test_a_line_is_refused_in_the_words_of_the_page(line: str, error: str) -> None:
    with pytest.raises(ValueError, match=rf"Sample 0 of the pool cannot be rendered\. .*{re.escape(error)}"):
        rendered(line)


def test_every_format_is_on_the_page_with_its_example() -> None:
    lines = [line for _, line, _, _ in READ]
    assert len(lines) == len(set(lines)) > 30
    assert [form.example for form in FORMATS if form.example not in lines] == []
