"""The same conversation in any columns; columns that hold none are refused or passed over."""

from typing import Any

import datasets
import pytest

from miwv_trainer import tokenize
from miwv_trainer.data.build import pool_from_rows, pool_from_tokenized, render
from miwv_trainer.data.columns import list_formats, parse_names
from miwv_trainer.data.formats import FORMATS
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
        [{"instruction": user, "context": "", "response": assistant} for user, assistant in turns],
        [{"instruction": user, "instances": [{"input": "", "output": assistant}]} for user, assistant in turns],
        [{"question": user, "answer": assistant} for user, assistant in turns],
        [{"query": user, "response": assistant} for user, assistant in turns],
        [{"input": user, "output": assistant} for user, assistant in turns],
        [{"conversations": [turn("user", u), turn("assistant", a)]} for u, a in turns],
        [{"conversations": [{"from": "human", "value": u}, {"from": "gpt", "value": a}]} for u, a in turns],
        [{"instruction": u, "chosen": a, "rejected": a + "?"} for u, a in turns],
        [{"prompt": [turn("user", u)], "chosen": a, "rejected": a + "?"} for u, a in turns],
        [
            # UltraFeedback: the beginning of both conversations stands in `prompt` too, as text.
            {
                "prompt": u,
                "chosen": [turn("user", u), turn("assistant", a)],
                "rejected": [turn("user", u), turn("x", "")],
            }
            for u, a in turns
        ],
        [{"chosen": [turn("user", u), turn("assistant", a)], "rejected": [turn("user", u)]} for u, a in turns],
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
    words = f"needs the columns `prompt` and `completion`; `messages`; .*`--columns prompt=.* This one has {given}\\.$"
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
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
    ],
)
def test_a_column_of_a_known_name_that_holds_something_else_is_passed_over(column: dict[str, Any]) -> None:
    tokenizer = tiny_tokenizer()
    raw = datasets.Dataset.from_list(instruction_rows(4))
    tokenized = tokenize(raw, tokenizer).select_columns(["input_ids", "labels"])
    rows = [{**row, **column} for row in tokenized]
    assert pool_from_tokenized(rows, tokenizer).texts == pool_from_rows(raw, tokenizer).texts
    assert pool_from_tokenized(rows, tokenizer, with_texts=False).texts is None


NAMES = {"prompt": "ask", "response": "say"}
CHAT = [turn("user", "a"), turn("assistant", "b")]


