"""The same conversation in any columns; columns that hold none are refused or passed over."""

from typing import Any

import datasets
import pytest

from miwv_trainer import tokenize
from miwv_trainer.data.build import pool_from_rows, pool_from_tokenized, render
from tests.helpers.chats import (
    ALPACA_ROWS,
    INSTRUCTIONS,
    RESPONSES,
    as_rows,
    conversations,
    stripped,
    turn,
)
from tests.helpers.templates import ALL, chat_tokenizer
from tests.helpers.tiny import CHATML, instruction_rows, tiny_tokenizer


@pytest.mark.parametrize("name", ALL)
def test_the_same_conversation_in_any_columns_is_the_same_pool(name):
    tokenizer = chat_tokenizer(name)
    turns = list(zip(INSTRUCTIONS, RESPONSES, strict=True))
    columns = [
        [{"instruction": user, "input": "", "output": assistant} for user, assistant in turns],
        [{"instruction": user, "output": assistant} for user, assistant in turns],
        [{"instruction": user, "input": None, "output": assistant} for user, assistant in turns],
        [{"prompt": user, "completion": assistant} for user, assistant in turns],
        [{"prompt": [turn("user", u)], "completion": [turn("assistant", a)]} for u, a in turns],
        [{"prompt": [turn("user", u)], "completion": a} for u, a in turns],
        as_rows(conversations()),
    ]
    pools = [pool_from_rows(rows, tokenizer) for rows in columns]
    assert {pool.fingerprint for pool in pools} == {pools[0].fingerprint}
    assert [stripped(pool.texts) for pool in pools] == [stripped(INSTRUCTIONS)] * len(pools)


def test_an_input_follows_its_instruction_after_a_blank_line():
    tokenizer = chat_tokenizer("llama3")
    pool = pool_from_rows(ALPACA_ROWS, tokenizer)
    assert tokenizer.decode(pool.prompt(1)) == (
        "<|start_header_id|>user<|end_header_id|>\n\nTranslate.\n\nbonjour<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert tokenizer.decode(pool.prompt(0)) == (
        "<|start_header_id|>user<|end_header_id|>\n\nName a colour.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert pool.texts == ["Name a colour.", "Translate.\n\nbonjour"]


@pytest.mark.parametrize("blank", ["", " ", "\n", None])
def test_a_blank_input_adds_nothing(blank):
    tokenizer = chat_tokenizer("llama3")
    rows = [{**row, "input": blank} for row in ALPACA_ROWS]
    without = [{"instruction": row["instruction"], "output": row["output"]} for row in ALPACA_ROWS]
    assert pool_from_rows(rows, tokenizer).fingerprint == pool_from_rows(without, tokenizer).fingerprint
    plain = tiny_tokenizer(chat_template=None)
    assert pool_from_rows(rows, plain).fingerprint == pool_from_rows(without, plain).fingerprint


@pytest.mark.parametrize(
    "row, given",
    [
        ({"text": "all in one"}, "text"),
        ({"instruction": "a", "input": ""}, "instruction, input"),
        ({"instruction": None, "output": None}, "instruction, output"),
        ({"prompt": "a"}, "prompt"),
        ({}, "none"),
    ],
)
@pytest.mark.parametrize("has_template", [True, False])
def test_a_row_without_the_known_columns_is_refused_with_what_it_has(row, given, has_template):
    tokenizer = chat_tokenizer("qwen2_5") if has_template else tiny_tokenizer(chat_template=None)
    words = f"needs the columns `prompt` and `completion`, `messages`, or .*.*; this one has {given}\\.$"
    with pytest.raises(ValueError, match=words):
        pool_from_rows([row, row], tokenizer)


@pytest.mark.parametrize("row", [{"prompt": 3, "completion": "b"}, {"messages": [{"role": "user", "content": None}]}])
@pytest.mark.parametrize("template", [CHATML, None])
def test_turns_that_are_no_text_are_refused(row: dict[str, Any], template: str | None) -> None:
    with pytest.raises(ValueError, match="Sample 0 .* Every turn must have a `role` and a `content` that are text"):
        list(render([row], tiny_tokenizer(chat_template=template)))


@pytest.mark.parametrize(
    "column",
    [
        {"prompt": [3, 4]},
        {"prompt": 7},
        {"messages": "[]"},
        {"instruction": 5},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
    ],
)
def test_a_column_of_a_known_name_that_holds_something_else_is_passed_over(column: dict[str, Any]) -> None:
    tokenizer = tiny_tokenizer()
    raw = datasets.Dataset.from_list(instruction_rows(4))
    tokenized = tokenize(raw, tokenizer).select_columns(["input_ids", "labels"])
    rows = [{**row, **column} for row in tokenized]
    assert pool_from_tokenized(rows, tokenizer).texts == pool_from_rows(raw, tokenizer).texts
    assert pool_from_tokenized(rows, tokenizer, with_texts=False).texts is None
