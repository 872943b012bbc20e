"""Scores of the user's own: what is taken, how it is named, and what is said of numbers that are none."""

import functools
import logging
import re
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch

from miwv_trainer import MIWVConfig
from miwv_trainer.own_scores import StoredScore, describe_score, validate_scores
from miwv_trainer.selection.scores import get_score, needs_exemplars, read_given_scores, score_samples
from tests.helpers.measured import measured
from tests.helpers.own_scores import easiest_first, in_vain, shortest_first, too_many


class Quality:
    def __call__(self, measured: Any) -> Any:
        return measured.response_tokens

    def rank(self, measured: Any) -> Any:
        return measured.response_tokens


@pytest.mark.parametrize(
    "score, name",
    [
        (shortest_first, "tests.helpers.own_scores:shortest_first"),
        (Quality().rank, "tests.selection.test_own_scores:Quality.rank"),
        (np.zeros(3), "array of shape (3,)"),
        (torch.zeros(3), "array of shape (3,)"),
        (StoredScore("my:own"), "my:own"),
        ("longest", "longest"),
    ],
)
def test_a_score_is_known_by_its_name_or_its_shape(score: Any, name: str) -> None:
    assert describe_score(score) == name == MIWVConfig(score=score).to_dict()["score"]


@pytest.mark.parametrize(
    "score, given",
    [
        (lambda measured: measured.miwv, "a lambda, which has no name by which a resumed run could know it"),
        (functools.partial(shortest_first), "an object of type partial: call it in a function"),
        (Quality(), "an object of type Quality: call it in a function"),
        (np.zeros((3, 1)), r"an array of shape \(3, 1\)"),
        ([0.1, 0.2], "a list, which `numpy.asarray` turns into an array"),
        (datasets.Dataset.from_dict({"a": [0.1, 0.2]})["a"], "a Column, which `numpy.asarray` turns into an array"),
        (pandas.Series([0.1, 0.2]), "a Series, which `numpy.asarray` turns into an array"),
        ({"a": 0.1}, "{'a': 0.1}"),
        (0.5, "0.5"),
        (None, "None"),
    ],
)
def test_what_is_no_score_is_refused_with_what_is(score: Any, given: str) -> None:
    words = rf"`score` must be one of 'miwv', .*, a function, or an array of shape \(N,\) .* but got {given}"
    with pytest.raises(ValueError, match=words):
        MIWVConfig(score=score)


@pytest.mark.parametrize(
    "values, words",
    [
        (np.zeros(4), r"S must give one number for each of the pool's 3 samples, .* gave shape \(4,\) of float64"),
        (np.zeros((3, 1)), r"gave shape \(3, 1\) of float64"),
        (np.array(["a", "b", "c"]), r"gave shape \(3,\) of <U1"),
        (None, r"gave shape \(\) of object"),
        ([1.0, np.inf, -np.inf], "S gave infinity, or numbers that float32 cannot hold, for 2 of 3 samples. Give NaN"),
        ([1.0, 1e60, 2.0], "that float32 cannot hold, for 1 of 3"),
    ],
)
def test_numbers_that_cannot_rank_are_refused(values: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        validate_scores(values, 3, "S")


@pytest.mark.parametrize(
    "values",
    [
        *([1, np.nan, 3], (1, np.nan, 3), torch.tensor([1, torch.nan, 3])),
        torch.tensor([1, torch.nan, 3], dtype=torch.bfloat16),  # which NumPy does not know
        torch.tensor([1, torch.nan, 3], requires_grad=True),
        np.ma.masked_equal([1, 7, 3], 7),
        np.ma.masked_array([1.0, 2.0, 3.0], mask=[False, True, False]),
    ],
)
def test_numbers_of_any_kind_become_float32(values: Any) -> None:
    found = validate_scores(values, 3, "S")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [1, np.nan, 3])
    assert validate_scores([True, False, True], 3, "S").tolist() == [1, 0, 1]


def test_numbers_that_float32_does_not_tell_apart_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    seconds = 1_700_000_000 + np.arange(3)
    with caplog.at_level(logging.WARNING):
        validate_scores(seconds, 3, "the time")
        validate_scores(seconds, 3, "the time")
        validate_scores(seconds - seconds[0], 3, "the age")
    assert [line.partition(":")[0] for line in caplog.messages] == [
        "the time gave 3 distinct numbers, of which float32 tells 1 apart"
    ]


