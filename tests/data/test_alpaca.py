"""Without a chat template, samples are Stanford Alpaca's texts."""

import pytest

from miwv_trainer.data.build import pool_from_rows
from tests.helpers.chats import (
    ALPACA_ROWS,
    ALPACA_WITH_INPUT,
    ALPACA_WITHOUT_INPUT,
    add_special_tokens,
    one_shot,
    response_text,
    turn,
)
from tests.helpers.tiny import tiny_tokenizer


def test_without_a_chat_template_samples_are_stanford_alpacas_texts():
    tokenizer = tiny_tokenizer(chat_template=None, eos_token="</s>")
    pool = pool_from_rows(ALPACA_ROWS, tokenizer)
    assert pool.preamble.tolist() == []
    assert tokenizer.decode(pool.prompt(0)) == ALPACA_WITHOUT_INPUT
    assert tokenizer.decode(pool.prompt(1)) == ALPACA_WITH_INPUT
    assert [response_text(tokenizer, pool, index) for index in range(2)] == ["Red</s>", "Hello</s>"]
    assert pool.texts == ["Name a colour.", "Translate.\n\nbonjour"]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Name a colour.", "answer": "Red"},
        {"prompt": [turn("user", "Name a colour.")], "completion": "Red"},
        {"messages": [turn("user", "Name a colour."), turn("assistant", "Red")]},
    ],
)
def test_without_a_chat_template_other_columns_become_alpacas_texts_too(row):
    tokenizer = tiny_tokenizer(chat_template=None)
    pool = pool_from_rows([row, row], tokenizer)
    assert tokenizer.decode(pool.sample(0)) == ALPACA_WITHOUT_INPUT + "Red<|im_end|>"


def test_without_a_chat_template_a_column_named_input_does_not_reach_a_prompt_completion_pair():
    tokenizer = tiny_tokenizer(chat_template=None)
    row = {"prompt": "Name a colour.", "completion": "Red", "instruction": "unused", "input": "unused"}
    pool = pool_from_rows([row, row], tokenizer)
    assert tokenizer.decode(pool.sample(0)) == "Name a colour.Red<|im_end|>"


def test_without_a_chat_template_system_and_history_are_alpacas_texts_too():
    tokenizer = tiny_tokenizer(chat_template=None)
    row = {**ALPACA_ROWS[1], "system": "Be brief.", "history": [["Name a colour.", "Red"]]}
    pool = pool_from_rows([row, row], tokenizer)
    earlier = ALPACA_WITHOUT_INPUT.replace("Name a", "Be brief.\n\nName a")
    assert tokenizer.decode(pool.sample(0)) == f"{earlier}Red<|im_end|>{ALPACA_WITH_INPUT}Hello<|im_end|>"
    row.pop("history")
    pool = pool_from_rows([row, row], tokenizer)
    with_system = ALPACA_WITH_INPUT.replace("Translate.", "Be brief.\n\nTranslate.")
    assert tokenizer.decode(pool.sample(0)) == f"{with_system}Hello<|im_end|>"


@pytest.mark.parametrize("beside", [{"tools": [{"name": "look"}]}, {"documents": '[{"text": "a"}]'}])
def test_alpacas_text_refuses_what_it_has_no_place_for(beside):
    with pytest.raises(
        ValueError, match=f"no chat template, and Alpaca's text has no place for `{next(iter(beside))}`"
    ):
        pool_from_rows([{**row, **beside} for row in ALPACA_ROWS], tiny_tokenizer(chat_template=None))


def test_alpacas_text_begins_with_bos_once_where_the_tokenizer_adds_it():
    tokenizer = add_special_tokens(tiny_tokenizer(chat_template=None, bos_token="<s>", eos_token="</s>"), "<s> $A")
    pool = pool_from_rows(ALPACA_ROWS, tokenizer)
    assert tokenizer.decode(pool.preamble) == "<s>"
    assert tokenizer.decode(one_shot(pool, 0, 1)) == (
        "<s>" + ALPACA_WITHOUT_INPUT + "Red</s>" + ALPACA_WITH_INPUT + "Hello</s>"
    )
    assert response_text(tokenizer, pool, 1) == "Hello</s>"


def test_alpacas_text_ends_with_eos_once_where_the_tokenizer_adds_it_too():
    tokenizer = tiny_tokenizer(chat_template=None, bos_token="<s>", eos_token="</s>")
    pool = pool_from_rows(ALPACA_ROWS, add_special_tokens(tokenizer, "<s> $A </s>"))
    assert response_text(tokenizer, pool, 0) == "Red</s>"
    assert tokenizer.decode(pool.prompt(0)) == ALPACA_WITHOUT_INPUT


def test_alpacas_text_without_an_eos_token_ends_with_the_answer():
    tokenizer = tiny_tokenizer(chat_template=None)
    tokenizer.eos_token = None
    pool = pool_from_rows(ALPACA_ROWS, tokenizer)
    assert response_text(tokenizer, pool, 0) == "Red"
