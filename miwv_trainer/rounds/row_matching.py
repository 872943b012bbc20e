"""
A round of another run, brought to this run's samples by their texts, where another tokenizer has other token ids.

Both must hold the same rows, as exemplars and the selection are those of a pool. The order may differ.
"""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa

from miwv_trainer.data.pool import Pool
from miwv_trainer.data.sample_texts import UNKNOWN
from miwv_trainer.storage.stored_round import FURTHER, StoredRound

# What a sample is known by, strictest first, and what that is.
KEYS = {"text_hash": "everything they say", "words_hash": "their last question and its answers"}


def match_rows(source: StoredRound, pool: Pool) -> StoredRound:
    """
    A round whose lines stand in the order of the pool's samples, its exemplars numbered as in the pool. The column
    `index` holds their numbers in the other run.

    Samples are compared by everything they say if both runs know the columns of their dataset, else by the last
    question and its answers.

    Raises:
        ValueError: the texts of some samples are not known, rows were changed, added, left out or cut, or several fit.
    """
    name, theirs, ours = _choose_keys(source, pool)
    if not np.array_equal(np.sort(theirs), np.sort(ours)):
        raise ValueError(_explain_difference(source, name, theirs, ours))
    _check_whole(source, pool)
    if np.array_equal(theirs, ours):
        return source
    by_key, by_their_key = np.argsort(ours, kind="stable"), np.argsort(theirs, kind="stable")
    _check_one_fits(source, pool, name, by_key, by_their_key)
    order = np.empty(len(ours), dtype=np.int64)
    order[by_key] = by_their_key
    return _take(source, order)


def _choose_keys(source: StoredRound, pool: Pool) -> tuple[str, np.ndarray, np.ndarray]:
    """The name of the hashes that both runs have, and `(M,)` theirs and `(N,)` this run's."""
    hashes = pool.hashes
    both_columns = hashes is not None and hashes.from_columns and source.summary.get("texts_from") == "columns"
    name = "text_hash" if both_columns else "words_hash"
    theirs = source.column(name)
    ours = np.zeros(len(pool), dtype=np.uint64)
    if hashes is not None:
        ours = hashes.text if both_columns else hashes.words
    unknown, unknown_there = int((ours == UNKNOWN).sum()), int((theirs == UNKNOWN).sum())
    if unknown or unknown_there:
        raise ValueError(
            f'With `match="rows"`, samples are found by their texts, but those of {unknown} of this run\'s '
            f"{len(ours)} samples and of {unknown_there} of the {len(theirs)} in {source.folder} are not known. Keep "
            "the columns of text in the dataset, or give the Trainer its tokenizer as `processing_class`."
        )
    return name, theirs, ours


def _check_whole(source: StoredRound, pool: Pool) -> None:
    """Raises `ValueError` if samples were cut behind columns that hold the whole texts."""
    if pool.hashes is None or not pool.hashes.from_columns or pool.find_cut_samples is None:
        return
    cut = pool.find_cut_samples()
    if len(cut):
        raise ValueError(
            f"`scores_from` names scores of whole rows in {source.folder}, but {len(cut)} of this run's {len(pool)} "
            f"samples are cut: their tokens lack the end of the answer or the beginning of the question that stands "
            f"in the columns of text. The first is sample {cut[0]}. Raise the length at which samples are cut "
            "(`max_length`), or leave such rows out of both runs."
        )


def _explain_difference(source: StoredRound, name: str, theirs: np.ndarray, ours: np.ndarray) -> str:
    return (
        f"`scores_from` names scores of other rows: {source.folder} is of {len(theirs)} samples, this run's are "
        f"{len(ours)}. By {KEYS[name]}, {_describe_unpaired(ours, theirs)} of this run's samples are not there, and "
        f"{_describe_unpaired(theirs, ours)} of its samples are not here. Give both the same rows: score the file that "
        "is trained, and let the Trainer drop or cut no sample (`max_length`)."
    )


def _describe_unpaired(keys: np.ndarray, others: np.ndarray) -> str:
    """How many of some keys have no partner among others, and the first of them."""
    left = Counter(others.tolist())
    left.subtract(keys.tolist())
    unpaired = [place for place, key in enumerate(keys.tolist()) if left[key] < 0]
    count = -sum(each for each in left.values() if each < 0)
    if not unpaired:
        return str(count)
    return f"{count} (the first is sample {unpaired[0]}, hash {int(keys[unpaired[0]]):016x})"


def _check_one_fits(source: StoredRound, pool: Pool, name: str, by_key: np.ndarray, by_their_key: np.ndarray) -> None:
    """
    Raises `ValueError` if samples with equal texts differ in their token ids, so that their losses differ, and stand in
    another order than there.
    """
    assert pool.hashes is not None
    keys, contents = source.column(name)[by_their_key], source.column("ids_hash")[by_their_key]
    own_contents = pool.hashes.ids[by_key]
    differs = (contents[1:] != contents[:-1]) | (own_contents[1:] != own_contents[:-1])
    ambiguous = np.flatnonzero((keys[1:] == keys[:-1]) & differs)
    if len(ambiguous):
        one, other = sorted(int(by_key[ambiguous[0] + step]) for step in (0, 1))
        raise ValueError(
            f"`scores_from` names scores of the same rows in another order, and {len(ambiguous)} cannot be told from "
            f"another by {KEYS[name]}: samples {one} and {other} of this run, for one. Bring the rows to the order of "
            f"{source.folder}, or keep the columns of text in both datasets."
        )


def _take(source: StoredRound, order: np.ndarray) -> StoredRound:
    """The round with its lines in another order, and its exemplars renumbered."""
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    scores = source.scores.take(pa.array(order))
    exemplars = scores["exemplar"].fill_null(-1).to_numpy()
    renumbered = pa.array(np.where(exemplars >= 0, number[exemplars], -1), mask=exemplars < 0)
    further = [
        None if each is None else [None if one is None else int(number[one]) for one in each]
        for each in scores[FURTHER["exemplar"]].to_pylist()
    ]
    for name, column in (("exemplar", renumbered), (FURTHER["exemplar"], pa.array(further, pa.list_(pa.int64())))):
        scores = scores.set_column(scores.schema.get_field_index(name), scores.schema.field(name), column)
    return replace(source, scores=scores)
