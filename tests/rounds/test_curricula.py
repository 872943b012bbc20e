"""Rounds of other scores, with guards, and on a budget."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miwv_trainer import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.rounds.exemplars import find_exemplars
from miwv_trainer.rounds.identity import TrainingPoint
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import StoredRound
from tests.helpers.held import scoring_forwards
from tests.helpers.tiny import tiny_dataset, tiny_model, tiny_tokenizer

WORLD = World(0, 1, torch.device("cpu"))
COUNT = 32


@pytest.fixture(scope="module")
def pool() -> Pool:
    return pool_from_rows(tiny_dataset(60), tiny_tokenizer())


def a_round(
    model: Any, pool: Pool, folder: Path, config: MIWVConfig, number: int = 0, previous: StoredRound | None = None
) -> StoredRound:
    store = Store(folder)
    exemplars = find_exemplars(prepare_scorer(model, pool, config, WORLD), store, reuse=True)
    return run_round(
        prepare_scorer(model, pool, config, WORLD),
        exemplars,
        store,
        TrainingPoint(number, 5 * number),
        previous=previous,
    )


def test_the_zero_shot_loss_forwards_each_sample_once_and_finds_no_exemplars(pool: Pool, tmp_path: Path) -> None:
    model = tiny_model()
    config = MIWVConfig(fraction=0.2, score="zero_shot_loss", embedder="not/there")
    current = a_round(model, pool, tmp_path, config)
    expected = []
    for index in range(len(pool)):
        ids = torch.tensor(np.concatenate([pool.preamble, pool.sample(index)]).astype(np.int64))[None]
        is_response = np.concatenate([np.zeros(len(pool.preamble), bool), pool.response_mask(index)])
        labels = torch.where(torch.from_numpy(is_response)[None], ids, -100)
        with torch.no_grad():
            expected.append(float(model(input_ids=ids, labels=labels).loss))
    np.testing.assert_allclose(current.column("zero_shot_loss"), expected, atol=1e-5)
    assert current.selection.tolist() == np.sort(np.argsort(-np.asarray(expected), kind="stable")[:12]).tolist()
    assert np.isnan(current.column("one_shot_loss")).all() and (current.column("exemplar") == -1).all()
    padded = a_round(tiny_model(), pool, tmp_path / "both", MIWVConfig(embedder="tfidf", layout="padded"))
    assert current.summary["tokens_forwarded"] < 0.45 * padded.summary["tokens_forwarded"]


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_a_budgeted_round_scores_so_many_and_keeps_the_other_scores(
    layout: str, pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = MIWVConfig(
        fraction=0.1, embedder="tfidf", rescore_strategy="epoch", rescore_budget=0.3, layout=layout, sampler_seed=1
    )
    first = a_round(tiny_model(), pool, tmp_path / "budget", config)
    learnt = tiny_model(seed=1)
    full = a_round(learnt, pool, tmp_path / "full", dataclasses.replace(config, rescore_budget=1.0), 1, None)
    seen = scoring_forwards(learnt)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        second = a_round(learnt, pool, tmp_path / "budget", config, 1, first)
    ages = second.column("age")
    fresh = ages == 0
    assert fresh.sum() == int(0.3 * len(pool)) == second.summary["scored"]
    assert set(ages[~fresh]) == {1}
    for name in ("zero_shot_loss", "one_shot_loss", "miwv"):
        np.testing.assert_allclose(second.column(name)[fresh], full.column(name)[fresh], atol=1e-5)
        assert np.array_equal(second.column(name)[~fresh], first.column(name)[~fresh])
        assert np.abs(first.column(name) - full.column(name)).min() > 1e-4
    highest = np.argsort(-first.column("miwv"), kind="stable")[: round(0.6 * fresh.sum())]
    assert fresh[highest].all()
    ranked = np.argsort(-second.column("miwv"), kind="stable")
    assert second.selection.tolist() == sorted(ranked[:6].tolist())
    # Probes come first: of the head, of the model, of the layout where trees are compared.
    tokens = second.summary["tokens_forwarded"]
    assert tokens == sum(seen[-number_of_forwards(seen, tokens) :])
    assert tokens < full.summary["tokens_forwarded"] * 0.5
    (announced,) = [line for line in caplog.messages if "times the compute" in line]
    assert announced.startswith(f"Round 1 scores {fresh.sum()} of {len(pool)} samples: {tokens} tokens, about ")
    rate = first.summary["tokens_per_second"]
    of_epoch = 6 * (len(pool.preamble) + pool.lengths[first.selection].mean())
    assert f"at the {rate:.0f} tokens a second of before, {tokens / 3 / of_epoch:.2g} times the compute" in announced
    third = a_round(tiny_model(seed=2), pool, tmp_path / "budget", config, 2, second)
    assert set(third.column("age")) == {0, 1, 2}
    # Those unscored for longest go before others of the same last score, so that nothing is left for ever.
    for number in range(3, 9):
        third = a_round(tiny_model(seed=number), pool, tmp_path / "budget", config, number, third)
    assert third.column("age").max() <= 8


def number_of_forwards(seen: list[int], tokens: int) -> int:
    """How many of the last forwards have so many tokens together."""
    sums = np.cumsum(seen[::-1])
    assert tokens in sums
    return int(np.flatnonzero(sums == tokens)[0]) + 1


def test_what_guards_forbid_is_not_scored_again(pool: Pool, tmp_path: Path) -> None:
    config = MIWVConfig(
        fraction=0.1, embedder="tfidf", rescore_strategy="epoch", rescore_budget=0.5, min_response_tokens=12
    )
    first = a_round(tiny_model(), pool, tmp_path, config)
    second = a_round(tiny_model(seed=1), pool, tmp_path, config, 1, first)
    is_short = pool.response_tokens < 12
    assert 0 < is_short.sum() < len(pool)
    assert not ((second.column("age") == 0) & is_short).any()
    assert not is_short[second.selection].any()
    assert second.summary["left_out"] == {"min_response_tokens=12": int(is_short.sum())}


@pytest.mark.parametrize("score", ["low_miwv", "zero_shot_loss", "residual_miwv"])
@pytest.mark.parametrize("guards", [{}, {"length_bands": 3}])
def test_under_bfloat16_the_selection_of_any_score_is_float32s(
    score: str, guards: dict[str, Any], pool: Pool, tmp_path: Path
) -> None:
    model = tiny_model(seed=3).to(torch.bfloat16)
    exact = a_round(
        tiny_model(seed=3).to(torch.bfloat16).float(),
        pool,
        tmp_path / "exact",
        config := MIWVConfig(fraction=0.2, embedder="tfidf", score=score, **guards),
    )
    refined = a_round(model, pool, tmp_path / "refined", config)
    assert refined.summary["refined_samples"] > 0
    assert refined.selection.tolist() == exact.selection.tolist()


def test_another_score_in_the_same_folder_does_not_reuse_the_rounds(tmp_path: Path, pool: Pool) -> None:
    rounds = [
        a_round(tiny_model(), pool, tmp_path, MIWVConfig(embedder="tfidf", fraction=0.2, score=score))
        for score in ("random", "miwv", "one_shot_loss")
    ]
    losses = rounds[2].column("one_shot_loss")
    assert rounds[2].selection.tolist() == sorted(np.argsort(-losses, kind="stable")[:12].tolist())
    assert (rounds[1].column("exemplar") >= 0).all()
    before = (rounds[2].folder / "scores.parquet").stat().st_mtime_ns
    again = a_round(tiny_model(), pool, tmp_path, MIWVConfig(embedder="tfidf", fraction=0.2, score="one_shot_loss"))
    assert (again.folder / "scores.parquet").stat().st_mtime_ns == before


def test_guards_that_leave_nothing_say_which(pool: Pool, tmp_path: Path) -> None:
    config = MIWVConfig(embedder="tfidf", min_response_tokens=10_000)
    with pytest.raises(ValueError, match=r"No sample .*: min_response_tokens=10000 leaves out 60. Loosen a guard"):
        a_round(tiny_model(), pool, tmp_path, config)


@pytest.mark.parametrize("values", [{"diversity": "facility_location"}, {"max_selected_similarity": 0.5}])
def test_embeddings_that_are_gone_are_made_again_but_not_by_a_model_that_has_learnt(
    values: dict[str, Any], pool: Pool, tmp_path: Path
) -> None:
    config = MIWVConfig(fraction=0.2, embedder="model", rescore_strategy="epoch", **values)
    first = a_round(tiny_model(), pool, tmp_path, config)
    (tmp_path / "miwv" / "embeddings.safetensors").unlink()
    with pytest.raises(ValueError, match="The embeddings in .* are gone, and the model that made them has learnt"):
        a_round(tiny_model(seed=1), pool, tmp_path, config, 1, first)
    text = dataclasses.replace(config, embedder="tfidf")
    first = a_round(tiny_model(), pool, tmp_path / "text", text)
    (tmp_path / "text" / "miwv" / "embeddings.safetensors").unlink()
    assert len(a_round(tiny_model(seed=1), pool, tmp_path / "text", text, 1, first).selection)
