"""Raw rows, their tokenised dataset and what SFTTrainer prepares of them are one pool."""

import datasets
import pytest
from transformers import LlamaConfig, ProcessorMixin

from miwv_trainer import tokenize
from miwv_trainer.data.build import pool_from_rows, pool_from_tokenized, render
from tests.helpers.chats import (
    ALPACA_ROWS,
    INSTRUCTIONS,
    OWN_SYSTEM,
    SHARED_SYSTEM,
    add_special_tokens,
    as_rows,
    conversations,
    from_tokenized_rows,
    ids_of,
    labels_of,
    one_call,
    only_ids,
    response_ids,
    response_text,
    sft_trainer,
    stripped,
    turn,
    with_system_turns,
)
from tests.helpers.templates import ALL, chat_tokenizer, new_tokenizer, trl_template
from tests.helpers.tiny import CHATML, instruction_rows, tiny_tokenizer


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
        assert response_ids(pool, index) == [label for label in labels_of(row) if label != -100]
    # TRL's training template counts the newline behind the role to the answer. Where TRL brings none, the tests' own
    # does not.
    line = "\n" if trl_template("qwen2_5") else ""
    assert response_text(tokenizer, pool, 0) == f"{line}first<|im_end|>\n{line}second<|im_end|>\n"
    assert response_text(tokenizer, pool, 1) == f"{line}A calm sea.<|im_end|>\n"
    assert stripped(pool.texts) == ["one", *stripped(INSTRUCTIONS)]


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
    # In older versions of TRL the collator makes labels of such texts, so that the dataset has none.
    has_labels = "labels" in trainer.train_dataset.column_names
    words = "No prompt can be told from" if has_labels else r"has no `labels` \(columns: text, input_ids"
    with pytest.raises(ValueError, match=words):
        pool_from_tokenized(trainer.train_dataset, trainer.processing_class)


def test_a_row_that_the_template_refuses_is_named() -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": turns}, {"messages": [{"role": "system", "content": "c"}, *turns]}]
    with pytest.raises(ValueError, match="Sample 1 of the pool cannot be rendered.*refuses it: System role not supp"):
        list(render(rows, tiny_tokenizer(chat_template=template)))


@pytest.mark.parametrize("template", [CHATML, None])
@pytest.mark.parametrize("blank", ["", " \n", None])
def test_a_blank_answer_is_no_response_and_does_not_stop_the_others(blank: str | None, template: str | None) -> None:
    rows = [{"instruction": "a", "output": blank}, {"prompt": "b", "completion": blank}, *instruction_rows(3)]
    pool = pool_from_rows(rows, tiny_tokenizer(chat_template=template))
    assert (pool.response_tokens > 0).tolist() == [False, False, True, True, True]
