"""What a pool knows of its samples, and what its fingerprint tells apart."""

import datasets
import numpy as np
import pytest

from miwv_trainer.data.pool import Pool
from miwv_trainer.data.preamble import build_pool
from miwv_trainer.data.turn_markers import TurnMarkers
from tests.helpers.tokenized import (
    BOS,
    IDS,
    MASKS,
    NO_MARKERS,
    MapStyle,
    labelled_rows,
    pool_from,
    pool_of,
)


@pytest.mark.parametrize(
    "masks, prompts, responses",
    [
        ([[0, 0, 1], [0, 1]], [2, 1], [1, 1]),
        ([[0, 1, 0, 1], [0, 0, 1]], [1, 2], [2, 1]),
        ([[0, 0], [0, 1]], [2, 1], [0, 1]),
        ([[0, 1], [0, 0, 0]], [1, 3], [1, 0]),
        ([[0, 0], [0, 0, 0], [0, 1, 1], [0], [0, 0]], [2, 3, 1, 1, 2], [0, 0, 2, 0, 0]),
        ([[1, 1], [0, 1], [1, 0, 1]], [0, 1, 0], [2, 1, 2]),
        ([[], [0, 0, 1, 0], []], [0, 2, 0], [0, 1, 0]),
        ([[0, 1], [1], [1, 0]], [1, 0, 0], [1, 1, 1]),
    ],
    ids=[
        "one response each",
        "two spans",
        "no response in the first",
        "no response in the last",
        "no response around one",
        "response from the first token on",
        "empty samples",
        "neighbours that touch",
    ],
)
def test_prompt_ends_at_the_first_response_token_and_all_response_tokens_are_counted(masks, prompts, responses):
    pool = pool_of([list(range(20, 20 + len(mask))) for mask in masks], masks)
    assert pool.prompt_tokens.tolist() == prompts
    assert pool.response_tokens.tolist() == responses
    assert pool.lengths.tolist() == [len(mask) for mask in masks]
    assert pool.has_prompt_and_response.tolist() == [p > 0 and r > 0 for p, r in zip(prompts, responses, strict=True)]


def test_prompt_and_preamble_are_not_counted_twice():
    pool = pool_of([[BOS, 5, 6, 7], [BOS, 8, 9]], [[0, 0, 0, 1], [0, 0, 1]], TurnMarkers(bos=BOS))
    assert pool.preamble.tolist() == [BOS]
    assert pool.prompt_tokens.tolist() == [2, 1]
    assert [pool.prompt(index).tolist() for index in range(2)] == [[5, 6], [8]]
    assert pool.sample(0).tolist() == [5, 6, 7]


def test_the_fingerprint_changes_with_every_single_token():
    base = pool_of(IDS, MASKS).fingerprint
    for sample, ids in enumerate(IDS):
        for position in range(len(ids)):
            changed = [list(other) for other in IDS]
            changed[sample][position] += 100
            assert pool_of(changed, MASKS).fingerprint != base


def test_the_fingerprint_changes_with_every_single_position_of_the_mask():
    base = pool_of(IDS, MASKS).fingerprint
    for sample, mask in enumerate(MASKS):
        for position in range(len(mask)):
            changed = [list(other) for other in MASKS]
            changed[sample][position] = 1 - changed[sample][position]
            assert pool_of(IDS, changed).fingerprint != base


def test_the_fingerprint_tells_where_samples_end_and_in_which_order_they_come():
    two_one = pool_of([[5, 6, 7], [8]], [[0, 1, 1], [0]])
    one_two = pool_of([[5, 6], [7, 8]], [[0, 1], [1, 0]])
    swapped = pool_of([[8], [5, 6, 7]], [[0], [0, 1, 1]])
    assert two_one.tokens.tolist() == one_two.tokens.tolist()
    assert len({two_one.fingerprint, one_two.fingerprint, swapped.fingerprint}) == 3


def test_the_fingerprint_changes_with_the_preamble():
    ids, masks = [[BOS, 5, 6], [BOS, 7, 8]], [[0, 0, 1]] * 2
    other = [[9, *sample[1:]] for sample in ids]
    with_bos = pool_of(ids, masks, TurnMarkers(bos=BOS))
    with_other = pool_of(other, masks, TurnMarkers(bos=9))
    assert with_bos.tokens.tolist() == with_other.tokens.tolist()
    assert with_bos.fingerprint != with_other.fingerprint


def test_the_fingerprint_ignores_texts_and_the_width_of_integers():
    pool = pool_of(IDS, MASKS)
    wide = Pool(
        pool.preamble.astype(np.int64),
        pool.tokens.astype(np.int64),
        pool.is_response.astype(np.uint8),
        pool.offsets,
        texts=["a", "b", "c"],
    )
    assert wide.fingerprint == pool.fingerprint


def test_only_samples_with_equal_tokens_and_equal_response_are_duplicates():
    ids = [[5, 6, 7], [5, 6], [5, 6, 7], [5, 6, 7], [5, 6], [5, 6, 8]]
    masks = [[0, 0, 1], [0, 1], [0, 0, 1], [0, 1, 1], [0, 1], [0, 0, 1]]
    groups = pool_of(ids, masks).duplicate_groups.tolist()
    same = {(a, b) for a in range(6) for b in range(a + 1, 6) if groups[a] == groups[b]}
    assert same == {(0, 2), (1, 4)}


@pytest.mark.parametrize("build", [MapStyle, list, datasets.Dataset.from_list])
def test_an_empty_pool_is_refused(build):
    with pytest.raises(ValueError, match="The pool is empty: give at least two samples"):
        pool_from(build([]))
    with pytest.raises(ValueError, match="The pool is empty"):
        build_pool([], NO_MARKERS)


@pytest.mark.parametrize("build", [MapStyle, datasets.Dataset.from_list])
def test_a_pool_of_one_sample_is_refused(build):
    with pytest.raises(ValueError, match="The pool has one sample: every sample needs another one as its exemplar"):
        pool_from(build(labelled_rows()[:1]))
    with pytest.raises(ValueError, match="The pool has one sample"):
        pool_of(IDS[:1], MASKS[:1])
