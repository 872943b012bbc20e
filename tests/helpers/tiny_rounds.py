"""Rounds of a tiny model over a pool of 24 samples."""

import numpy as np
import torch

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import TokenizedSample
from miwv_trainer.data.preamble import build_pool
from miwv_trainer.data.turn_markers import TurnMarkers
from miwv_trainer.distributed.world import World
from miwv_trainer.rounds.exemplars import find_exemplars
from miwv_trainer.rounds.identity import TrainingPoint
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring.scorer import prepare_scorer

WORLD = World(0, 1, torch.device("cpu"))
COUNT = 24
CONFIG = MIWVConfig(embedder="tfidf", fraction=0.25)


def pool_of(*samples: tuple[list[int], list[int]]):
    """A pool of (prompt, response) pairs, each behind token 1 as the preamble."""
    sequences = [
        TokenizedSample(
            np.array([1, *prompt, *response]), np.array([False] * (1 + len(prompt)) + [True] * len(response))
        )
        for prompt, response in samples
    ]
    texts = [f"text{index} shared" for index in range(len(samples))]
    return build_pool(sequences, TurnMarkers(bos=1), texts)


def exemplars_of(model, pool, store, config=CONFIG, reuse=True):
    return find_exemplars(prepare_scorer(model, pool, config, WORLD), store, reuse=reuse)


def finished_round(model, pool, store, config=CONFIG, moment=None):
    exemplars = exemplars_of(model, pool, store, config)
    return run_round(prepare_scorer(model, pool, config, WORLD), exemplars, store, moment or TrainingPoint())


def loss_by_hand(model, before: np.ndarray, sample: np.ndarray, is_response: np.ndarray) -> float:
    ids = torch.from_numpy(np.concatenate([before, sample]).astype(np.int64))[None]
    with torch.no_grad():
        log_p = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(dim=-1)
    positions = len(before) + np.flatnonzero(is_response)
    return -np.mean([log_p[t - 1, ids[0, t]].item() for t in positions])
