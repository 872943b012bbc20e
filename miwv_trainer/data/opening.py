"""
The opening of a response: the tokens of the generation prompt, which stand between the user's turn and the response.

A response that is scored alone, without its prompt, is scored behind the preamble and this opening: the model then
knows that an answer begins. Li et al. (NAACL 2024) put "### Response:" there.
"""

import logging
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from miwv_trainer.data.chat_template import render_generation_prompt
from miwv_trainer.data.pool import Pool

logger = logging.getLogger(__name__)
ALPACA = "### Response:"
# So many prompts must end with it. Not all: where no white space follows the opening, some responses begin with a
# character that shares its last token (`:"` is one token). A single one of 96 once cost all of them their opening.
LEAST_SHARE = 0.5


def add_opening(pool: Pool, tokenizer: PreTrainedTokenizerBase | None) -> Pool:
    """The pool with the opening of its responses: the tokenizer's or Alpaca's, if most prompts end with it."""
    if tokenizer is None:
        return pool
    for text in (render_generation_prompt(tokenizer), ALPACA):
        ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
        count = _count_prompts_that_end_with(ids, pool) if len(ids) else 0
        if count and count >= LEAST_SHARE * pool.has_prompt_and_response.sum():
            return replace(pool, opening=ids)
        if count:
            logger.info(
                "%d of %d prompts end with %r: responses alone, which `score=\"ifd\"` measures, stand without it.",
                count, pool.has_prompt_and_response.sum(), text,
            )  # fmt: skip
    return pool


def _count_prompts_that_end_with(ids: np.ndarray, pool: Pool) -> int:
    complete = np.flatnonzero(pool.has_prompt_and_response & (pool.prompt_tokens >= len(ids)))
    ends = pool.offsets[complete] + pool.prompt_tokens[complete]
    is_end = np.ones(len(complete), dtype=bool)
    # A loop over the few tokens of the opening, not over the many samples.
    for place, token in enumerate(reversed(ids.tolist()), start=1):
        is_end &= pool.tokens[ends - place] == token
    return int(is_end.sum())
