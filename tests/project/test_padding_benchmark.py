"""The count of padding in padded rows."""

import numpy as np
import pytest

from benchmarks.padding import measure_padding, plan_by_size
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.scoring.rows import ONE_SHOT, ZERO_SHOT, PaddedBatch
from tests.helpers.tiny import tiny_dataset, tiny_tokenizer


def test_padding_is_what_rows_lack_of_the_longest_in_their_forward() -> None:
    def make_batch(*lengths: int) -> PaddedBatch:
        return PaddedBatch(np.arange(len(lengths)), np.zeros(len(lengths), dtype=np.int64), np.array(lengths))

    # Rows of 10, 8 and 6 tokens take 30, of which 6 are padding; a row alone takes none.
    assert measure_padding([make_batch(10, 8, 6)]) == pytest.approx(6 / 30)
    assert measure_padding([make_batch(10, 8, 6), make_batch(20)]) == pytest.approx(6 / 50)


def test_every_sample_is_counted_without_and_behind_its_exemplar() -> None:
    pool = pool_from_rows(tiny_dataset(30), tiny_tokenizer())
    for batches in plan_by_size(pool, 512).values():
        kinds = np.concatenate([batch.kinds for batch in batches])
        assert (kinds == ZERO_SHOT).sum() == (kinds == ONE_SHOT).sum() == len(pool)
