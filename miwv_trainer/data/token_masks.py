"""Rendered texts to token ids, and which of them are response.

Ids are compared, never strings: a tokenizer may merge across the boundary.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from miwv_trainer.data.pool import TokenizedSample, TurnMarkers, find_tokens


class RenderedText(NamedTuple):
    """
    A sample as text: the whole, and for each response the text before it and the text through its end.

    The end is None where the next user's turn opens right behind: a template may render the end of an earlier turn
    otherwise than that of the last one, so it cannot be seen by rendering the conversation up to there.
    """

    whole: str
    responses: list[tuple[str, str | None]]


class _Rest(NamedTuple):
    """What is left to encode of a text behind its first `known` tokens."""

    known: int
    text: str


def encode(
    texts: Sequence[RenderedText], tokenizer: PreTrainedTokenizerBase, markers: TurnMarkers, add_special_tokens: bool
) -> Iterator[TokenizedSample]:
    """Token ids and response mask of each text, in order; a fast tokenizer spreads the texts over its threads."""
    rows = {whole: row for row, whole in enumerate(dict.fromkeys(text.whole for text in texts))}
    encoded = _encode(list(rows), tokenizer, add_special_tokens)
    separators = {} if add_special_tokens else _separators(tokenizer)
    rests = {
        (text.whole, part): _rest(part, text.whole, encoded, rows[text.whole], separators)
        for text in texts
        for part in _beginnings(text)
    }
    pieces = list(dict.fromkeys(rest.text for rest in rests.values()))
    ids = dict(zip(pieces, _encode(pieces, tokenizer, add_special_tokens)["input_ids"], strict=True)) if pieces else {}
    eos = tokenizer.eos_token_id
    header = np.asarray(markers.user_header, dtype=np.int64)
    for text in texts:
        whole = encoded["input_ids"][rows[text.whole]]
        if add_special_tokens and eos is not None and whole[-2:] == [eos, eos]:
            whole = whole[:-1]  # one from the text, one from a tokenizer that ends every text with it
        array = np.asarray(whole, dtype=np.int64)
        is_response = np.zeros(len(array), dtype=bool)
        for before, through in text.responses:
            start = _shared(rests[text.whole, before], ids, whole)
            if through is None:
                end = start + find_tokens(array[start:], header)
            elif through == text.whole:
                end = len(whole)
            else:
                end = _shared(rests[text.whole, through], ids, whole)
            is_response[start:end] = True
        yield TokenizedSample(array, is_response)


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool) -> BatchEncoding:
    return tokenizer(texts, add_special_tokens=add_special_tokens, return_attention_mask=False)


def _beginnings(text: RenderedText) -> Iterator[str]:
    for before, through in text.responses:
        yield before
        if through is not None and through != text.whole:
            yield through


def _separators(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The added tokens for which a fast tokenizer searches the text as it stands, before all else."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.split_special_tokens:
        return {}
    added = tokenizer.added_tokens_decoder.items()
    return {number: token.content for number, token in added if not (token.normalized or token.single_word)}


def _rest(part: str, whole: str, encoded: BatchEncoding, row: int, separators: dict[int, str]) -> _Rest:
    """
    What of `part` must be encoded where `whole`, which is encoded, begins with it.

    A tokenizer encodes what stands between its separators piece by piece. So from the last separator that lies in
    `part` on, its tokens are those of the rest by itself, and the ones before are those of `whole`. This spares
    encoding every prompt twice.
    """
    if not separators or not part or not whole.startswith(part):
        return _Rest(0, part)
    ids, last = encoded["input_ids"][row], encoded.char_to_token(row, len(part) - 1)
    for position in range(-1 if last is None else last, -1, -1):
        if ids[position] not in separators:
            continue
        span = encoded.token_to_chars(row, position)
        if span is not None and separators[ids[position]] in part[span.start : span.end]:
            return _Rest(position, part[span.start :])
    return _Rest(0, part)


def _shared(rest: _Rest, ids: dict[str, list[int]], whole: list[int]) -> int:
    """How many tokens a text and `whole` begin with alike."""
    return rest.known + common_prefix(ids[rest.text], whole[rest.known :])


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many elements both begin with."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next(position for position in range(shorter) if left[position] != right[position])
