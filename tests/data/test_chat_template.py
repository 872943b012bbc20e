from typing import Any

import datasets
import numpy as np
import pytest
import trl
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, ProcessorMixin

from miwv_trainer import tokenize
from miwv_trainer.data.chat_template import pool_from_rows, pool_from_tokenized, render
from tests.helpers.templates import (
    ALL,
    SPECIAL_TOKENS,
    chat_tokenizer,
    new_tokenizer,
    newline_merging_tokenizer,
)
from tests.helpers.tiny import CHATML, instruction_rows, tiny_config, tiny_model, tiny_tokenizer

REPEATS_EARLIER_TURNS = ["smollm2", "llama3", "qwen2_5", "gemma", "cohere"]
SHARED_SYSTEM = "Answer the user like a pirate."
OWN_SYSTEM = "You are number {}."


def with_system_turns(names, *systems):
    """Each template without a system turn and with each of these; Gemma's takes none."""
    return [(name, system) for name in names for system in (None, *systems) if name != "gemma" or system is None]


# The first four begin with the same words, which are the prompts' own.
INSTRUCTIONS = [
    "Explain to me what a user is",
    "Explain to me what rivers do",
    "Explain to me",
    "Explain to me what rivers do, and why\n",
    "\nStart on a new line",
    "\n\n  Start far below",
    " user",
    "  Two spaces",
    "naïve café, 日本語, 🙂",
    "ends in newlines\n\n",
    "tabs\tand\r\nreturns ",
]
RESPONSES = [
    "A calm sea.",
    " leading space",
    "\nleading newline",
    "trailing newline\n",
    "assistant and user",
    "höflich 🙏",
    "x",
    "two\n\nparagraphs",
    "\n\nfar below",
    "trailing space ",
    "y",
]
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName a colour.\n\n### Response:"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nTranslate.\n\n### Input:\nbonjour\n\n### Response:"
)
ALPACA_ROWS = [
    {"instruction": "Name a colour.", "input": "", "output": "Red"},
    {"instruction": "Translate.", "input": "bonjour", "output": "Hello"},
]


def turn(role, content):
    return {"role": role, "content": content}


def conversations(system=None, instructions=INSTRUCTIONS, responses=RESPONSES):
    """One conversation each; `system` is a text that all share, or one that takes the sample's number."""
    return [
        ([turn("system", system.format(index))] if system else []) + [turn("user", user), turn("assistant", assistant)]
        for index, (user, assistant) in enumerate(zip(instructions, responses, strict=True))
    ]


def as_rows(chats):
    return [{"messages": chat} for chat in chats]


def one_call(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]


def one_text(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, tokenize=False)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def one_shot(pool, exemplar, index):
    return [*pool.preamble.tolist(), *pool.sample(exemplar).tolist(), *pool.sample(index).tolist()]


def response_ids(pool, index):
    return pool.sample(index)[pool.response_mask(index)].tolist()


def response_text(tokenizer, pool, index):
    return tokenizer.decode(response_ids(pool, index))


def stripped(texts):
    return [text.strip() for text in texts]


def pairs(count):
    return [(exemplar, index) for exemplar in range(count) for index in range(count) if exemplar != index]


def only_ids(dataset):
    return dataset.select_columns(["input_ids", "labels"])


def from_tokenized_rows(rows, tokenizer):
    """The pool and texts when no text column is left."""
    return pool_from_tokenized(only_ids(tokenize(datasets.Dataset.from_list(rows), tokenizer)), tokenizer)


