"""Conversations whose labels cover everything, as TRL's quickstart has them: the assistant's turns by the template."""

import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import Qwen3Config

from miwv_trainer import MIWVConfig, attach
from miwv_trainer.data.build import pool_from_rows, pool_from_tokenized
from tests.helpers.templates import chat_tokenizer
from tests.helpers.tiny import tiny_model, tiny_tokenizer
from tests.helpers.trainers import conversations

TEMPLATES = ("qwen2_5", "qwen3", "llama3", "phi3", "gemma")


def several_turns(count: int) -> list[dict[str, Any]]:
    rows = conversations(2 * count)
    return [{"messages": rows[i]["messages"] + rows[i + count]["messages"]} for i in range(count)]


def whole_labels(rows: list[dict[str, Any]], tokenizer: Any) -> datasets.Dataset:
    """As SFTTrainer prepares messages at its defaults: every token has its label."""
    ids = [tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"] for row in rows]
    return datasets.Dataset.from_list([{"input_ids": each, "labels": each} for each in ids])


@pytest.mark.parametrize("make", [conversations, several_turns])
@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_found_in_token_ids_are_those_that_rendering_tells(name: str, make: Any) -> None:
    tokenizer, rows = chat_tokenizer(name), make(8)
    expected = pool_from_rows(rows, tokenizer)
    found = pool_from_tokenized(whole_labels(rows, tokenizer), tokenizer)
    assert found.fingerprint == expected.fingerprint
    assert expected.has_prompt_and_response.all()


def test_text_that_is_no_chat_is_refused_with_what_to_do() -> None:
    tokenizer = tiny_tokenizer()
    ids = [tokenizer(f"a river and an apple {i}")["input_ids"] for i in range(4)]
    plain = datasets.Dataset.from_list([{"input_ids": each, "labels": each} for each in ids])
    with pytest.raises(ValueError, match=r"No prompt can be told.*chat template finds no assistant's turn.*messages"):
        pool_from_tokenized(plain, tokenizer)


@pytest.mark.parametrize("column", ["messages", "text"])
def test_trls_quickstart_with_two_lines_more(column: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from trl import SFTConfig, SFTTrainer

    tokenizer = chat_tokenizer("qwen3")
    rows = conversations(16)
    if column == "text":
        rows = [{"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)} for row in rows]
    config = Qwen3Config(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
    )  # fmt: skip
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", save_strategy="no", num_train_epochs=1)
    trainer = SFTTrainer(
        tiny_model(config), args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
    )
    with caplog.at_level(logging.INFO, logger="miwv_trainer"):
        callback = attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf"))
        trainer.train()
    assert "scored on the assistant's turns" in caplog.text
    stored = callback.rounds[0]
    assert len(stored.selection) == 4 and np.isfinite(stored.column("miwv")).all()
    # Trained as the user set it: on all tokens.
    row = trainer.train_dataset[0]
    assert row.get("labels", row["input_ids"]) == row["input_ids"]
    assert (stored.column("response_tokens") < [len(ids) for ids in trainer.train_dataset["input_ids"]]).all()
