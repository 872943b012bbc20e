"""Tokenizers with the chat templates of well-known families."""

import functools
import importlib.util
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from tests.helpers.own_templates import OWN_TEMPLATES
from tests.helpers.tiny import tiny_tokenizer

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# Special tokens, BOS and EOS as the models' own tokenizers have them. SmolLM2's BOS is the token that opens a turn.
SPECIAL_TOKENS = {
    "smollm2": (["<|im_start|>", "<|im_end|>"], "<|im_start|>", "<|im_end|>"),
    "llama3": (["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|begin_of_text|>", "<|eot_id|>"),
    "qwen2_5": (["<|im_start|>", "<|im_end|>"], None, "<|im_end|>"),
    "gemma": (["<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>"),
    "cohere": (
        [
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
        ],
        "<BOS_TOKEN>",
        "<|END_OF_TURN_TOKEN|>",
    ),
    "qwen3": (["<|im_start|>", "<|im_end|>", "<think>", "</think>"], None, "<|im_end|>"),
    "phi3": (["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"], "<s>", "<|endoftext|>"),
    "gptoss": (
        ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"],
        "<|startoftext|>",
        "<|return|>",
    ),
}


ALL = list(SPECIAL_TOKENS)


def trl_template(name):
    """The file in which TRL keeps a family's template; None before TRL 1.0, which brings none, or without TRL."""
    found = importlib.util.find_spec("trl")
    path = Path(found.origin).parent / "chat_templates" / f"{name}.jinja" if found else None
    return path if path is not None and path.is_file() else None


def template(name):
    """A family's own template where TRL brings it, else one that is written for the tests."""
    if name == "smollm2":
        return SMOLLM2
    path = trl_template(name)
    if path is not None:
        return path.read_text(encoding="utf-8")
    if name not in OWN_TEMPLATES:
        pytest.skip(f"the installed TRL brings no chat template of {name}")
    return OWN_TEMPLATES[name]


def new_tokenizer(name):
    special_tokens, bos_token, eos_token = SPECIAL_TOKENS[name]
    return tiny_tokenizer(template(name), special_tokens, bos_token, eos_token)


@functools.cache
def chat_tokenizer(name):
    return new_tokenizer(name)


@functools.cache
def newline_merging_tokenizer(name):
    """Like Llama 3's and Qwen's vocabularies, this one holds runs of newlines and spaces as single tokens."""
    special_tokens, bos_token, eos_token = SPECIAL_TOKENS[name]
    core = ByteLevelBPETokenizer()
    core.train_from_iterator(["a\n\n\n\nb\n\nuser\n    c   d\n\n\n"] * 20, vocab_size=300, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core._tokenizer, eos_token=eos_token, bos_token=bos_token)
    tokenizer.add_special_tokens({"additional_special_tokens": special_tokens})
    tokenizer.chat_template = template(name)
    return tokenizer
