"""The opening of responses that are scored alone, where its last token holds the first characters of some of them."""

import logging
from typing import Any

import numpy as np
import pytest

from miwv_trainer.data.opening import add_opening
from miwv_trainer.data.pool import Pool
from miwv_trainer.scoring.rows import count_response_row_tokens, make_response_row

OPENING = [7, 8, 9]
WHOLE, MERGED, OTHER = ([1, *OPENING], [5, 6]), ([1, 7, 8], [99, 6]), ([1, 2, 3], [5])


class Tokenizer:
    """Knows no chat template, and the opening of Alpaca as three tokens."""

    chat_template = None

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": OPENING if text == "### Response:" else []}


def pool_of(*samples: tuple[list[int], list[int]]) -> Pool:
    tokens = [token for prompt, response in samples for token in (*prompt, *response)]
    is_response = [flag for prompt, response in samples for flag in (*[False] * len(prompt), *[True] * len(response))]
    offsets = np.cumsum([0, *(len(prompt) + len(response) for prompt, response in samples)])
    return Pool(np.array([], np.int32), np.array(tokens, np.int32), np.array(is_response), offsets)


def test_a_response_alone_reads_as_its_text_does_where_tokens_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miwv_trainer.data.opening.render_generation_prompt", lambda tokenizer: "")
    tokenizer: Any = Tokenizer()
    pool = add_opening(pool_of(WHOLE, MERGED, WHOLE, OTHER), tokenizer)
    rows = [make_response_row(pool, sample) for sample in range(4)]
    assert [row.ids.tolist() for row in rows] == [[*OPENING, 5, 6], [7, 8, 99, 6], [*OPENING, 5, 6], [*OPENING, 5]]
    assert [row.targets.tolist() for row in rows] == [[3, 4], [2, 3], [3, 4], [3]]
    assert count_response_row_tokens(pool).tolist() == [5, 4, 5, 4]


def test_an_opening_that_few_prompts_have_is_none_and_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("miwv_trainer.data.opening.render_generation_prompt", lambda tokenizer: "")
    tokenizer: Any = Tokenizer()
    with caplog.at_level(logging.INFO):
        assert add_opening(pool_of(WHOLE, MERGED, OTHER), tokenizer).opening is None
    assert "1 of 3 prompts end with '### Response:': responses alone, which `score=\"ifd\"` measures" in caplog.text
    assert add_opening(pool_of(OTHER), tokenizer).opening is None and len(caplog.records) == 1
