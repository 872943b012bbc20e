"""What it takes to plan the rows of a large pool."""

import numpy as np
import torch

from benchmarks.measure import measure
from miwv_trainer.data.pool import Pool
from miwv_trainer.scoring.trees import plan_trees

CONTEXT = 8192


def peak_of_a_plan(count: int) -> tuple[float, int]:
    """Seconds, and bytes of memory at the most over what the pool itself takes."""
    generator = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(generator.integers(10, 100, count))])
    is_response = np.ones(offsets[-1], dtype=bool)
    is_response[offsets[:-1]] = False
    pool = Pool(np.arange(3, dtype=np.int32), np.zeros(offsets[-1], dtype=np.int32), is_response, offsets)
    exemplars = np.minimum((generator.pareto(0.8, count) * 3).astype(np.int64), count - 1)
    exemplars = np.where(exemplars == np.arange(count), (exemplars + 1) % count, exemplars)
    assert pool.has_prompt_and_response.all()
    measured = measure(lambda: plan_trees(pool, exemplars, CONTEXT, 512), torch.device("cpu"))
    assert measured.peak_bytes is not None
    return measured.seconds, measured.peak_bytes
