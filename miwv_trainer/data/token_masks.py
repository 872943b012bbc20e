"""
Rendered texts to token ids, and which of them are response.

The boundary between prompt and response is found by comparing ids, never strings: a tokenizer may merge characters
across it, and the tokens of the prompt alone are then no prefix of the tokens of the whole.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from miwv_trainer.data.common_prefix import count_common_prefix
from miwv_trainer.data.pool import TokenizedSample
from miwv_trainer.data.turn_markers import TurnMarkers, find_tokens


class RenderedText(NamedTuple):
    """
    A sample as text: the whole, and for each response the text before it and the text up to its end.

    The second is None if the next user's turn follows directly. A template may render the end of an earlier turn
    differently from that of the last one, so rendering the conversation up to there would not show the end; the next
    user's header does.

    Args:
        adds_special_tokens: Whether the tokenizer adds its special tokens. A chat template writes them itself, and the
            tokenizer would add a second BOS.
        ends_once: Whether one EOS is dropped of two, one from the text and one that the tokenizer adds.
    """

    whole: str
    responses: list[tuple[str, str | None]]
    adds_special_tokens: bool = False
    ends_once: bool = False


class _Remainder(NamedTuple):
    """The end of a text that must be encoded: its first `known` tokens are those of the whole."""

    known: int
    text: str


def encode(
    texts: Sequence[RenderedText], tokenizer: PreTrainedTokenizerBase, markers: TurnMarkers
) -> list[TokenizedSample]:
    """Token ids and response mask of each text, in order."""
    samples: dict[int, TokenizedSample] = {}
    for add_special_tokens in (False, True):
        alike = {i: text for i, text in enumerate(texts) if text.adds_special_tokens is add_special_tokens}
        if alike:
            encoded = _encode_alike(list(alike.values()), tokenizer, markers, add_special_tokens)
            samples.update(zip(alike, encoded, strict=True))
    return [samples[number] for number in range(len(texts))]


def _encode_alike(
    texts: Sequence[RenderedText], tokenizer: PreTrainedTokenizerBase, markers: TurnMarkers, add_special_tokens: bool
) -> Iterator[TokenizedSample]:
    """
    Encodes texts that are alike in whether special tokens are added.

    All are encoded in two calls, because a fast tokenizer spreads the texts of one call over its threads.
    """
    # Each text once: pools hold the same sample several times, and many samples share a prompt.
    rows = {whole: row for row, whole in enumerate(dict.fromkeys(text.whole for text in texts))}
    encoded = _encode(list(rows), tokenizer, add_special_tokens)
    separators = {} if add_special_tokens else _find_separators(tokenizer)
    remainders = {
        (text.whole, part): _find_remainder(part, text.whole, encoded, rows[text.whole], separators)
        for text in texts
        for part in _list_beginnings(text)
    }
    # Most remainders are the few tokens of a generation prompt, equal for all samples.
    pieces = list(dict.fromkeys(remainder.text for remainder in remainders.values()))
    ids = dict(zip(pieces, _encode(pieces, tokenizer, add_special_tokens)["input_ids"], strict=True)) if pieces else {}
    eos = tokenizer.eos_token_id
    header = np.asarray(markers.user_header, dtype=np.int64)
    for text in texts:
        whole = encoded["input_ids"][rows[text.whole]]
        if text.ends_once and eos is not None and whole[-2:] == [eos, eos]:
            whole = whole[:-1]
        array = np.asarray(whole, dtype=np.int64)
        is_response = np.zeros(len(array), dtype=bool)
        for before, through in text.responses:
            start = _count_shared(remainders[text.whole, before], ids, whole)
            if through is None:
                end = start + find_tokens(array[start:], header)
            elif through == text.whole:
                end = len(whole)
            else:
                end = _count_shared(remainders[text.whole, through], ids, whole)
            is_response[start:end] = True
        yield TokenizedSample(array, is_response)


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool) -> BatchEncoding:
    return tokenizer(texts, add_special_tokens=add_special_tokens, return_attention_mask=False)


def _list_beginnings(text: RenderedText) -> Iterator[str]:
    """The texts whose number of tokens is needed."""
    for before, through in text.responses:
        yield before
        if through is not None and through != text.whole:
            yield through


def _find_separators(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The added tokens that a fast tokenizer finds in the text as it is, before it does anything else."""
    # A slow tokenizer does not say where in the text a token stands. Whether a token that is `normalized` or a
    # `single_word` is found depends on the text around it.
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.split_special_tokens:
        return {}
    added = tokenizer.added_tokens_decoder.items()
    return {number: token.content for number, token in added if not (token.normalized or token.single_word)}


def _find_remainder(part: str, whole: str, encoded: BatchEncoding, row: int, separators: dict[int, str]) -> _Remainder:
    """
    The end of `part` that must be encoded, given the encoded text `whole` that begins with `part`.

    A tokenizer encodes the text between two separators by itself. So the tokens of `part` are those of `whole` up to
    the last separator in `part`, and those of the remaining text alone. Without this, every prompt would be encoded
    twice.
    """
    if not separators or not part or not whole.startswith(part):
        return _Remainder(0, part)
    ids, last = encoded["input_ids"][row], encoded.char_to_token(row, len(part) - 1)
    for position in range(-1 if last is None else last, -1, -1):
        if ids[position] not in separators:
            continue
        span = encoded.token_to_chars(row, position)
        # A separator that ends beyond `part` is completed by the answer; the prompt alone does not hold it.
        if span is not None and separators[ids[position]] in part[span.start : span.end]:
            return _Remainder(position, part[span.start :])
    return _Remainder(0, part)


def _count_shared(remainder: _Remainder, ids: dict[str, list[int]], whole: list[int]) -> int:
    """The number of tokens with which both a text and `whole` begin."""
    return remainder.known + count_common_prefix(ids[remainder.text], whole[remainder.known :])
