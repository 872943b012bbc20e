"""Samples that truncation has cut are found by their texts, and no uncut one is, whatever a template makes of it."""

from typing import Any

import datasets
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from miwv_trainer import pool_from_tokenized, tokenize
from tests.helpers.chats import conversations, sft_trainer, turn
from tests.helpers.templates import new_tokenizer, template
from tests.helpers.tiny import instruction_rows, tiny_tokenizer

LONGEST = 92
PARTS = ("input_ids", "attention_mask", "labels")
CALL = {"type": "function", "function": {"name": "look", "arguments": {"where": "up"}}}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}]
CALLS = [
    turn("system", "Look well."),
    turn("user", "Look up."),
    {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]},
    {"role": "tool", "name": "look", "content": "a blue sky"},
    turn("assistant", "It is blue."),
]
TWO_TURNS = [
    turn("user", "Name a colour of the sky"),
    turn("assistant", "Blue, of course, or grey"),
    turn("user", "And one of the grass there"),
    turn("assistant", "Green and brown"),
]
THOUGHTS = [
    turn("user", "Two and two?"),
    turn("assistant", "<think>4 is 2 + 2.</think>4"),
    turn("user", "And three and three?"),
    turn("assistant", "<think>6 is 3 + 3.</think>6"),
]
EMPHASIS = [turn("user", "<b>Bold</b> and <i>italic</i>"), turn("assistant", "<p>Yes, <b>both</b></p>")]


def found(dataset: datasets.Dataset, tokenizer: Any) -> list[int]:
    pool = pool_from_tokenized(dataset, tokenizer)
    assert pool.find_cut_samples is not None
    return pool.find_cut_samples().tolist()


def cut(dataset: datasets.Dataset, keep: slice) -> datasets.Dataset:
    return dataset.map(lambda row: {name: row[name][keep] for name in PARTS})


def chats(*messages: list[dict[str, Any]], **beside: Any) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"messages": each, **beside} for each in messages for _ in range(2)])


