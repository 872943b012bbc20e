"""Samples of lengths on both sides of 64 tokens, and their losses at default settings."""

from typing import Any

import numpy as np
import torch

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import choose_layout, score_pool
from miwv_trainer.scoring.scorer import prepare_scorer
from tests.helpers.losses import pool_of

WORLD = World(0, 1, torch.device("cpu"), quiet=True)
# Prompt and response tokens; with the preamble of 2, some rows end on each side of 64 tokens.
LENGTHS = ((8, 6), (50, 40), (10, 5), (60, 30), (9, 8), (40, 21), (40, 22), (11, 9))
EXEMPLARS = np.array([2, 0, 4, 0, 2, 0, 4, 1])


def make_samples() -> list[list[tuple[int, bool]]]:
    generator = np.random.default_rng(0)
    flags = [[False] * prompt + [True] * response for prompt, response in LENGTHS]
    return [[(int(generator.integers(3, 500)), flag) for flag in sample] for sample in flags]


SAMPLES = make_samples()
POOL = pool_of(SAMPLES)


def score(model: Any, pool: Pool = POOL, **values: Any) -> tuple[str, np.ndarray]:
    with leave_no_trace(model):
        scorer = prepare_scorer(model, pool, MIWVConfig(**values), WORLD)
        layout = choose_layout(scorer, EXEMPLARS)
        found = score_pool(scorer, EXEMPLARS, layout)
    return layout, np.stack([found.zero_shot, found.one_shot])
