"""The assistant's turns in conversations that are trained on as a whole.

TRL's SFTTrainer puts the loss on all tokens of a `messages` or `text` dataset unless it is told otherwise, so labels do
not tell prompt from response. The chat template's own markers do: a response begins behind the generation prompt, and
ends where the next user's turn begins.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from miwv_trainer.data.pool import Pool
from miwv_trainer.data.turn_markers import TurnMarkers, find_all_tokens


def mark_assistant_turns(whole: Pool, markers: TurnMarkers, is_blank: Callable[[int], bool]) -> Pool:
    """
    Marks the assistant's turns as response, instead of what the labels say.

    A sample in which no turn is found has no response, so that it cannot be scored.

    Args:
        whole: A pool without preamble.
        markers: Both the user's header and the generation prompt are needed; without them nothing is found.
        is_blank: Says whether a token is only white space. Behind the generation prompt, such tokens belong to it.
    """
    is_response = np.zeros(len(whole.tokens), dtype=bool)
    header, prompt = (np.asarray(part, dtype=np.int64) for part in (markers.user_header, markers.generation_prompt))
    if len(header) and len(prompt):
        headers, prompts = find_all_tokens(whole.tokens, header), find_all_tokens(whole.tokens, prompt)
        ends = np.append(headers, len(whole.tokens))
        sample_ends = whole.offsets[np.searchsorted(whole.offsets, prompts, side="right")]
        for start, sample_end in zip((prompts + len(prompt)).tolist(), sample_ends.tolist(), strict=True):
            while start < sample_end and is_blank(int(whole.tokens[start])):
                start += 1
            is_response[start : min(sample_end, int(ends[np.searchsorted(headers, start)]))] = True
    return replace(whole, is_response=is_response)