def test_named_columns_are_read_as_the_conversation_that_they_hold() -> None:
    tokenizer = chat_tokenizer("qwen2_5")
    turns = list(zip(INSTRUCTIONS, RESPONSES, strict=True))
    expected = pool_from_rows(as_rows(conversations("Be brief.")), tokenizer)
    named = [
        ([{"ask": u, "say": a, "system": "Be brief."} for u, a in turns], NAMES),
        ([{"ask": u, "say": a, "who": "Be brief."} for u, a in turns], {**NAMES, "system": "who"}),
        ([{"prompt": u, "completion": a, "who": "Be brief."} for u, a in turns],
         {"prompt": "prompt", "response": "completion", "system": "who"}),
        ([{"chat": chat, "messages": "other"} for chat in conversations("Be brief.")], {"messages": "chat"}),
        ([{"a": [turn("system", "Be brief."), turn("user", u), turn("assistant", a)], "b": [turn("system", "Be brief."),
           turn("user", u)]} for u, a in turns], {"chosen": "a", "rejected": "b"}),
    ]  # fmt: skip
    for rows, columns in named:
        pool = pool_from_rows(rows, tokenizer, columns=columns)
        assert pool.fingerprint == expected.fingerprint
        assert pool.texts == expected.texts
        tokenized = tokenize(datasets.Dataset.from_list(rows), tokenizer, columns).select_columns(
            ["input_ids", "labels"]
        )
        assert pool_from_tokenized(tokenized, tokenizer).fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    "typed, words",
    [
        ("prompt", r"Columns are named as in `--columns prompt=\.\.\.,response=\.\.\.` .*got 'prompt'"),
        ("prompt=a,prompt=b", "each once, but got"),
        ("prompt=a,response=", "Columns are named as in"),
        ("prompt=a", "`columns` names prompt; allowed are the names prompt, response, input; messages; prompt, chosen"),
        ("messages=a,prompt=b", "`columns` names messages, prompt; allowed are"),
        ("prompt=a,response=b,tone=c", "names prompt, response, tone; allowed are .*each with any of system, history"),
    ],
)
def test_names_that_name_no_sample_are_refused(typed: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_names(typed)


def test_a_named_column_that_is_not_there_is_refused_by_name() -> None:
    tokenizer = chat_tokenizer("qwen2_5")
    with pytest.raises(ValueError, match="`columns` names 'said', but no sample has it; found: ask, say"):
        pool_from_rows([{"ask": "a", "say": "b"}] * 2, tokenizer, columns={**NAMES, "response": "said"})
    with pytest.raises(ValueError, match="Sample 1 .* There is no column 'say', which `columns` names; found: ask"):
        pool_from_rows([{"ask": "a", "say": "b"}, {"ask": "a"}], tokenizer, columns=NAMES)
    with pytest.raises(ValueError, match="`columns` names 'who', but no sample has it"):
        pool_from_rows([{"ask": "a", "say": "b"}] * 2, tokenizer, columns={**NAMES, "system": "who"})
    # Where some samples have it, the others have no system turn.
    rows = [{"ask": "a", "say": "b"}, {"ask": "a", "say": "b", "who": "Be brief."}]
    assert len(pool_from_rows(rows, tokenizer, columns={**NAMES, "system": "who"})) == 2


@pytest.mark.parametrize(
    "row, words",
    [
        ({"messages": CHAT, "conversations": CHAT}, "by its columns `messages`, and by `conversations`: say by"),
        ({"question": "a", "answer": "b", "query": "a", "response": "b"}, "`question` and `answer`, and by `query`"),
        ({"messages": CHAT, "prompt": "a", "chosen": "b", "rejected": "c"}, "`messages`, and by `prompt`, `chosen`"),
        ({"messages": CHAT, "history": [["a", "b"]]}, "`history` changes the prompt but is not read beside `messages`"),
        ({"prompt": CHAT, "completion": "c", "documents": [{"text": "a"}]}, "`documents` changes the prompt but"),
        ({"conversations": CHAT, "system_prompt": "Be brief."}, "`system_prompt` changes the prompt but"),
        ({"messages": CHAT, "functions": [{"name": "look"}]}, "`functions` changes the prompt but"),
        ({"chosen": "a b", "rejected": "a c", "question": "d"}, "`question` cannot be read beside texts"),
        ({"prompt": "a", "completion": "b", "chat_template_kwargs": {"x": 1}}, "`chat_template_kwargs` cannot be read"),
        ({"prompt": "a", "completion": "b", "audio": {"path": "a.wav"}}, "has `audio`, but a pool is scored on text"),
        ({"conversations": [turn("system", "a"), *CHAT], "system": "b"}, "has a system turn, and a column `system`"),
        ({"instruction": "a", "output": "b", "system": ["c"]}, "column `system` must be text, but got"),
        ({"instruction": "a", "output": "b", "history": ["c"]}, "column `history` must be a list of pairs"),
        ({"instruction": "a", "output": "b", "input": ["c"]}, "input of an instruction must be text, but got"),
        ({"question": "a", "answer": "b", "tools": "look"}, "column `tools` is text that is no JSON"),
        ({"question": "a", "answer": "b", "tools": {"name": "look"}}, "column `tools` must be a list, or JSON text"),
        ({"messages": CHAT, "chat_template_kwargs": [1]}, "column `chat_template_kwargs` must be an object"),
        ({"messages": CHAT, "chat_template_kwargs": {"tokenize": True}}, "sets 'tokenize', which says how to render"),
        ({"messages": CHAT, "tools": [{"name": "look"}]}, "chat template does not render `tools`"),
        ({"question": "a", "answer": "b", "documents": [{"text": "c"}]}, "chat template does not render `documents`"),
    ],
)
def test_what_changes_the_prompt_is_rendered_or_refused_by_name(row: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"Sample 0 of the pool cannot be rendered.*{words}"):
        pool_from_rows([row, row], tiny_tokenizer())


@pytest.mark.parametrize("form", [{"messages": CHAT}, {"prompt": "a", "completion": "b"}, {"conversations": CHAT}])
@pytest.mark.parametrize(
    "name, blanks",
    [
        ("system", [None, "", " "]),
        ("history", [None, "", [], "[]"]),
        ("tools", [None, "", " ", [], "[]", "null"]),
        ("documents", [None, "", [], "[]"]),
        ("images", [None, "", []]),
        ("chat_template_kwargs", [None, "", {}, "{}"]),
    ],
)
def test_a_column_without_a_value_changes_nothing(name: str, blanks: list[object], form: dict[str, Any]) -> None:
    tokenizer = tiny_tokenizer()
    rows = [{**form, name: blank} for blank in blanks]
    expected = [form] * len(blanks)
    assert pool_from_rows(rows, tokenizer).fingerprint == pool_from_rows(expected, tokenizer).fingerprint


def test_a_faulty_sample_is_named_by_its_number_in_the_pool() -> None:
    rows = datasets.Dataset.from_list([*[{"question": "a", "answer": "b"}] * 700, {"question": "a", "answer": None}])
    rows = rows.add_column("images", [None] * 700 + [["a.png"]])
    with pytest.raises(ValueError, match="Sample 700 of the pool"):
        pool_from_rows(rows, tiny_tokenizer())
    with pytest.raises(ValueError, match="Sample 700 of the pool"):
        tokenize(rows, tiny_tokenizer())


def test_it_is_told_where_a_chat_template_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "a", "completion": "b"}] * 2
    with caplog.at_level("INFO"):
        pool_from_rows(rows, tiny_tokenizer(chat_template=None))
        pool_from_rows(rows, tiny_tokenizer(), columns={"prompt": "prompt", "response": "completion"})
        pool_from_rows([{"question": "a", "answer": "b"}] * 2, tiny_tokenizer())
        assert "joined as they are" not in caplog.text
        pool_from_rows(rows, tiny_tokenizer())
        tokenize(datasets.Dataset.from_list(rows), tiny_tokenizer())
    assert caplog.text.count("joined as they are, as TRL's trainers do it. To render them by the chat template") == 2


