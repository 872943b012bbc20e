"""What the tree layout costs on real pools: tokens forwarded, and the planner's own time and memory. Slow."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from miwv_trainer.choices import Attention
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.files import load_rows
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.embeddings.embedders import embed_texts
from miwv_trainer.embeddings.nearest import find_nearest_exemplars
from miwv_trainer.scoring.memory import measure_memory, size_batches
from miwv_trainer.scoring.trees import count_row_tokens, make_tree_batches, plan_trees
from tests.helpers.launch import ROOT
from tests.helpers.trees import SMALL, random_model

pytestmark = pytest.mark.slow

CONTEXT = 8192
POOLS = ("alpaca_gpt4_1k", "cherry_alpaca_3k", "code_alpaca_2k", "t0_50k")


@pytest.fixture(scope="module", params=POOLS)
def pool_and_exemplars(request: pytest.FixtureRequest, shared_data: Path) -> tuple[Pool, np.ndarray]:
    sys.path.insert(0, str(ROOT / "examples"))
    quickstart = pytest.importorskip("quickstart")
    tokenizer = AutoTokenizer.from_pretrained(quickstart.find_default_model())
    pool = pool_from_rows(load_rows(shared_data / f"{request.param}.jsonl.gz"), tokenizer)
    exemplars, _ = find_nearest_exemplars(embed_texts("tfidf", pool.texts), pool, CONTEXT)
    return pool, exemplars


def test_trees_forward_hardly_more_than_twice_the_pools_own_tokens(pool_and_exemplars: tuple[Pool, np.ndarray]) -> None:
    pool, exemplars = pool_and_exemplars
    own = sum(len(pool.preamble) + len(pool.sample(index)) for index in range(len(pool)))
    rows = plan_trees(pool, exemplars, CONTEXT, 2048)
    assert sum(count_row_tokens(row, pool) for row in rows) <= 2.2 * own

    attentions: tuple[Attention, ...] = ("segments", "mask")
    for attention in attentions:
        model = random_model("Llama", SMALL, "eager" if attention == "mask" else "sdpa")
        budget = size_batches(model, MIWVConfig(), measure_memory(model, World(0, 1, torch.device("cpu"))))
        rows = plan_trees(pool, exemplars, CONTEXT, budget.tokens_per_row)
        batches = make_tree_batches(rows, pool, budget.tokens_per_batch, is_padded=attention == "mask")
        assert sum(batch.tokens for batch in batches) <= 2.3 * own


def test_planning_takes_under_five_seconds_for_55_185_samples(pool_and_exemplars: tuple[Pool, np.ndarray]) -> None:
    pool, exemplars = pool_and_exemplars
    started = time.perf_counter()
    plan_trees(pool, exemplars, CONTEXT, 2048)
    assert time.perf_counter() - started < 5


def test_a_million_samples_are_planned_within_a_minute_in_linear_memory() -> None:
    peaks = []
    for count in (250_000, 1_000_000):
        code = f"from tests.helpers.planning import peak_of_a_plan; print(*peak_of_a_plan({count}))"
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=True
        )
        seconds, peak = run.stdout.split()
        assert float(seconds) < 60
        peaks.append(int(peak))
    assert peaks[1] < 6 * peaks[0]
    assert peaks[1] < 2 * 2**30
