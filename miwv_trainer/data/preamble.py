"""
The preamble: the tokens that a template renders once, before the first user's turn (BOS, a system turn).

It is found by the tokens that open a user's turn, not as the longest common prefix of the pool: that would take the
first words off prompts that all begin alike ("Write a ..."), and a one-shot sequence would then lack them.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from miwv_trainer.data.pool import Pool, TokenizedSample, check_count, join, stack
from miwv_trainer.data.turn_markers import TurnMarkers, find_all_tokens


def build_pool(sequences: Iterable[TokenizedSample], markers: TurnMarkers, texts: Sequence[str] | None = None) -> Pool:
    """
    Makes a pool of tokenised samples and removes the preamble that they share from their beginnings.

    Raises:
        ValueError: fewer than two samples, no response in any of them, or no prompt in any of them.
    """
    samples = list(sequences)
    check_count(len(samples))
    return split_preamble(join([stack(samples)], texts), markers)


def split_preamble(whole: Pool, markers: TurnMarkers) -> Pool:
    """
    Removes the preamble that the samples share from their beginnings.

    Args:
        whole: A pool without preamble.

    Raises:
        ValueError: no response in any sample, or no prompt in any of them.
    """
    preamble = _find_preamble(whole, markers)
    starts = whole.offsets[:-1]
    is_kept = np.ones(len(whole.tokens), dtype=bool)
    # A loop over the few positions of the preamble, not over the many samples.
    for position in range(len(preamble)):
        is_kept[starts + position] = False
    pool = Pool(
        preamble=preamble,
        tokens=whole.tokens[is_kept],
        is_response=whole.is_response[is_kept],
        offsets=whole.offsets - len(preamble) * np.arange(len(whole.offsets)),
        texts=whole.texts,
        is_trained_whole=whole.is_trained_whole,
    )
    _check_usable(pool)
    return pool


def _find_preamble(whole: Pool, markers: TurnMarkers) -> np.ndarray:
    """The tokens before the first user's turn if they are the same in every sample; else BOS, if all begin with it."""
    tokens, starts = whole.tokens, whole.offsets[:-1]
    prompt_ends = starts + whole.prompt_tokens
    header = np.asarray(markers.user_header, dtype=np.int64)
    if len(header):
        headers = find_all_tokens(tokens, header)
        first_headers = np.append(headers, len(tokens))[np.searchsorted(headers, starts)]
        lengths = first_headers - starts
        shared = tokens[: lengths[0]]
        # A header that lies in the response does not count: it is a quotation, as in a sample about chat templates.
        if (
            (first_headers + len(header) <= prompt_ends).all()
            and (lengths == len(shared)).all()
            and all((tokens[starts + position] == token).all() for position, token in enumerate(shared))
        ):
            return shared.copy()
    # Without a user's header that can be told, or with system turns that differ, only BOS can be shared.
    if markers.bos is None or (whole.lengths == 0).any() or (tokens[starts] != markers.bos).any():
        return np.empty(0, dtype=np.int32)
    # Some templates open every turn with BOS (SmolLM2: <|im_start|>; Llama-2). Then the first one belongs to its turn,
    # and without it the one-shot sequence would be no rendering of both turns.
    places = np.flatnonzero(tokens == markers.bos)
    sample = np.searchsorted(whole.offsets, places, side="right") - 1
    opens_turns = ((starts[sample] < places) & (places < prompt_ends[sample])).any()
    if opens_turns or (len(header) > 0 and header[0] == markers.bos):
        return np.empty(0, dtype=np.int32)
    return np.asarray([markers.bos], dtype=np.int32)


def _check_usable(pool: Pool) -> None:
    if not (pool.response_tokens > 0).any():
        raise ValueError(
            "Not one sample of the pool has a response token: all labels are -100. If a maximum length cut the "
            "responses off, raise it."
        )
    if not pool.has_prompt_and_response.any():
        raise ValueError(
            "No prompt can be told from the response: in every sample of the pool the labels begin with the first "
            "token, and the tokenizer's chat template finds no assistant's turn. MIWV is defined for instruction and "
            "response. Give prompt/completion pairs or messages instead of plain text, and a tokenizer with the chat "
            "template that rendered them as `processing_class`."
        )
