"""
The samples of a pool known by their content, so that they are found again in a file.

The price is reading the text columns once, or decoding the tokens where the dataset has no such columns: 55 and 70 µs
of CPU time for a sample of 85 tokens (20,000 of them, one core of an AMD EPYC, 2026-11-30).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from miwv_trainer.data.columns import ColumnNames
from miwv_trainer.data.conversation import Row
from miwv_trainer.data.instructions import cut_users_words
from miwv_trainer.data.map_style import ROWS_AT_ONCE, MapStyleDataset, has_own_columns, iterate_rows
from miwv_trainer.data.pool import Pool, SampleHashes
from miwv_trainer.data.sample_hashes import hash_ids
from miwv_trainer.data.sample_texts import (
    KNOWN,
    UNKNOWN,
    RowHashes,
    hash_answer,
    hash_row,
    hash_whole,
    hash_words,
)
from miwv_trainer.data.turn_markers import TurnMarkers, make_blank_test


class DecodedSample(NamedTuple):
    """
    What the tokens of a sample say.

    Args:
        whole: Everything, special tokens included.
        question: The last user's words before the first response.
        answers: The gapless parts of the response.
    """

    whole: str
    question: str
    answers: list[str]


def hash_samples(
    dataset: MapStyleDataset,
    pool: Pool,
    tokenizer: PreTrainedTokenizerBase | None,
    markers: TurnMarkers,
    columns: ColumnNames | None = None,
) -> SampleHashes:
    """
    The hashes of a pool's samples, from the columns of its dataset as far as they tell, else from its tokens.

    Args:
        dataset: The N rows that the pool was made of.
        tokenizer: None leaves out what would have to be decoded.
        columns: The dataset's own names of what is read.
    """
    # A dataset that tokenises when it is indexed is not read a second time for nothing.
    rows = hash_rows(dataset, columns) if hash_row(dataset[0], columns).texts else []
    told = np.array([(row.texts[0] if row.texts else UNKNOWN, row.words, row.answer) for row in rows], dtype=np.uint64)
    told = told.reshape(-1, 3) if len(told) else np.zeros((len(pool), 3), dtype=np.uint64)
    from_columns = bool((told[:, 0] != UNKNOWN).any())
    missing = np.flatnonzero((told == UNKNOWN).all(axis=1) | (told[:, 1] == UNKNOWN))
    if tokenizer is not None and len(missing):
        decoded = np.array(list(_hash_tokens(pool, missing, tokenizer, markers)), dtype=np.uint64)
        told[missing] = np.where(told[missing] == UNKNOWN, decoded, told[missing])
    ids = [hash_ids(np.concatenate([pool.preamble, pool.sample(i), pool.response_mask(i)])) for i in range(len(pool))]
    text, words, answer = told.T
    return SampleHashes(np.array(ids, dtype=np.uint64), text, words, answer, from_columns)


def hash_rows(dataset: MapStyleDataset, columns: ColumnNames | None = None) -> list[RowHashes]:
    """The hashes of all rows."""
    return [hash_row(row, columns) for row in iterate_texts(dataset, columns)]


def iterate_texts(dataset: MapStyleDataset, columns: ColumnNames | None = None) -> Iterator[Row]:
    """All rows in order, if possible without the columns that say nothing as text."""
    if isinstance(dataset, datasets.Dataset) and has_own_columns(dataset):
        # Columns of token ids or of images are not decoded: they are most of the dataset.
        known = {*KNOWN, *(columns or {}).values()}
        if known & set(dataset.column_names):
            dataset = dataset.select_columns([name for name in dataset.column_names if name in known])
    return iterate_rows(dataset)


def _hash_tokens(
    pool: Pool, indices: np.ndarray, tokenizer: PreTrainedTokenizerBase, markers: TurnMarkers
) -> Iterator[tuple[int, int, int]]:
    """Hashes of everything that a sample says, of its last question with its answers, and of these."""
    for each in decode_samples(pool, indices.tolist(), tokenizer, markers):
        yield hash_whole(each.whole), hash_words(each.question, each.answers), hash_answer(each.answers)


def decode_samples(
    pool: Pool, indices: Sequence[int], tokenizer: PreTrainedTokenizerBase, markers: TurnMarkers
) -> Iterator[DecodedSample]:
    """What the tokens of some samples say, in order."""
    is_blank = make_blank_test(tokenizer)
    for start in range(0, len(indices), ROWS_AT_ONCE):
        part = indices[start : start + ROWS_AT_ONCE]
        wholes = tokenizer.batch_decode([np.concatenate([pool.preamble, pool.sample(index)]) for index in part])
        questions = tokenizer.batch_decode(
            [cut_users_words(pool.prompt(index), markers, is_blank, of_last_turn=True) for index in part],
            skip_special_tokens=True,
        )
        for index, whole, question in zip(part, wholes, questions, strict=True):
            answers = tokenizer.batch_decode(_list_answers(pool, index), skip_special_tokens=True)
            yield DecodedSample(whole, question, answers)


def _list_answers(pool: Pool, index: int) -> list[np.ndarray]:
    """The response tokens of a sample, one array for each gapless part."""
    mask, sample = pool.response_mask(index), pool.sample(index)
    borders = np.flatnonzero(np.diff(mask)) + 1
    return [
        part for part, marked in zip(np.split(sample, borders), np.split(mask, borders), strict=True) if marked.any()
    ]