def sft_trainer(tmp_path, rows, tokenizer, **arguments):
    args = trl.SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", bf16=False, **arguments)
    return trl.SFTTrainer(
        model=tiny_model(tiny_config(vocab_size=600)),
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("name", ALL)
def test_the_test_tokenizers_hold_each_special_token_as_one_id(name):
    special_tokens, bos_token, eos_token = SPECIAL_TOKENS[name]
    for tokenizer in (chat_tokenizer(name), newline_merging_tokenizer(name)):
        for token in [*special_tokens, eos_token, *([bos_token] if bos_token else [])]:
            assert len(ids_of(tokenizer, token)) == 1
    assert len(ids_of(newline_merging_tokenizer(name), "\n\n")) == 1


@pytest.mark.parametrize("make_tokenizer", [chat_tokenizer, newline_merging_tokenizer])
@pytest.mark.parametrize("name, system", with_system_turns(REPEATS_EARLIER_TURNS, SHARED_SYSTEM))
def test_exemplar_plus_sample_is_one_rendering_of_both_turns(name, system, make_tokenizer):
    tokenizer = make_tokenizer(name)
    chats = conversations(system)
    pool = pool_from_rows(as_rows(chats), tokenizer)
    for exemplar, index in pairs(len(chats)):
        both = chats[exemplar] + chats[index][-2:]
        assert one_shot(pool, exemplar, index) == one_call(tokenizer, both)


@pytest.mark.parametrize("name", ["smollm2", "llama3", "qwen2_5"])
def test_with_system_turns_that_differ_exemplar_plus_sample_is_one_rendering_with_both_system_turns(name):
    tokenizer = chat_tokenizer(name)
    chats = conversations(OWN_SYSTEM)
    pool = pool_from_rows(as_rows(chats), tokenizer)
    for exemplar, index in pairs(len(chats)):
        assert one_shot(pool, exemplar, index) == one_call(tokenizer, chats[exemplar] + chats[index])


@pytest.mark.parametrize("name, bos", [("llama3", "<|begin_of_text|>"), ("cohere", "<BOS_TOKEN>")])
def test_with_system_turns_that_differ_only_bos_is_not_repeated(name, bos):
    tokenizer = chat_tokenizer(name)
    chats = conversations(OWN_SYSTEM)
    pool = pool_from_rows(as_rows(chats), tokenizer)
    for exemplar, index in pairs(len(chats)):
        both = one_text(tokenizer, chats[exemplar]) + one_text(tokenizer, chats[index]).removeprefix(bos)
        assert one_shot(pool, exemplar, index) == ids_of(tokenizer, both)
        assert one_shot(pool, exemplar, index).count(tokenizer.bos_token_id) == 1


def test_where_the_template_fills_in_a_system_turn_for_some_samples_each_keeps_its_own():
    tokenizer = chat_tokenizer("smollm2")
    chats = [
        [turn("system", "Be short."), turn("user", "a"), turn("assistant", "b")],
        [turn("user", "c"), turn("assistant", "d")],
    ]
    pool = pool_from_rows(as_rows(chats), tokenizer)
    assert tokenizer.decode(one_shot(pool, 1, 0)) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n"
        "<|im_start|>system\nBe short.<|im_end|>\n"
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    )


@pytest.mark.parametrize(
    "name, preamble",
    [
        (
            "smollm2",
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n",
        ),
        ("llama3", "<|begin_of_text|>"),
        (
            "qwen2_5",
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n",
        ),
        ("gemma", "<bos>"),
        ("cohere", "<BOS_TOKEN>"),
        ("qwen3", ""),
        ("phi3", ""),
    ],
)
def test_words_that_all_prompts_begin_with_are_not_in_the_preamble(name, preamble):
    tokenizer = chat_tokenizer(name)
    instructions = ["Explain to me apples", "Explain to me rivers", "Explain to me"]
    pool = pool_from_rows(as_rows(conversations(None, instructions, ["a", "b", "c"])), tokenizer)
    assert tokenizer.decode(pool.preamble) == preamble
    assert all("Explain to me" in tokenizer.decode(pool.prompt(index)) for index in range(3))