ROWS = {
    "instructions": datasets.Dataset.from_list(instruction_rows(12)),
    "prompts and completions": datasets.Dataset.from_list(
        [{"prompt": row["instruction"], "completion": row["output"]} for row in instruction_rows(12)]
    ),
    "messages of any text": chats(*conversations(), *conversations("You are number {}.")),
    "tools, system turns and several answers": chats(CALLS, TWO_TURNS, tools=TOOLS),
    "thinking": chats(THOUGHTS),
    "marked text": chats(EMPHASIS),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3", "llama3", "gptoss", "none"])
def test_uncut_samples_are_not_found(name: str, family: str) -> None:
    if name.startswith("tools") and not family.startswith("qwen"):
        pytest.skip("the template has no place for tools")
    tokenizer = tiny_tokenizer(chat_template=None) if family == "none" else new_tokenizer(family)
    assert found(tokenize(ROWS[name], tokenizer), tokenizer) == []


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3", "llama3", "none"])
@pytest.mark.parametrize("name", ["instructions", "prompts and completions"])
def test_samples_that_end_within_the_answer_are_found(name: str, family: str) -> None:
    tokenizer = tiny_tokenizer(chat_template=None) if family == "none" else new_tokenizer(family)
    whole = tokenize(ROWS[name], tokenizer)
    lengths = [len(row["input_ids"]) for row in whole]
    most = sorted(lengths)[6]
    # The end of the turn may be missing: that is no text.
    answers = [[token for token in row["labels"] if token != -100] for row in whole]
    texts = [tokenizer.decode(ids, skip_special_tokens=True).rstrip() for ids in answers]
    left = [ids[: len(ids) - max(length - most, 0)] for ids, length in zip(answers, lengths, strict=True)]
    remains = [tokenizer.decode(ids, skip_special_tokens=True).rstrip() for ids in left]
    expected = [index for index in range(12) if remains[index] and remains[index] != texts[index]]
    assert expected
    assert found(cut(whole, slice(most)), tokenizer) == expected


def test_samples_that_begin_within_the_question_are_found() -> None:
    tokenizer = new_tokenizer("qwen2_5")
    whole = tokenize(
        chats([turn("user", "Name one colour of the sky"), turn("assistant", "Blue")], TWO_TURNS), tokenizer
    )
    # Behind the header, in the middle of the question.
    asked = [tokenizer.decode(row["input_ids"]).split("of the sky")[0] for row in whole]
    places = [len(tokenizer(each, add_special_tokens=False)["input_ids"]) for each in asked]
    left = whole.map(lambda row, number: {name: row[name][places[number] :] for name in PARTS}, with_indices=True)
    assert tokenizer.decode(left[0]["input_ids"]).lstrip().startswith("of the sky")
    # In a conversation, the header of the next question is still there, behind an answer.
    assert found(left, tokenizer) == [0, 1, 2, 3]


@pytest.mark.parametrize("behind", ["Blue, of", "<|im_start|>user\nAnd one", "And one of the grass there", "Green"])
def test_conversations_that_end_early_are_found(behind: str) -> None:
    tokenizer = tiny_tokenizer(chat_template=template("qwen2_5"))
    whole = tokenize(chats(TWO_TURNS), tokenizer)
    text = tokenizer.decode(whole[0]["input_ids"])
    most = len(tokenizer(text[: text.index(behind) + len(behind)], add_special_tokens=False)["input_ids"])
    assert found(cut(whole, slice(most)), tokenizer) == [0, 1]


def test_a_loss_on_the_last_answer_alone_is_no_cut() -> None:
    """Also where the last answer is the beginning of an earlier one, or a template drops what was thought."""
    tokenizer = new_tokenizer("qwen3")
    said = [turn("user", "Sure?"), turn("assistant", "Yes, of course"), turn("user", "Sure?"), turn("assistant", "Yes")]
    whole = tokenize(chats(said, TWO_TURNS, THOUGHTS), tokenizer)

    def unmask(row: dict[str, Any], first: bool) -> dict[str, list[int]]:
        is_response = [label != -100 for label in row["labels"]]
        borders = [place for place in range(1, len(is_response)) if is_response[place] and not is_response[place - 1]]
        kept = range(borders[0], borders[1]) if first else range(borders[-1], len(is_response))
        return {"labels": [label if place in kept else -100 for place, label in enumerate(row["labels"])]}

    for first in (True, False):
        assert found(whole.map(unmask, fn_kwargs={"first": first}), tokenizer) == []


def test_half_a_character_at_the_cut_belongs_to_it() -> None:
    tokenizer = new_tokenizer("qwen2_5")
    whole = tokenize(chats([turn("user", "Say it"), turn("assistant", "日本語")]), tokenizer)
    most = [place for place, label in enumerate(whole[0]["labels"]) if label != -100][4]
    left = cut(whole, slice(most))
    assert tokenizer.decode(left[0]["input_ids"]).endswith("日\ufffd")
    assert found(left, tokenizer) == [0, 1]


def test_what_a_tokenizer_does_not_know_is_no_cut() -> None:
    """It drops characters at either end of a text."""
    words = {word: number for number, word in enumerate(["<unk>", "</s>", "say", "it", "again", "well"])}
    core = Tokenizer(WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    rows = [{"prompt": "strange say it", "completion": " again well unheard"}] * 2
    whole = tokenize(datasets.Dataset.from_list(rows), tokenizer)
    assert tokenizer.decode(whole[0]["input_ids"], skip_special_tokens=True).split() == "say it again well".split()
    assert found(whole, tokenizer) == []
    assert found(cut(whole, slice(4)), tokenizer) == [0, 1]  # without "well"


@pytest.mark.parametrize("text", [True, False], ids=["text", "messages"])
def test_sft_trainer_cuts_at_its_longest_length(text: bool, tmp_path: Any) -> None:
    rows = [
        {"messages": [turn("user", row["instruction"]), turn("assistant", row["output"])]}
        for row in instruction_rows(12)
    ]
    tokenizer = tiny_tokenizer(chat_template=template("qwen2_5"))
    if text:
        rows = [{"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)} for row in rows]
    results, lengths = {}, []
    for most in (None, LONGEST):
        trainer = sft_trainer(tmp_path / str(most), rows, tokenizer, max_length=most)
        dataset = trainer.train_dataset
        if "labels" not in dataset.column_names:
            dataset = dataset.map(lambda row: {"labels": row["input_ids"]})
        results[most] = found(dataset, tokenizer)
        lengths = lengths or [len(row["input_ids"]) for row in dataset]
    # The last two tokens are the end of the turn and a newline.
    assert results == {None: [], LONGEST: [index for index, length in enumerate(lengths) if length - 2 > LONGEST]}
    assert results[LONGEST]


def test_nothing_is_decoded_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    whole = tokenize(ROWS["instructions"], tokenizer)
    monkeypatch.setattr(type(tokenizer), "batch_decode", lambda *_, **__: pytest.fail("decoded"))
    pool = pool_from_tokenized(whole, tokenizer, with_texts=False)
    assert pool.hashes is not None and pool.hashes.from_columns and pool.find_cut_samples is not None
