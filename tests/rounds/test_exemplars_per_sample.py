"""Samples scored behind several exemplars each: the losses of plain forwards, and the influence that they add up to."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from miwv_trainer import MIWVConfig, Pool, pool_from_rows, score_and_select, select_again
from miwv_trainer.report.explanations import explain_selection
from miwv_trainer.report.page_data import build_data
from miwv_trainer.rounds.identity import fingerprint_exemplars
from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import StoredRound
from miwv_trainer.training.resume import keep_exemplars
from tests.helpers.interrupted import Killed, counted
from tests.helpers.tiny import tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.tiny_rounds import exemplars_of, finished_round, loss_by_hand

COUNT, MANY = 24, 3
CONFIG = MIWVConfig(score="influence", exemplars_per_sample=MANY, embedder="tfidf", fraction=0.125)
ONE = MIWVConfig(score="influence", embedder="tfidf", fraction=0.125)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return pool_from_rows(tiny_dataset(COUNT), tiny_tokenizer())


def add_up(current: StoredRound) -> list[float]:
    """The influence of each sample, from the columns of scores.parquet, pair by pair."""
    gains: dict[int, list[float]] = {sample: [] for sample in range(len(current.scores))}
    for line in current.scores.to_pylist():
        pairs = [(line["exemplar"], line["one_shot_loss"])]
        pairs += zip(line["further_exemplars"] or [], line["further_losses"] or [], strict=True)
        for exemplar, loss in pairs:
            gains[exemplar].append(line["zero_shot_loss"] - loss)
    return [float(np.mean(each)) if each else np.nan for each in gains.values()]


@pytest.fixture(scope="module")
def in_trees(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> StoredRound:
    config = dataclasses.replace(CONFIG, layout="tree")
    return finished_round(tiny_model(), pool, Store(tmp_path_factory.mktemp("trees")), config)


def test_losses_behind_each_exemplar_are_those_of_plain_forwards(pool: Pool, in_trees: StoredRound) -> None:
    model = tiny_model().eval()
    exemplars, losses = in_trees.ranked("exemplar"), in_trees.ranked("one_shot_loss")
    assert exemplars.shape == losses.shape == (COUNT, MANY)
    expected = [
        [
            loss_by_hand(
                model,
                np.concatenate([pool.preamble, pool.sample(exemplar)]),
                pool.sample(sample),
                pool.response_mask(sample),
            )
            for exemplar in exemplars[sample]
        ]
        for sample in range(COUNT)
    ]
    np.testing.assert_allclose(losses, expected, atol=1e-5, rtol=0)
    assert all(len({sample, *exemplars[sample].tolist()}) == MANY + 1 for sample in range(COUNT))
    similarities = in_trees.ranked("similarity")
    assert (np.diff(similarities, axis=1) <= 1e-6).all() and np.ptp(similarities) > 0.1


def test_trees_and_padded_rows_agree_and_trees_forward_far_fewer_tokens(
    pool: Pool, in_trees: StoredRound, tmp_path: Path
) -> None:
    padded = finished_round(tiny_model(), pool, Store(tmp_path), dataclasses.replace(CONFIG, layout="padded"))
    np.testing.assert_array_equal(padded.ranked("exemplar"), in_trees.ranked("exemplar"))
    np.testing.assert_allclose(padded.ranked("one_shot_loss"), in_trees.ranked("one_shot_loss"), atol=1e-5)
    np.testing.assert_allclose(padded.column("score"), in_trees.column("score"), atol=1e-5)
    assert padded.selection.tolist() == in_trees.selection.tolist()
    # Each sample once as a trunk and behind three of them, against once alone and three times with its exemplar.
    tokens = int(pool.lengths.sum())
    assert in_trees.summary["tokens_forwarded"] < 0.75 * padded.summary["tokens_forwarded"]
    assert 4 * tokens <= in_trees.summary["tokens_forwarded"]


def test_more_samples_have_an_influence_and_it_is_the_mean_over_all_pairs(
    pool: Pool, in_trees: StoredRound, tmp_path: Path
) -> None:
    one = finished_round(tiny_model(), pool, Store(tmp_path), ONE)
    for current in (one, in_trees):
        np.testing.assert_allclose(current.column("score"), add_up(current), atol=1e-6)
        assert (
            current.selection.tolist()
            == np.sort(np.argsort(-np.nan_to_num(current.column("score"), nan=-9))[:3]).tolist()
        )
    assert in_trees.summary["unscorable"] < one.summary["unscorable"]
    # What belongs to the nearest exemplar is the same as without the others.
    np.testing.assert_allclose(in_trees.column("miwv"), one.column("miwv"), atol=1e-5)
    assert in_trees.column("exemplar").tolist() == one.column("exemplar").tolist()
    # Another selection, and the report, use every pair that the round holds.
    again = select_again(in_trees, dataclasses.replace(ONE, fraction=0.25))
    np.testing.assert_array_equal(again.scores, in_trees.column("score"))
    np.testing.assert_array_equal(explain_selection(in_trees).scores, in_trees.column("score"))
    by_miwv = select_again(in_trees, MIWVConfig(fraction=0.125))
    assert set(by_miwv.selection) == set(np.argsort(-one.column("miwv"))[:3])


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_killed_round_goes_on_and_ends_the_same(layout: str, dtype: torch.dtype, pool: Pool, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, layout=layout, tokens_per_batch=64, tokens_per_row=64)
    model = tiny_model(seed=3).to(dtype)
    whole = counted(model)
    undisturbed = finished_round(model, pool, Store(tmp_path / "undisturbed"), config)
    assert bool(undisturbed.summary["refined_samples"]) == (dtype == torch.bfloat16)
    for share in (0.6, 0.9):
        model = tiny_model(seed=3).to(dtype)
        before = counted(model, most=int(share * len(whole)))
        with pytest.raises(Killed):
            finished_round(model, pool, Store(tmp_path / str(share)), config)
        model = tiny_model(seed=3).to(dtype)
        after = counted(model)
        resumed = finished_round(model, pool, Store(tmp_path / str(share)), config)
        assert len(before) + len(after) < 1.2 * len(whole)
        assert resumed.scores.equals(undisturbed.scores)
        assert resumed.summary["tokens_forwarded"] == undisturbed.summary["tokens_forwarded"]
    assert finished_round(tiny_model(seed=3).to(dtype), pool, Store(tmp_path / "0.6"), config).was_there


def test_under_bfloat16_the_selection_is_float32s(pool: Pool, tmp_path: Path) -> None:
    exact = finished_round(tiny_model(seed=3).to(torch.bfloat16).float(), pool, Store(tmp_path / "exact"), CONFIG)
    refined = finished_round(tiny_model(seed=3).to(torch.bfloat16), pool, Store(tmp_path / "low"), CONFIG)
    assert refined.summary["refined_samples"] > 0
    assert refined.selection.tolist() == exact.selection.tolist()


def test_where_fewer_fit_the_context_a_sample_has_fewer(tmp_path: Path) -> None:
    pool = pool_from_rows(tiny_dataset(COUNT), tiny_tokenizer())
    lengths = np.sort(pool.lengths)
    context = len(pool.preamble) + int(lengths[-1] + lengths[2])  # beside the longest, three of the shortest at most
    config = dataclasses.replace(CONFIG, exemplars_per_sample=8, scoring_max_length=context)
    for layout in ("tree", "padded"):
        current = finished_round(
            tiny_model(), pool, Store(tmp_path / layout), dataclasses.replace(config, layout=layout)
        )
        ranked = current.ranked("exemplar")
        fits = pool.lengths[:, None] + pool.lengths[ranked] + len(pool.preamble) <= context
        assert (fits | (ranked < 0)).all() and 0 < (ranked < 0).sum() < ranked.size
        assert (np.isnan(current.ranked("one_shot_loss")) == (ranked < 0)).all()
        np.testing.assert_allclose(current.column("score"), add_up(current), atol=1e-6)


def test_a_pool_of_two_has_one_exemplar_each_whatever_is_asked_for(tmp_path: Path) -> None:
    pool = pool_from_rows(tiny_dataset(2), tiny_tokenizer())
    current = finished_round(tiny_model(), pool, Store(tmp_path), dataclasses.replace(CONFIG, fraction=0.5))
    assert current.ranked("exemplar").tolist() == [[1, -1, -1], [0, -1, -1]]
    np.testing.assert_allclose(current.column("score"), -current.column("miwv")[::-1], atol=1e-6)
    assert finished_round(tiny_model(), pool, Store(tmp_path), dataclasses.replace(CONFIG, fraction=0.5)).was_there


def test_losses_of_another_run_serve_as_many_exemplars_or_fewer(
    pool: Pool, in_trees: StoredRound, tmp_path: Path
) -> None:
    source = str(in_trees.folder.parent.parent)
    for count in (MANY, 2, 1):
        config = dataclasses.replace(ONE, exemplars_per_sample=count, scores_from=source)
        model = tiny_model()
        forwards = counted(model)
        taken = score_and_select(model, pool, config, tmp_path / str(count))
        assert not forwards and taken.ranked("exemplar").tolist() == in_trees.ranked("exemplar")[:, :count].tolist()
        np.testing.assert_allclose(taken.column("score"), add_up(taken), atol=1e-6)
        np.testing.assert_array_equal(taken.ranked("one_shot_loss"), in_trees.ranked("one_shot_loss")[:, :count])
        assert score_and_select(tiny_model(), pool, config, tmp_path / str(count)).was_there
    miwv = score_and_select(tiny_model(), pool, MIWVConfig(embedder="tfidf", scores_from=source), tmp_path / "miwv")
    assert miwv.ranked("exemplar").shape == (COUNT, 1)
    with pytest.raises(
        ValueError, match="behind fewer exemplars: .* made with exemplars_per_sample = 3, this run has .* = 4. Set"
    ):
        score_and_select(
            tiny_model(), pool, dataclasses.replace(CONFIG, exemplars_per_sample=4, scores_from=source), tmp_path / "4"
        )


def test_exemplars_are_written_again_from_their_round(pool: Pool, tmp_path: Path) -> None:
    store = Store(tmp_path)
    current = finished_round(tiny_model(), pool, store, CONFIG)
    (store.folder / "exemplars.parquet").unlink()
    keep_exemplars(store, current, fingerprint_exemplars(pool, CONFIG, 512))
    again = exemplars_of(tiny_model(), pool, store, CONFIG)
    np.testing.assert_array_equal(again.ranked, current.ranked("exemplar"))
    np.testing.assert_array_equal(again.ranked_similarities, current.ranked("similarity"))


def test_the_report_lists_further_exemplars_where_there_are_some(
    pool: Pool, in_trees: StoredRound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[bytes] = []
    monkeypatch.setattr("miwv_trainer.report.page_data.pack_json", lambda data: shown.append(data) or "")
    build_data([in_trees], None, 10**6)
    assert str(in_trees.ranked("exemplar")[:, 1:].tolist()).replace(" ", "").encode() in shown[0]
    build_data([finished_round(tiny_model(), pool, Store(tmp_path), ONE)], None, 10**6)
    assert b'"furtherExemplars":null' in shown[1]


@pytest.mark.parametrize("score", ["miwv", "residual_miwv", "ifd", "random", np.arange(3.0)])
def test_other_scores_take_one_exemplar_a_sample(score: object) -> None:
    with pytest.raises(ValueError, match=r'`exemplars_per_sample` is 2, but more than 1 is for `score="influence"`'):
        MIWVConfig(score=score, exemplars_per_sample=2)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "2"])
def test_the_number_is_whole_and_at_least_one(count: object) -> None:
    with pytest.raises(ValueError, match="`exemplars_per_sample` must be a whole number of at least 1, but got"):
        MIWVConfig(score="influence", exemplars_per_sample=count)