def test_samples_with_the_same_prompt_keep_all_of_it():
    tokenizer = chat_tokenizer("llama3")
    pool = pool_from_rows(as_rows(conversations(None, ["Tell a joke"] * 2, ["a", "b"])), tokenizer)
    assert tokenizer.decode(pool.preamble) == "<|begin_of_text|>"
    assert tokenizer.decode(pool.prompt(1)) == (
        "<|start_header_id|>user<|end_header_id|>\n\nTell a joke<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def qwen3_difference(two_turns):
    head, opening, tail = two_turns.partition("<|im_start|>assistant\n")
    return head + opening + "<think>\n\n</think>\n\n" + tail


def phi3_difference(two_turns):
    head, user, tail = two_turns.rpartition("<|user|>\n")
    return head + "<|endoftext|>" + user + tail


def gptoss_difference(two_turns):
    head, user, tail = two_turns.rpartition("<|end|><|start|>user<|message|>")
    return head + user.replace("<|end|>", "<|return|>") + tail


@pytest.mark.parametrize("system", [None, SHARED_SYSTEM])
@pytest.mark.parametrize(
    "name, difference", [("qwen3", qwen3_difference), ("phi3", phi3_difference), ("gptoss", gptoss_difference)]
)
def test_an_exemplar_stands_as_a_last_turn_where_the_template_renders_earlier_turns_differently(
    name, difference, system
):
    tokenizer = chat_tokenizer(name)
    # Qwen3 also takes newlines off the front of a last answer alone; no answer here begins with one.
    chats = [chat for chat in conversations(system) if not chat[-1]["content"].startswith("\n")]
    pool = pool_from_rows(as_rows(chats), tokenizer)
    for exemplar, index in pairs(len(chats)):
        two_turns = one_text(tokenizer, chats[exemplar] + chats[index][-2:])
        expected = difference(two_turns)
        assert expected != two_turns
        assert one_shot(pool, exemplar, index) == ids_of(tokenizer, expected)


@pytest.mark.parametrize("name", ALL)
def test_every_sample_alone_is_one_rendering_of_its_conversation(name):
    tokenizer = newline_merging_tokenizer(name)
    chats = conversations()
    pool = pool_from_rows(as_rows(chats), tokenizer)
    for index, chat in enumerate(chats):
        assert [*pool.preamble.tolist(), *pool.sample(index).tolist()] == one_call(tokenizer, chat)


@pytest.mark.parametrize(
    "name, before, response",
    [
        ("smollm2", "<|im_end|>\n<|im_start|>assistant\n", "A calm sea.<|im_end|>\n"),
        ("llama3", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "A calm sea.<|eot_id|>"),
        ("qwen2_5", "<|im_end|>\n<|im_start|>assistant\n", "A calm sea.<|im_end|>\n"),
        ("gemma", "<end_of_turn>\n<start_of_turn>model\n", "A calm sea.<end_of_turn>\n"),
        (
            "cohere",
            "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
            "A calm sea.<|END_OF_TURN_TOKEN|>",
        ),
        ("qwen3", "<|im_end|>\n<|im_start|>assistant\n", "<think>\n\n</think>\n\nA calm sea.<|im_end|>\n"),
        ("phi3", "<|end|>\n<|assistant|>\n", "A calm sea.<|end|>\n<|endoftext|>"),
        ("gptoss", "<|end|><|start|>assistant", "<|channel|>final<|message|>A calm sea.<|return|>"),
    ],
)
def test_the_response_is_all_that_follows_the_generation_prompt_end_of_turn_included(name, before, response):
    tokenizer = chat_tokenizer(name)
    pool = pool_from_rows(as_rows(conversations()), tokenizer)
    assert response_ids(pool, 0) == ids_of(tokenizer, response)
    assert tokenizer.decode(pool.prompt(0)).endswith("what a user is" + before)
    assert [*pool.prompt(0).tolist(), *response_ids(pool, 0)] == pool.sample(0).tolist()


def test_a_newline_that_merges_into_the_answer_belongs_to_the_response():
    tokenizer = newline_merging_tokenizer("qwen2_5")
    pool = pool_from_rows(as_rows(conversations(None, ["a", "b"], ["\n\nfoo", "bar"])), tokenizer)
    # "\n" ends the generation prompt and "\n\nfoo" follows: the pieces are "\n\n" and "\n", split as GPT-2 does.
    assert tokenizer.decode(pool.prompt(0)) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant"
    assert response_ids(pool, 0)[:2] == [*ids_of(tokenizer, "\n\n"), *ids_of(tokenizer, "\n")]
    assert response_text(tokenizer, pool, 0) == "\n\n\nfoo<|im_end|>\n"
    assert response_text(tokenizer, pool, 1) == "bar<|im_end|>\n"


@pytest.mark.parametrize(
    "name, responses",
    [
        ("smollm2", ["first<|im_end|>\n", "second<|im_end|>\n"]),
        ("llama3", ["first<|eot_id|>", "second<|eot_id|>"]),
        ("qwen2_5", ["first<|im_end|>\n", "second<|im_end|>\n"]),
        ("gemma", ["first<end_of_turn>\n", "second<end_of_turn>\n"]),
        ("cohere", ["first<|END_OF_TURN_TOKEN|>", "second<|END_OF_TURN_TOKEN|>"]),
        ("qwen3", ["first<|im_end|>\n", "<think>\n\n</think>\n\nsecond<|im_end|>\n"]),
        ("phi3", ["first<|end|>\n", "second<|end|>\n<|endoftext|>"]),
        (
            "gptoss",
            ["<|channel|>final<|message|>first<|end|>", "<|channel|>final<|message|>second<|return|>"],
        ),
    ],
)
def test_several_assistant_turns_are_response_together_and_the_user_between_them_is_not(name, responses):
    tokenizer = chat_tokenizer(name)
    chat = [turn("user", "one"), turn("assistant", "first"), turn("user", "two"), turn("assistant", "second")]
    pool = pool_from_rows(as_rows([chat, *conversations()]), tokenizer)
    assert [*pool.preamble.tolist(), *pool.sample(0).tolist()] == one_call(tokenizer, chat)
    assert response_text(tokenizer, pool, 0) == "".join(responses)
    mask = pool.response_mask(0).astype(int)
    assert int((np.diff(mask) == 1).sum()) == 2
    assert "two" not in tokenizer.decode(pool.prompt(0))


def test_assistant_turns_inside_a_prompt_are_no_response():
    tokenizer = chat_tokenizer("qwen2_5")
    prompt = [turn("user", "one"), turn("assistant", "first"), turn("user", "two")]
    rows = [{"prompt": prompt, "completion": [turn("assistant", answer)]} for answer in ("second", "third")]
    pool = pool_from_rows(rows, tokenizer)
    assert response_text(tokenizer, pool, 0) == "second<|im_end|>\n"
    assert tokenizer.decode(pool.prompt(1)) == (
        "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\nfirst<|im_end|>\n"
        "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"
    )


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
        {"prompt": "Name a colour.", "completion": "Red"},
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
    assert tokenizer.decode(pool.sample(0)) == ALPACA_WITHOUT_INPUT + "Red<|im_end|>"


def add_special_tokens(tokenizer, single):
    names = [name for name in single.split() if name != "$A"]
    tokens = [(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=tokens)
    return tokenizer


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


def test_a_chat_template_writes_bos_itself_so_a_tokenizer_that_adds_bos_adds_no_second_one():
    tokenizer = add_special_tokens(new_tokenizer("llama3"), "<|begin_of_text|> $A")
    pool = pool_from_rows(as_rows(conversations()), tokenizer)
    assert pool.preamble.tolist() == [tokenizer.bos_token_id]
    assert pool.fingerprint == pool_from_rows(as_rows(conversations()), chat_tokenizer("llama3")).fingerprint
    assert tokenizer.bos_token_id not in pool.tokens


@pytest.mark.parametrize("name, system", with_system_turns(ALL, SHARED_SYSTEM, OWN_SYSTEM))
def test_raw_columns_and_their_tokenized_dataset_are_the_same_pool(name, system):
    tokenizer = chat_tokenizer(name)
    rows = as_rows(conversations(system))
    raw, tokenized = pool_from_rows(rows, tokenizer), from_tokenized_rows(rows, tokenizer)
    assert raw.fingerprint == tokenized.fingerprint
    assert pool_from_rows(datasets.Dataset.from_list(rows), tokenizer).fingerprint == raw.fingerprint


def test_raw_columns_and_their_tokenized_dataset_are_the_same_pool_without_a_chat_template():
    for tokenizer in (
        tiny_tokenizer(chat_template=None),
        add_special_tokens(tiny_tokenizer(chat_template=None, bos_token="<s>"), "<s> $A"),
    ):
        rows = instruction_rows(6)
        assert pool_from_rows(rows, tokenizer).fingerprint == from_tokenized_rows(rows, tokenizer).fingerprint


def test_tokenize_adds_ids_mask_and_labels_and_keeps_the_columns():
    tokenizer = chat_tokenizer("llama3")
    dataset = tokenize(datasets.Dataset.from_list(ALPACA_ROWS), tokenizer)
    assert dataset["instruction"][:] == ["Name a colour.", "Translate."]
    answer = ids_of(tokenizer, "Red<|eot_id|>")
    assert dataset[0]["input_ids"] == one_call(tokenizer, [turn("user", "Name a colour."), turn("assistant", "Red")])
    assert dataset[0]["labels"] == [-100] * (len(dataset[0]["input_ids"]) - len(answer)) + answer
    assert dataset[0]["attention_mask"] == [1] * len(dataset[0]["input_ids"])


def test_more_rows_than_are_rendered_at_once_stay_in_order():
    tokenizer = chat_tokenizer("llama3")
    rows = [{"prompt": f"q{number}", "completion": f"a{number}"} for number in range(1030)]
    pool = pool_from_rows(rows, tokenizer)
    assert [response_text(tokenizer, pool, index) for index in (0, 511, 512, 1023, 1024, 1029)] == [
        f"a{number}<|eot_id|>" for number in (0, 511, 512, 1023, 1024, 1029)
    ]
    assert len(pool) == 1030


@pytest.mark.parametrize("name", ALL)
def test_a_dataset_that_sft_trainer_prepared_is_the_pool_of_its_raw_columns(name, tmp_path):
    rows = [{"prompt": chat[:1], "completion": chat[1:]} for chat in conversations()]
    trainer = sft_trainer(tmp_path, rows, new_tokenizer(name))
    prepared = pool_from_tokenized(trainer.train_dataset, trainer.processing_class)
    raw = pool_from_rows(rows, chat_tokenizer(name))
    assert prepared.fingerprint == raw.fingerprint
    assert stripped(prepared.texts) == stripped(raw.texts) == stripped(INSTRUCTIONS)


def test_a_dataset_with_earlier_answers_in_the_prompt_is_the_pool_sft_trainer_prepares(tmp_path):
    prompts = [[turn("user", "a"), turn("assistant", "b"), turn("user", text)] for text in INSTRUCTIONS[:3]]
    rows = [{"prompt": prompt, "completion": [turn("assistant", "c")]} for prompt in prompts]
    trainer = sft_trainer(tmp_path, rows, new_tokenizer("qwen2_5"))
    prepared = pool_from_tokenized(trainer.train_dataset, trainer.processing_class)
    assert prepared.fingerprint == pool_from_rows(rows, chat_tokenizer("qwen2_5")).fingerprint


def test_with_assistant_only_loss_the_response_is_what_sft_trainer_labels(tmp_path):
    more = [turn("user", "one"), turn("assistant", "first"), turn("user", "two"), turn("assistant", "second")]
    trainer = sft_trainer(
        tmp_path, as_rows([more, *conversations()]), new_tokenizer("qwen2_5"), assistant_only_loss=True
    )
    tokenizer = trainer.processing_class
    pool = pool_from_tokenized(trainer.train_dataset, tokenizer)
    for index, row in enumerate(trainer.train_dataset):
        assert [*pool.preamble.tolist(), *pool.sample(index).tolist()] == row["input_ids"]
        assert response_ids(pool, index) == [label for label in row["labels"] if label != -100]
    # TRL's training template counts the newline behind the role to the answer.
    assert response_text(tokenizer, pool, 0) == "\nfirst<|im_end|>\n\nsecond<|im_end|>\n"
    assert response_text(tokenizer, pool, 1) == "\nA calm sea.<|im_end|>\n"
    assert stripped(pool.texts) == ["one", *stripped(INSTRUCTIONS)]


def test_with_assistant_only_loss_exemplar_plus_sample_is_one_rendering_of_both_turns(tmp_path):
    chats = conversations()
    trainer = sft_trainer(tmp_path, as_rows(chats), new_tokenizer("qwen2_5"), assistant_only_loss=True)
    pool = pool_from_tokenized(trainer.train_dataset, trainer.processing_class)
    for exemplar, index in pairs(len(chats)):
        assert one_shot(pool, exemplar, index) == one_call(chat_tokenizer("qwen2_5"), chats[exemplar] + chats[index])


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


def test_without_a_tokenizer_the_models_configuration_names_bos():
    rows = as_rows(conversations())
    tokenizer = chat_tokenizer("llama3")
    tokenized = only_ids(tokenize(datasets.Dataset.from_list(rows), tokenizer))
    pool = pool_from_tokenized(tokenized, None, LlamaConfig(bos_token_id=tokenizer.bos_token_id))
    assert pool.fingerprint == pool_from_rows(rows, tokenizer).fingerprint
    assert pool_from_tokenized(tokenized, None, LlamaConfig(bos_token_id=None)).preamble.tolist() == []


def test_a_processor_is_asked_for_its_tokenizer():
    class Processor(ProcessorMixin):
        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

    rows = as_rows(conversations("Be kind.", ["one", "two"], ["a", "b"]))
    tokenizer = chat_tokenizer("qwen2_5")
    tokenized = only_ids(tokenize(datasets.Dataset.from_list(rows), tokenizer))
    pool = pool_from_tokenized(tokenized, Processor(tokenizer))
    assert pool.fingerprint == pool_from_rows(rows, tokenizer).fingerprint
    assert pool.texts == ["one", "two"]


def test_a_template_whose_user_turns_cannot_be_told_shares_bos_alone():
    # It refuses the made-up conversation, which has two user turns.
    single_turn = (
        "{{ bos_token }}{% if messages|length > 2 %}{{ raise_exception('one turn only') }}{% endif %}"
        "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer = tiny_tokenizer(single_turn, bos_token="<s>")
    pool = pool_from_rows(as_rows(conversations(None, ["one", "two"], ["a", "b"])), tokenizer)
    assert tokenizer.decode(pool.preamble) == "<s>"
    assert tokenizer.decode(pool.sample(0)) == "[user]one[assistant]a"
    assert response_text(tokenizer, pool, 0) == "a"


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


def test_raw_rows_that_are_no_pool_are_refused_in_the_pools_words():
    tokenizer = chat_tokenizer("qwen2_5")
    with pytest.raises(ValueError, match="The pool is empty"):
        pool_from_rows([], tokenizer)
    with pytest.raises(ValueError, match="The pool has one sample"):
        pool_from_rows(ALPACA_ROWS[:1], tokenizer)
    with pytest.raises(TypeError, match="must be a map-style dataset"):
        pool_from_rows(iter(ALPACA_ROWS), tokenizer)
    with pytest.raises(ValueError, match="Not one sample of the pool has a response token"):
        pool_from_rows(as_rows([[turn("user", "a")], [turn("user", "b")]]), tokenizer)


def test_plain_text_that_sft_trainer_prepared_is_refused_because_no_prompt_can_be_told(tmp_path):
    trainer = sft_trainer(tmp_path, [{"text": "one and two"}, {"text": "three"}], new_tokenizer("qwen2_5"))
    with pytest.raises(ValueError, match="No prompt can be told from the response"):
        pool_from_tokenized(trainer.train_dataset, trainer.processing_class)


def test_a_row_that_the_template_refuses_is_named() -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": turns}, {"messages": [{"role": "system", "content": "c"}, *turns]}]
    with pytest.raises(ValueError, match="Sample 1 of the pool cannot be rendered.*refuses it: System role not supp"):
        list(render(rows, tiny_tokenizer(chat_template=template)))


@pytest.mark.parametrize("row", [{"prompt": 3, "completion": "b"}, {"messages": [{"role": "user", "content": None}]}])
@pytest.mark.parametrize("template", [CHATML, None])
def test_turns_that_are_no_text_are_refused(row: dict[str, Any], template: str | None) -> None:
    with pytest.raises(ValueError, match="Sample 0 .* Every turn must have a `role` and a `content` that are text"):
        list(render([row], tiny_tokenizer(chat_template=template)))


@pytest.mark.parametrize("template", [CHATML, None])
@pytest.mark.parametrize("blank", ["", " \n", None])
def test_a_blank_answer_is_no_response_and_does_not_stop_the_others(blank: str | None, template: str | None) -> None:
    rows = [{"instruction": "a", "output": blank}, {"prompt": "b", "completion": blank}, *instruction_rows(3)]
    pool = pool_from_rows(rows, tiny_tokenizer(chat_template=template))
    assert (pool.response_tokens > 0).tolist() == [False, False, True, True, True]


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
