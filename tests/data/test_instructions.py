"""The instructions of a tokenised dataset are those of its raw columns."""

import datasets
import pytest

from miwv_trainer import tokenize
from miwv_trainer.data.build import pool_from_rows, pool_from_tokenized
from tests.helpers.chats import (
    ALPACA_ROWS,
    OWN_SYSTEM,
    SHARED_SYSTEM,
    as_rows,
    conversations,
    from_tokenized_rows,
    only_ids,
    sft_trainer,
    turn,
    with_system_turns,
)
from tests.helpers.templates import ALL, chat_tokenizer, new_tokenizer, newline_merging_tokenizer


def test_with_assistant_only_loss_decoded_prompts_are_the_instructions(tmp_path):
    instructions = ["Explain apples", "What is a user ?", "naïve 日本語"]
    rows = as_rows(conversations(None, instructions, ["a", "b", "c"]))
    trainer = sft_trainer(tmp_path, rows, new_tokenizer("qwen2_5"), assistant_only_loss=True)
    assert pool_from_tokenized(only_ids(trainer.train_dataset), trainer.processing_class).texts == instructions


@pytest.mark.parametrize("name, system", with_system_turns(ALL, SHARED_SYSTEM, OWN_SYSTEM))
def test_decoded_prompts_are_the_texts_that_the_columns_give(name, system):
    # Spaces before punctuation are what a decoder that "cleans up" would change.
    instructions = ["Explain apples", "user user", "Is it so , or is n't it ?", "naïve 日本語 🙂", "two\n\nparagraphs"]
    rows = as_rows(conversations(system, instructions, ["a", "b", "c", "d", "e"]))
    tokenizer = chat_tokenizer(name)
    assert pool_from_rows(rows, tokenizer).texts == instructions
    assert from_tokenized_rows(rows, tokenizer).texts == instructions


def test_decoded_prompts_are_the_texts_of_the_columns_where_instructions_begin_or_end_with_blanks():
    tokenizer = chat_tokenizer("qwen2_5")
    rows = as_rows(conversations())
    assert from_tokenized_rows(rows, tokenizer).texts == pool_from_rows(rows, tokenizer).texts


def test_decoded_prompts_are_the_texts_of_the_columns_where_the_generation_prompt_merges_with_the_answer():
    tokenizer = newline_merging_tokenizer("qwen2_5")
    rows = as_rows(conversations(None, ["one", "two"], ["\n\nfoo", "bar"]))
    assert from_tokenized_rows(rows, tokenizer).texts == ["one", "two"]


def test_texts_come_from_columns_that_survived_tokenizing():
    tokenizer = chat_tokenizer("qwen2_5")
    rows = [{"instruction": "Translate.", "input": "bonjour", "output": "Hello"}, ALPACA_ROWS[0]]
    expected = ["Translate.\n\nbonjour", "Name a colour."]
    tokenized = tokenize(datasets.Dataset.from_list(rows), tokenizer)
    assert pool_from_tokenized(tokenized, tokenizer).texts == expected
    assert pool_from_tokenized(tokenized.with_format("torch"), tokenizer).texts == expected
    assert pool_from_tokenized([dict(row) for row in tokenized], tokenizer).texts == expected
    assert pool_from_tokenized(tokenized, None).texts == expected


def test_texts_come_from_columns_that_a_transform_yields():
    tokenizer = chat_tokenizer("qwen2_5")
    tokenized = tokenize(datasets.Dataset.from_list(ALPACA_ROWS), tokenizer)

    def shorten(batch):
        return {**batch, "input_ids": [ids[:400] for ids in batch["input_ids"]]}

    pool = pool_from_tokenized(tokenized.with_transform(shorten), tokenizer)
    assert pool.texts == ["Name a colour.", "Translate.\n\nbonjour"]


def test_the_text_of_a_prompt_of_several_user_turns_is_what_the_user_said_before_the_first_answer():
    tokenizer = chat_tokenizer("qwen2_5")
    chat = [turn("system", "S"), turn("user", "one"), turn("user", "two"), turn("assistant", "a"), turn("user", "no")]
    pool = pool_from_rows(as_rows([chat, chat]), tokenizer)
    assert pool.texts == ["one\n\ntwo"] * 2


def test_without_tokenizer_and_text_columns_there_are_no_texts():
    rows = as_rows(conversations())
    tokenized = only_ids(tokenize(datasets.Dataset.from_list(rows), chat_tokenizer("qwen2_5")))
    assert pool_from_tokenized(tokenized, None).texts is None
