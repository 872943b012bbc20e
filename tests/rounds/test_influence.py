"""Influence: what a sample does for the losses of those that were scored behind it, counted again one by one."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from miwv_trainer import MIWVConfig, Pool, pool_from_rows, select_again
from miwv_trainer.report.explanations import explain_selection
from miwv_trainer.selection.measured import compute_influence
from miwv_trainer.storage.store import Store
from tests.helpers.measured import NAN, measured
from tests.helpers.selecting import select_highest
from tests.helpers.tiny import tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.tiny_rounds import finished_round

COUNT = 24
CONFIG = MIWVConfig(score="influence", embedder="tfidf", fraction=0.125)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return pool_from_rows(tiny_dataset(COUNT), tiny_tokenizer())


def test_a_worked_example() -> None:
    """Samples 1 and 2 were scored behind 0, 0 behind 3, and nobody behind 1 and 2."""
    table = dataclasses.replace(measured([0.5, -1.0, -0.5, 2.0]), exemplars=np.array([3, 0, 0, -1]))
    np.testing.assert_array_equal(compute_influence(table), np.float32([0.75, NAN, NAN, -0.5]))
    unknown = dataclasses.replace(measured([NAN, -1.0, NAN, 2.0]), exemplars=np.array([3, 0, 3, 1]))
    # 0 could not be scored, though 1 was scored behind it; of those behind 3, none could be.
    np.testing.assert_array_equal(compute_influence(unknown), np.float32([NAN, -2.0, NAN, NAN]))
    assert np.isnan(compute_influence(dataclasses.replace(unknown, exemplars=None))).all()


def test_a_worked_example_with_two_exemplars_a_sample() -> None:
    """
    Of a zero-shot loss of 2 everywhere. Behind 0 stand 1 (loss 1) and 3 (2.5): mean gain (1 - 0.5) / 2 = 0.25. Behind 1
    stand 0 (2.25) and 2 (1.5): (-0.25 + 0.5) / 2 = 0.125. Behind 2 stands 0 (1): 1.
    Behind 3 stands 1 without a finite loss, and nobody else.
    """
    table = dataclasses.replace(
        measured([0.25, -1.0, -0.5, 0.5]),
        exemplars=np.array([1, 0, 1, 0]),
        further_exemplars=np.array([[2], [3], [-1], [-1]]),
        further_losses=np.float32([[1.0], [NAN], [NAN], [NAN]]),
    )
    np.testing.assert_array_equal(compute_influence(table), np.float32([0.25, 0.125, 1.0, NAN]))
    nearest = dataclasses.replace(table, further_exemplars=None, further_losses=None)
    np.testing.assert_array_equal(compute_influence(nearest), np.float32([0.25, 0.125, NAN, NAN]))


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_influence_costs_what_miwv_costs_and_is_the_mean_over_those_behind(
    layout: str, pool: Pool, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, layout=layout)
    current = finished_round(tiny_model(), pool, Store(tmp_path / "influence"), config)
    plain = finished_round(
        tiny_model(), pool, Store(tmp_path / "miwv"), MIWVConfig(embedder="tfidf", layout=layout, fraction=0.125)
    )
    assert current.summary["tokens_forwarded"] == plain.summary["tokens_forwarded"]
    exemplars, zero_shot, one_shot = (plain.column(name) for name in ("exemplar", "zero_shot_loss", "one_shot_loss"))
    expected = []
    for sample in range(COUNT):
        helped = [zero_shot[i] - one_shot[i] for i in range(COUNT) if exemplars[i] == sample]
        expected.append(np.mean(helped) if helped else NAN)
    np.testing.assert_allclose(current.column("score"), expected, atol=1e-6)
    assert current.selection.tolist() == select_highest(current.column("score"), 3).tolist()
    assert 3 < np.isnan(expected).sum() == current.summary["unscorable"] < COUNT
    # A sample that is nobody's exemplar keeps its own losses, and the report says why it has no score.
    np.testing.assert_array_equal(current.column("miwv"), plain.column("miwv"))
    explained = explain_selection(current)
    lonely = int(np.flatnonzero(np.isnan(expected))[0])
    assert explained.phrases[explained.codes[lonely]] == "unscorable: no sample was scored behind it"
    assert select_again(plain, CONFIG).selection.tolist() == current.selection.tolist()


def test_guards_work_with_influence(pool: Pool, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, loss_band=[0.0, 0.6], min_similarity=0.3, min_response_tokens=4)
    current = finished_round(tiny_model(), pool, Store(tmp_path), config)
    assert (current.column("similarity")[current.selection] >= 0.3).all()
    assert (current.column("response_tokens")[current.selection] >= 4).all()
    assert set(current.summary["left_out"]) == {"min_response_tokens=4", "min_similarity=0.3", "loss_band=[0.0, 0.6]"}


def test_under_bfloat16_the_selection_is_float32s(pool: Pool, tmp_path: Path) -> None:
    exact = finished_round(tiny_model(seed=3).to(torch.bfloat16).float(), pool, Store(tmp_path / "exact"), CONFIG)
    refined = finished_round(tiny_model(seed=3).to(torch.bfloat16), pool, Store(tmp_path / "low"), CONFIG)
    assert refined.summary["refined_samples"] > 0
    assert refined.selection.tolist() == exact.selection.tolist()
