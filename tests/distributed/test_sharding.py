"""Models that FSDP has split over two processes, or DDP has wrapped, are scored as one process scores them whole."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.pool import Pool
from miwv_trainer.embeddings.embedders import embed_texts
from miwv_trainer.embeddings.nearest import find_nearest_exemplars
from miwv_trainer.scoring.rows import make_prompt_row
from tests.helpers.held import plain_losses
from tests.helpers.launch import ROOT, fork_ranks
from tests.helpers.tiny import tiny_dataset, tiny_model, tiny_tokenizer
from tests.launched.sharded import HELD, MODELS, OPTIMIZERS, SHARDED, STEPS


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    output = tmp_path_factory.mktemp("sharded")
    done = fork_ranks(2, ROOT / "tests" / "launched" / "sharded.py", output)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "is scored by the logits" not in done.stderr  # the head is run by chunks wherever its weight lies
    assert "are not scored again in float32: the model's parameters are split over the ranks" in done.stderr
    found = [json.loads((output / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert [(rank["rank"], rank["world_size"]) for rank in found] == [(0, 2), (1, 2)]
    return found


def tiny_pool() -> Pool:
    return pool_from_rows(tiny_dataset(17), tiny_tokenizer())


@pytest.mark.parametrize("kind", SHARDED)
@pytest.mark.parametrize("name", MODELS)
def test_both_layouts_have_the_whole_models_losses(name: str, kind: str, ranks: list[dict[str, Any]]) -> None:
    pool = tiny_pool()
    exemplars, _ = find_nearest_exemplars(embed_texts("tfidf", pool.texts), pool, 512)
    expected = plain_losses(MODELS[name](), pool, exemplars)
    tolerance = 0.05 if name == "bfloat16" else 1e-5
    for rank in ranks:
        found = rank[kind][name]
        assert found["sharded"] and found["layout"] == "tree" and found["refined"] == 0
        for layout in ("tree", "padded"):
            np.testing.assert_allclose(found[layout], expected, atol=tolerance, rtol=0)
        if name != "bfloat16":
            by_score = np.argsort(-(expected[1] - expected[0]), kind="stable")
            assert found["selection"] == sorted(by_score[:5].tolist())


@pytest.mark.parametrize("kind", SHARDED)
@pytest.mark.parametrize("name", MODELS)
def test_after_a_round_a_rank_holds_what_it_held_before(name: str, kind: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        before, after = rank[kind][name]["held"]
        assert after == before


def plain_exemplars(model: Any) -> np.ndarray:
    """The most similar other sample of each, by the whole model's hidden states, one prompt at a time."""
    pool, means = tiny_pool(), []
    for sample in range(len(pool)):
        row = make_prompt_row(pool, sample, 512)
        with torch.no_grad():
            hidden = model.model(torch.from_numpy(row.ids.astype(np.int64))[None]).last_hidden_state[0]
        means.append(hidden[row.targets].mean(dim=0).numpy())
    vectors = np.stack([mean / np.linalg.norm(mean) for mean in means])
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines.argmax(axis=1)


@pytest.mark.parametrize("kind", HELD)
def test_a_whole_round_is_that_of_the_whole_model_and_leaves_nothing(kind: str, ranks: list[dict[str, Any]]) -> None:
    exemplars = plain_exemplars(tiny_model())
    zero_shot, one_shot = plain_losses(tiny_model(), tiny_pool(), exemplars)
    for rank in ranks:
        found = rank["rounds"][kind]
        assert found["exemplars"] == exemplars.tolist()
        np.testing.assert_allclose(found["losses"], [zero_shot, one_shot], atol=1e-5, rtol=0)
        assert found["selection"] == sorted(np.argsort(zero_shot - one_shot, kind="stable")[:5].tolist())
        before, after = found["live"]
        assert after == before


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", SHARDED)
def test_passes_over_the_pool_do_not_change_the_training(
    kind: str, optimizer: str, ranks: list[dict[str, Any]]
) -> None:
    for rank in ranks:
        without, before_the_first, in_between = rank["trajectories"][f"{kind}-{optimizer}"]
        assert len(without) == STEPS and without == before_the_first == in_between
        assert without[-1] < without[0]
