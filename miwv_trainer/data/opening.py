"""
The opening of a response: the tokens of the generation prompt, which stand between the user's turn and the response.

A response that is scored alone, without its prompt, is scored behind the preamble and this opening: the model then
knows that an answer begins. Li et al. (NAACL 2024) put "### Response:" there.
"""

from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from miwv_trainer.data.chat_template import render_generation_prompt
from miwv_trainer.data.pool import Pool

ALPACA = "### Response:"


def add_opening(pool: Pool, tokenizer: PreTrainedTokenizerBase | None) -> Pool:
    """The pool with the opening of its responses: the tokenizer's or Alpaca's, if every prompt ends with it."""
    if tokenizer is None:
        return pool
    for text in (render_generation_prompt(tokenizer), ALPACA):
        ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
        if len(ids) and _ends_all_prompts(pool, ids):
            return replace(pool, opening=ids)
    return pool


def _ends_all_prompts(pool: Pool, ids: np.ndarray) -> bool:
    complete = np.flatnonzero(pool.has_prompt_and_response & (pool.prompt_tokens >= len(ids)))
    ends = pool.offsets[complete] + pool.prompt_tokens[complete]
    # A loop over the few tokens of the opening, not over the many samples.
    return len(complete) == pool.has_prompt_and_response.sum() and all(
        (pool.tokens[ends - place] == token).all() for place, token in enumerate(reversed(ids.tolist()), start=1)
    )
