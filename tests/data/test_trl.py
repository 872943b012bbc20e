"""The pool of a file is the pool that TRL's Trainers make of the same rows."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
import trl
from transformers import PreTrainedTokenizerBase

from miwv_trainer.compat import is_at_least
from miwv_trainer.data.build import pool_from_rows, pool_from_tokenized, render
from miwv_trainer.data.rows import JsonRows, to_dataset
from tests.helpers.chats import (
    INSTRUCTIONS,
    OWN_SYSTEM,
    RESPONSES,
    SHARED_SYSTEM,
    add_special_tokens,
    conversations,
    find_trainer,
    labels_of,
    sft_trainer,
    turn,
)
from tests.helpers.templates import new_tokenizer, newline_merging_tokenizer, template, trl_template
from tests.helpers.tiny import tiny_config, tiny_model, tiny_tokenizer

TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "look", "arguments": {"where": "up"}}}
CHAT = [
    turn("user", "Look up."),
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "look", "content": "a blue sky"},
    turn("assistant", "It is blue."),
    turn("user", "Again."),
    {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]},
    {"role": "tool", "name": "look", "content": "a red sky"},
    turn("assistant", "Red."),
]
QUIET = {"enable_thinking": False}
TEXTS = [{"prompt": user, "completion": answer} for user, answer in zip(INSTRUCTIONS, RESPONSES, strict=True)]


def split(chats: list[list[dict[str, Any]]], given: int = -1, **beside: object) -> list[dict[str, Any]]:
    return [{"prompt": chat[:given], "completion": chat[given:], **beside} for chat in chats]


def as_json(rows: list[dict[str, Any]]) -> JsonRows:
    return JsonRows([json.dumps(row).encode() for row in rows])


def with_bos() -> PreTrainedTokenizerBase:
    return add_special_tokens(tiny_tokenizer(bos_token="<s>"), "<s> $A")


def with_eos() -> PreTrainedTokenizerBase:
    return add_special_tokens(tiny_tokenizer(None, bos_token="<s>", eos_token="</s>"), "<s> $A </s>")


PAIRS = {
    "texts": (TEXTS, lambda: new_tokenizer("qwen2_5")),
    "texts that merge": (TEXTS, lambda: newline_merging_tokenizer("qwen2_5")),
    "texts, a tokenizer that adds BOS": (TEXTS, with_bos),
    "texts, no template, a tokenizer that adds EOS": (TEXTS, with_eos),
    "texts that end in EOS": ([{**row, "completion": row["completion"] + "<|im_end|>"} for row in TEXTS], with_bos),
    "a system turn": (split(conversations(SHARED_SYSTEM)), lambda: new_tokenizer("qwen2_5")),
    "system turns of their own": (split(conversations(OWN_SYSTEM)), lambda: new_tokenizer("llama3")),
    "tools": (split(conversations(), tools=TOOLS), lambda: new_tokenizer("qwen2_5")),
    "tools as text": (split(conversations(), tools=json.dumps(TOOLS)), lambda: new_tokenizer("qwen3")),
    "calls in the prompt": (split([CHAT, CHAT[:4]], tools=TOOLS), lambda: new_tokenizer("qwen3")),
    "calls in the completion": (split([CHAT, CHAT[:4]], 1, tools=TOOLS), lambda: new_tokenizer("qwen3")),
    "settings": (
        split(conversations(), chat_template_kwargs={"enable_thinking": False}),
        lambda: new_tokenizer("qwen3"),
    ),
}


# Before TRL 1.15 the mask begins behind as many tokens as the prompt alone has (with an EOS, where the tokenizer adds
# one), and two EOS stay.
OTHERS_BEFORE_1_15 = {"texts that merge", "texts, no template, a tokenizer that adds EOS"}
MASKED_BY_LENGTH = set() if is_at_least("trl", "1.15") else OTHERS_BEFORE_1_15
# A table of pyarrow before arrow#40053 was mended sorts the keys of nested objects, which templates print.
SORTS_KEYS = str(pa.array([{"b": 1, "a": 1}]).type) == "struct<a: int64, b: int64>"


def list_sources(rows: list[dict[str, Any]]) -> list[Any]:
    """The rows in each form in which they say the same as the table that SFTTrainer is given."""
    table = datasets.Dataset.from_list(rows)
    return [table] if SORTS_KEYS and "tools" in rows[0] else [table, rows, as_json(rows)]


@pytest.mark.parametrize("case", PAIRS)
def test_prompts_and_completions_are_what_sft_trainer_prepares(case: str, tmp_path: Path) -> None:
    rows, make_tokenizer = PAIRS[case]
    trainer = sft_trainer(tmp_path, rows, make_tokenizer(), max_length=None)
    if case in MASKED_BY_LENGTH:
        check_masks_by_length(trainer.train_dataset, rows, make_tokenizer())
        return
    prepared = pool_from_tokenized(trainer.train_dataset, make_tokenizer())
    for given in list_sources(rows):
        pool = pool_from_rows(given, make_tokenizer())
        assert pool.fingerprint == prepared.fingerprint
        assert pool.texts == prepared.texts
    for index, (ids, is_response) in enumerate(render(list_sources(rows)[0], make_tokenizer())):
        assert ids.tolist() == trainer.train_dataset[index]["input_ids"]
        assert ids[is_response].tolist() == [
            label for label in labels_of(trainer.train_dataset[index]) if label != -100
        ]


def check_masks_by_length(dataset: datasets.Dataset, rows: list[dict[str, Any]], tokenizer: Any) -> None:
    """The pool of a Trainer is what that Trainer trains, be it other than what is made of the same file."""
    pool = pool_from_tokenized(dataset, tokenizer)
    for index, row in enumerate(rows):
        whole = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token).input_ids
        prompt = tokenizer(row["prompt"]).input_ids
        assert [*pool.preamble.tolist(), *pool.sample(index).tolist()] == whole
        assert pool.sample(index)[pool.response_mask(index)].tolist() == whole[len(prompt) :]


ROWS = {
    "messages with tools": [{"messages": CHAT[:6], "tools": TOOLS}, {"messages": CHAT, "tools": TOOLS}],
    "messages with settings": [
        {"messages": chat, "chat_template_kwargs": {"enable_thinking": True}} for chat in conversations()
    ],
    "conversations": [
        {"conversations": [{"from": message["role"], "value": message["content"]} for message in chat]}
        for chat in conversations(OWN_SYSTEM)
    ],
}


@pytest.mark.parametrize("case", ROWS)
def test_token_ids_of_conversations_are_those_that_sft_trainer_prepares(case: str, tmp_path: Path) -> None:
    tokenizer = new_tokenizer("qwen3")
    trainer = sft_trainer(tmp_path, ROWS[case], tokenizer, max_length=None)
    for source in list_sources(ROWS[case]):
        ids = [ids.tolist() for ids, _ in render(source, new_tokenizer("qwen3"))]
        assert ids == list(trainer.train_dataset["input_ids"])
    # A table in between changes nothing: turns keep the keys that they have.
    assert ids == [ids.tolist() for ids, _ in render(to_dataset(as_json(ROWS[case])), new_tokenizer("qwen3"))]


PREFERENCES = {
    "texts": [{"prompt": "The sky is", "chosen": " blue.", "rejected": " a lie."}] * 2,
    "texts that begin alike": [{"chosen": "Human: Why? Assistant: So.", "rejected": "Human: Why? Assistant: No."}] * 2,
    "messages": [
        {"prompt": chat[:1], "chosen": chat[1:], "rejected": [turn("assistant", "No.")]} for chat in conversations()
    ],
    "messages that begin alike": [
        {"chosen": chat, "rejected": [*chat[:-1], turn("assistant", "No.")]} for chat in conversations(SHARED_SYSTEM)
    ],
    "tools": [
        {"prompt": chat[:1], "chosen": chat[1:], "rejected": [turn("assistant", "No.")], "tools": TOOLS}
        for chat in conversations()
    ],
}


@pytest.mark.parametrize("case", PREFERENCES)
def test_the_chosen_answers_are_what_dpo_trainer_prepares(case: str, tmp_path: Path) -> None:
    kind, tokenizer, rows = find_trainer("DPO"), new_tokenizer("qwen2_5"), PREFERENCES[case]
    args = trl.DPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None)
    if "tools" in rows[0] and not is_at_least("trl", "0.29"):
        args.tools = TOOLS  # which it takes for all rows alike
    models = [tiny_model(tiny_config(vocab_size=600)) for _ in range(2)]
    trainer = kind(*models, args=args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer)
    for row, prepared, (ids, is_response) in zip(rows, trainer.train_dataset, render(rows, tokenizer), strict=True):
        if is_at_least("trl", "0.29"):
            prompt, chosen = prepared["prompt_ids"], prepared["chosen_ids"]
        else:  # a further EOS stands behind the one that the template writes
            ends_twice = isinstance(row["chosen"], list)
            prompt, chosen = prepared["prompt_input_ids"], prepared["chosen_input_ids"]
            chosen = chosen[: len(chosen) - ends_twice]
        assert ids[is_response].tolist() == chosen
        assert ids.tolist() == prompt + chosen


TAKES_CALLS = ["qwen2_5", "qwen3", "qwen3_5_nothink", "llama3_1", "gptoss"]


@pytest.mark.parametrize("name", TAKES_CALLS)
def test_every_answer_is_a_response_and_calls_of_tools_are_answers(name: str) -> None:
    """Qwen3 renders an answer differently once another question follows, gpt-oss ends a call by another token."""
    marks = [
        "<|im_start|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|start|>",
        "<|end|>",
        "<|call|>",
        "<|return|>",
        "<|message|>",
    ]
    if name == "gptoss" and trl_template(name) is None:
        pytest.skip("this TRL brings no template of gpt-oss, and the tests' own calls no tools")
    tokenizer = tiny_tokenizer(template(name), marks, "<s>", "<|im_end|>")
    chat = [message if message.get("content") != "Let me look." else CHAT[1] for message in CHAT]
    ((ids, is_response),) = render([{"messages": chat, "tools": TOOLS}], tokenizer)
    starts = [i for i in range(len(ids)) if is_response[i] and not is_response[i - 1]]
    stops = [i + 1 for i in range(len(ids)) if is_response[i] and not is_response[i + 1 : i + 2].any()]
    spans = [tokenizer.decode(ids[start:stop]) for start, stop in zip(starts, stops, strict=True)]
    assert len(spans) == 4
    for span, words in zip(spans, ['"up"', "It is blue.", '"up"', "Red."], strict=True):
        assert words.strip('"') in span
        assert "sky" not in span and "user" not in span
        assert any(mark in span for mark in marks)


def test_calls_in_the_form_of_llama_factory_are_tool_calls_where_the_template_renders_them() -> None:
    call = json.dumps({"name": "look", "arguments": {"where": "up"}})
    shared = [{"from": "human", "value": "Look up."}, {"from": "function_call", "value": call}]
    shared += [{"from": "observation", "value": "a blue sky"}, {"from": "gpt", "value": "It is blue."}]
    expected = [CHAT[0], {**CHAT[1], "tool_calls": [CALL]}, turn("tool", "a blue sky"), CHAT[3]]
    tokenizer = new_tokenizer("qwen2_5")
    rows = [{"conversations": shared, "tools": json.dumps(TOOLS)}, {"messages": expected, "tools": TOOLS}]
    (ours, ours_mask), (theirs, mask) = render(rows, tokenizer)
    assert (ours.tolist(), ours_mask.tolist()) == (theirs.tolist(), mask.tolist())
    # The call is its own text under a template that knows none.
    ((ids, is_response),) = render([{"conversations": shared[:2]}], tiny_tokenizer())
    assert tiny_tokenizer().decode(ids[is_response]) == call + "<|im_end|>\n"


def test_calls_are_refused_where_the_template_renders_none() -> None:
    with pytest.raises(ValueError, match="chat template does not render `tool_calls`: leave such samples out"):
        list(render([{"messages": CHAT}], tiny_tokenizer()))
