"""Samples are rendered as the chat template renders them, and a one-shot sequence as it renders both turns."""

import numpy as np
import pytest

from miwv_trainer.data.build import pool_from_rows, pool_from_tokenized
from tests.helpers.chats import (
    OWN_SYSTEM,
    REPEATS_EARLIER_TURNS,
    SHARED_SYSTEM,
    add_special_tokens,
    as_rows,
    conversations,
    ids_of,
    one_call,
    one_shot,
    one_text,
    pairs,
    response_ids,
    response_text,
    sft_trainer,
    turn,
    with_system_turns,
)
from tests.helpers.own_templates import OWN_TEMPLATES
from tests.helpers.templates import (
    ALL,
    SPECIAL_TOKENS,
    chat_tokenizer,
    new_tokenizer,
    newline_merging_tokenizer,
    trl_template,
)
from tests.helpers.tiny import tiny_tokenizer


@pytest.mark.parametrize("name", ALL)
def test_the_test_tokenizers_hold_each_special_token_as_one_id(name):
    special_tokens, bos_token, eos_token = SPECIAL_TOKENS[name]
    for tokenizer in (chat_tokenizer(name), newline_merging_tokenizer(name)):
        for token in [*special_tokens, eos_token, *([bos_token] if bos_token else [])]:
            assert len(ids_of(tokenizer, token)) == 1
    assert len(ids_of(newline_merging_tokenizer(name), "\n\n")) == 1


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3", "gemma", "cohere", "phi3"])
@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_the_templates_written_for_the_tests_render_as_the_families_own(name, turns):
    if trl_template(name) is None:
        pytest.skip("the installed TRL brings no chat templates")
    own, theirs = new_tokenizer(name), new_tokenizer(name)
    own.chat_template = OWN_TEMPLATES[name]
    for system in [None] if name == "gemma" else [None, SHARED_SYSTEM]:
        for chat in conversations(system):
            chat = [*chat, *conversations()[0]][: turns + bool(system)]
            for prompt in (True, False):
                texts = [
                    tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
                    for tokenizer in (own, theirs)
                ]
                assert texts[0] == texts[1]


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


def test_a_chat_template_writes_bos_itself_so_a_tokenizer_that_adds_bos_adds_no_second_one():
    tokenizer = add_special_tokens(new_tokenizer("llama3"), "<|begin_of_text|> $A")
    pool = pool_from_rows(as_rows(conversations()), tokenizer)
    assert pool.preamble.tolist() == [tokenizer.bos_token_id]
    assert pool.fingerprint == pool_from_rows(as_rows(conversations()), chat_tokenizer("llama3")).fingerprint
    assert tokenizer.bos_token_id not in pool.tokens


def test_with_assistant_only_loss_exemplar_plus_sample_is_one_rendering_of_both_turns(tmp_path):
    chats = conversations()
    trainer = sft_trainer(tmp_path, as_rows(chats), new_tokenizer("qwen2_5"), assistant_only_loss=True)
    pool = pool_from_tokenized(trainer.train_dataset, trainer.processing_class)
    for exemplar, index in pairs(len(chats)):
        assert one_shot(pool, exemplar, index) == one_call(chat_tokenizer("qwen2_5"), chats[exemplar] + chats[index])


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
