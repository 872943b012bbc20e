"""Models that FSDP has split over two processes are scored as one process scores them whole."""

import json
import sys
from typing import Any

import numpy as np
import pytest
import torch

from miwv_trainer.packing import one_shot_row, zero_shot_row
from miwv_trainer.rendering import pool_from_rows
from miwv_trainer.retrieval import embed_texts, nearest_exemplars
from tests.launched import ROOT, free_port, run
from tests.launched_sharded import MODELS, SHARDED, STEPS
from tests.tiny import tiny_dataset, tiny_tokenizer


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    output = tmp_path_factory.mktemp("sharded")
    script = str(ROOT / "tests" / "launched_sharded.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = run([*launcher, "--master_port", str(free_port()), script, str(output)])
    assert done.returncode == 0, done.stderr[-4000:]
    assert "is scored by the logits" not in done.stderr  # the head is run by chunks wherever its weight lies
    assert "are not scored again in float32: the model's parameters are split over the ranks" in done.stderr
    found = [json.loads((output / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert [(rank["rank"], rank["world_size"]) for rank in found] == [(0, 2), (1, 2)]
    return found


def plain_losses(model: Any) -> np.ndarray:
    """`(2, N)` losses of each row by itself, from the whole model's own `labels`."""
    pool = pool_from_rows(tiny_dataset(17), tiny_tokenizer())
    exemplars, _ = nearest_exemplars(embed_texts("tfidf", pool.texts), pool, 512)
    losses = np.empty((2, len(pool)))
    for sample in range(len(pool)):
        rows = (zero_shot_row(pool, sample), one_shot_row(pool, sample, int(exemplars[sample]), 512))
        for kind, row in enumerate(rows):
            ids = torch.from_numpy(row.ids.astype(np.int64))[None]
            labels = torch.full_like(ids, -100)
            labels[0, row.targets] = ids[0, row.targets]
            with torch.no_grad():
                losses[kind, sample] = model(input_ids=ids, labels=labels).loss.item()
    return losses


@pytest.mark.parametrize("kind", SHARDED)
@pytest.mark.parametrize("name", MODELS)
def test_both_layouts_have_the_whole_models_losses(name: str, kind: str, ranks: list[dict[str, Any]]) -> None:
    expected = plain_losses(MODELS[name]())
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


@pytest.mark.parametrize("kind", SHARDED)
def test_a_round_before_the_first_step_does_not_change_the_training(kind: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        without, after_scoring = rank["trajectories"][kind]
        assert len(without) == STEPS and without == after_scoring
        assert without[-1] < without[0]
