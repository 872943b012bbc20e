"""Run on each rank by test_curricula_on_ranks.py: two rounds in each setting, written as JSON.

curricula.py OUTPUT
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from accelerate import PartialState

from miwv_trainer import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.rounds.exemplars import find_exemplars
from miwv_trainer.rounds.identity import TrainingPoint
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.storage.store import Store
from tests.helpers.own_scores import another_on_each_rank, middle_miwv
from tests.helpers.tiny import tiny_dataset, tiny_model, tiny_tokenizer

COUNT = 45
# What goes over ranks: losses of both passes or of one, draws, embeddings (only rank 0 holds them), and budgets. The
# other scores and guards are pure functions of these, and rank 0 computes them.
SETTINGS: dict[str, dict[str, Any]] = {
    **{score: {"score": score} for score in ("miwv", "zero_shot_loss", "random")},
    "facility location": {"diversity": "facility_location"},
    "mmr": {"diversity": "mmr", "group_column": "task", "selection_budget": "tokens"},
    "guarded": {"preset": "guarded", "min_response_tokens": 8},
    "budget": {"rescore_budget": 0.4},
    "column": {"score_column": "quality", "min_response_tokens": 5},
    "array": {"score": np.sin(np.arange(COUNT)), "extra_losses": "zero_shot", "loss_band": [0.2, 0.9]},
    "ifd": {"score": "ifd"},
    "influence": {"score": "influence"},
    "influence on three": {"score": "influence", "exemplars_per_sample": 3, "rescore_budget": 0.4},
    "sample": {"selection": "sample", "temperature": 2.0},
    "function": {"score": middle_miwv, "extra_losses": "both"},
    "budget, guards": {"rescore_budget": 0.4, "min_response_tokens": 12, "diversity": "mmr"},
}


def main() -> None:
    output = Path(sys.argv[1])
    world = World.current(PartialState(cpu=True).device)
    results = {"rank": world.rank, "world_size": world.size, **score_settings(output, world)}
    results["refused"] = [
        refuse(output / str(number), world, score)
        for number, score in enumerate((another_on_each_rank, np.arange(COUNT) * (world.rank + 1.0)))
    ]
    (output / f"rank-{world.rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def make_pool() -> Pool:
    pool = pool_from_rows(tiny_dataset(COUNT), tiny_tokenizer())
    return replace(pool, groups=np.arange(COUNT) % 3, column_scores=np.float32(np.cos(np.arange(COUNT))))


def refuse(output: Path, world: World, score: Any) -> str:
    """The error of a round whose score is not the same on all ranks."""
    scorer = prepare_scorer(tiny_model(), make_pool(), MIWVConfig(score=score), world)
    try:
        run_round(scorer, find_exemplars(scorer, Store(output), reuse=True), Store(output))
    except ValueError as error:
        return str(error)
    return "nothing"


def score_settings(output: Path, world: World) -> dict[str, Any]:
    """By setting, what each of two rounds has selected and found."""
    pool = make_pool()
    results = {}
    for name, values in SETTINGS.items():
        config = MIWVConfig(
            fraction=0.25, embedder="tfidf", rescore_strategy="epoch", tokens_per_batch=128, sampler_seed=5, **values
        )
        store = Store(output / name)
        exemplars = find_exemplars(prepare_scorer(tiny_model(), pool, config, world), store, reuse=True)
        first = run_round(prepare_scorer(tiny_model(), pool, config, world), exemplars, store, TrainingPoint())
        second = run_round(
            prepare_scorer(tiny_model(seed=1), pool, config, world),
            exemplars,
            store,
            TrainingPoint(1, 9, 1),
            previous=first,
        )
        results[name] = [
            {
                "selection": each.selection.tolist(),
                "ages": each.column("age").tolist(),
                "losses": np.nan_to_num(each.column("zero_shot_loss"), nan=-1).tolist(),
                "threshold": each.summary["statistics"]["threshold"],
            }
            for each in (first, second)
        ]
    return results


if __name__ == "__main__":
    main()