def test_a_function_gets_what_is_known_and_needs_no_losses_unless_they_are_asked_for() -> None:
    table = measured([0.5, 0.1, 0.9], tokens=[7, 3, 5])
    record = get_score(MIWVConfig(score=shortest_first))
    assert not record.needs_forwards and not needs_exemplars(MIWVConfig(score=shortest_first))
    np.testing.assert_array_equal(score_samples(table, record, np.array([True, True, False])), [-7, -3, np.nan])
    assert get_score(MIWVConfig(score=easiest_first, extra_losses="zero_shot")).losses == {"zero_shot"}
    assert needs_exemplars(MIWVConfig(score="longest", extra_losses="both"))
    assert record.label == record.ranking_label == "shortest_first"
    np.testing.assert_array_equal(record.difficulty(table), [-7, -3, -5])  # type: ignore[misc]


def test_a_function_that_gives_too_much_is_named() -> None:
    record = get_score(MIWVConfig(score=too_many))
    with pytest.raises(ValueError, match=r"`score` tests.helpers.own_scores:too_many must give one number for each of"):
        score_samples(measured([1, 2]), record, np.ones(2, dtype=bool))
    with pytest.raises(ValueError, match="`score` tests.helpers.own_scores:in_vain failed: KeyError: 'quality'"):
        score_samples(measured([1, 2]), get_score(MIWVConfig(score=in_vain)), np.ones(2, dtype=bool))


def test_scores_are_given_by_an_array_or_a_column() -> None:
    values = np.array([3.0, 1.0], dtype=np.float32)
    assert read_given_scores(MIWVConfig(), None, 2) is None
    assert read_given_scores(MIWVConfig(score=shortest_first), None, 2) is None
    np.testing.assert_array_equal(read_given_scores(MIWVConfig(score=values), None, 2), values)
    np.testing.assert_array_equal(read_given_scores(MIWVConfig(score_column="q"), values, 2), values)
    with pytest.raises(ValueError, match=r"`score` must give one number for each of the pool's 3 samples"):
        read_given_scores(MIWVConfig(score=values), None, 3)
    with pytest.raises(ValueError, match="`score_column` is 'q', but the pool has no numbers of it: .* as an array"):
        read_given_scores(MIWVConfig(score_column="q"), None, 2)
    with pytest.raises(ValueError, match="ranked by scores of your own, but none were given"):
        get_score(MIWVConfig(score=StoredScore("my:own"))).formula(replace(measured([1]), given=None))


def test_a_column_is_a_score_of_its_own() -> None:
    config = MIWVConfig(score_column="quality")
    assert config.score == "column" and config == MIWVConfig(score="column", score_column="quality")
    assert get_score(config).label == "quality"
    for values in (
        {"score": "longest", "score_column": "quality"},
        {"score": "miwv", "score_column": "quality"},
        {"score": shortest_first, "score_column": "quality"},
    ):
        with pytest.raises(ValueError, match="`score_column` is .*, but `score` is .*: give a `score_column` with"):
            MIWVConfig(**values)
    with pytest.raises(ValueError, match="`score_column` must be a column's name as text, but got 5"):
        MIWVConfig(score_column=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values, named",
    [
        ({"score": shortest_first}, "`score=tests.helpers.own_scores:shortest_first`"),
        ({"score": np.zeros(3)}, "`score=array of shape (3,)`"),
        ({"score_column": "quality"}, "`score_column='quality'`"),
        ({"score": "longest"}, "`score='longest'`"),
    ],
)
def test_a_band_of_losses_needs_losses(values: dict[str, Any], named: str) -> None:
    words = f"but {named} makes no forward, so that there are no losses."
    with pytest.raises(ValueError, match=re.escape(words)):
        MIWVConfig(loss_band=[0, 0.7], **values)
    with pytest.raises(ValueError, match="The `preset` 'guarded' sets `loss_band` .*" + re.escape(words)):
        MIWVConfig(preset="guarded", **values)
    assert MIWVConfig(loss_band=[0, 0.7], extra_losses="zero_shot", **values).loss_band == [0, 0.7]