def test_the_instruction_of_a_sample_with_a_history_is_its_own() -> None:
    own = {"system": "Be brief.", "history": [["earlier", "yes"]]}
    rows = [{"instruction": "a", "input": "b", "output": "c", **own}, {"question": "a", "answer": "c", **own}]
    assert pool_from_rows(rows, tiny_tokenizer()).texts == ["a\n\nb", "a"]
    named = [{"ask": "a", "say": "c", **own}] * 2
    assert pool_from_rows(named, tiny_tokenizer(), columns=NAMES).texts == ["a", "a"]


def test_an_input_reaches_the_prompt_of_an_instruction_that_is_null() -> None:
    tokenizer = tiny_tokenizer()
    rows = [
        {"instruction": None, "input": "a", "output": "b"},
        {"instruction": "a", "input": float("nan"), "output": "b"},
    ]
    expected = [{"messages": CHAT}] * 2
    assert pool_from_rows(rows, tokenizer).fingerprint == pool_from_rows(expected, tokenizer).fingerprint


def test_a_line_of_help_names_the_columns_of_every_format() -> None:
    told = list_formats()
    for form in FORMATS:
        assert (" + ".join(form.columns) in told) or ("rejected" in form.columns and "chosen + rejected" in told)
    assert len(told) < 250
