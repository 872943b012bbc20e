"""Ticks and shades of charts."""

import numpy as np

from miwv_trainer.report.layers import Axis
from miwv_trainer.report.scales import grade_counts, place_ticks


def test_ticks_are_round_numbers_within_the_axis() -> None:
    assert [text for _, text in place_ticks(Axis("", -0.31, 0.52))] == ["-0.2", "0.0", "0.2", "0.4"]
    assert [text for _, text in place_ticks(Axis("", 0, 9_000))] == ["0", "2,000", "4,000", "6,000", "8,000"]
    assert [text for _, text in place_ticks(Axis("", -1.1, 2.2, is_whole=True))] == ["-1", "0", "1", "2"]
    assert [text for _, text in place_ticks(Axis("", 3, 150, is_log=True))] == ["5", "10", "20", "50", "100"]
    assert [text for _, text in place_ticks(Axis("", 1, 2_000, is_log=True))] == ["1", "10", "100", "1,000"]


def test_shades_grow_with_the_logarithm_of_the_count() -> None:
    shades = grade_counts(np.asarray([[0, 1, 3], [10, 100, 1000]]))
    assert shades.tolist() == [[0, 1, 2], [2, 4, 5]]  # ceil(5 log(1 + n) / log(1001))


def test_an_axis_with_ticks_of_its_own_keeps_them() -> None:
    assert place_ticks(Axis("", 0, 110, ticks=[(50, "half")])) == [(50, "half")]
