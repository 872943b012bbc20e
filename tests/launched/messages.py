"""Run on each rank by test_world.py: ranks that wait for one another, and hear of each other's errors.

messages.py OUTPUT ENCODER

ENCODER is the folder of a sentence encoder.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState

from miwv_trainer import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed import world as distributed
from miwv_trainer.distributed.agreement import check_same_pool, check_same_weights
from miwv_trainer.distributed.world import Messages, World
from miwv_trainer.embeddings import embedders
from miwv_trainer.rounds.exemplars import find_exemplars
from miwv_trainer.scoring.losses import score_batches
from miwv_trainer.scoring.rows import plan_padded
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.storage.store import Store
from tests.helpers.losses import CONTEXT, pool_of, random_samples
from tests.helpers.shared_search import distinct_pool, failures, found_by, raised, tied_pool
from tests.helpers.tiny import tiny_model

TIMEOUT = 3.0
SAMPLES = random_samples(40)
POOL = replace(pool_of(SAMPLES), texts=["apples"] * len(SAMPLES))
EXEMPLARS = np.roll(np.arange(len(POOL)), 1)
FORWARDS_BEFORE = 4


def main() -> None:
    output, encoder = Path(sys.argv[1]), sys.argv[2]
    state = PartialState(cpu=True)
    running = World.current(state.device)
    again = World.current(state.device)
    results: dict = {"rank": running.rank, "world_size": running.size, "is_one_group": again.group is running.group}
    results["backend"] = dist.get_backend(running.group)
    results["is_own_group"] = running.group is not dist.group.WORLD
    for name, heartbeat in (("with_heartbeat", 0.5), ("without_heartbeat", 60.0)):
        results[name] = after_a_slow_embedder(running, heartbeat, output / name)
    results["error"] = scored(running, fail_with(OSError("no tea")))
    results["memory"] = scored(running, out_of_memory_above(4))
    results["halved"] = scored(running, out_of_memory_above(120))
    pools = (SAMPLES, other_order(running), relabelled(running))
    results["pools"] = [compared(running, pool_of(each)) for each in pools]
    results["shared"] = {
        f"{name}-{kind}": found_by(running, pool, embedder, output / f"{name}-{kind}")
        for name, pool in {"tied": tied_pool(), "distinct": distinct_pool()}.items()
        for kind, embedder in (("tfidf", "tfidf"), ("encoder", encoder))
    }
    results["weights"] = [
        raised(lambda seed=seed: check_same_weights(tiny_model(seed=seed), "`scorer`", running))
        for seed in (0, running.rank)
    ]
    results["failures"] = failures(running, encoder, output)
    (output / f"rank-{running.rank}.json").write_text(json.dumps(results))
    state.destroy_process_group()


def compared(world: World, pool: Pool) -> str:
    """What comes of pools that may differ from rank to rank."""
    try:
        check_same_pool(pool, world)
    except ValueError as error:
        return str(error)
    return "the same"


def other_order(world: World) -> list:
    """As after a shuffle without a seed."""
    return SAMPLES[world.rank :] + SAMPLES[: world.rank]


def relabelled(world: World) -> list:
    """As after a `map` that drew at random which token a response begins with."""
    sample = list(SAMPLES[7])
    first = next(number for number, (_, is_response) in enumerate(sample) if is_response)
    sample[first] = (sample[first][0], world.rank == 0)
    return [*SAMPLES[:7], sample, *SAMPLES[8:]]


def impatient(world: World) -> World:
    """With a group of messages of its own, which gives up after seconds."""
    world.all_gather(None)  # ranks come here together, in time to meet
    return replace(world, messages=Messages(dist.new_group(backend="gloo", timeout=timedelta(seconds=TIMEOUT))))


def after_a_slow_embedder(world: World, heartbeat: float, output: Path) -> str:
    """What comes of a search for exemplars whose embedder takes three times as long as ranks may be silent."""

    class SlowVectorizer:
        def __init__(self, **options: object) -> None: ...

        def fit_transform(self, texts: object) -> np.ndarray:
            time.sleep(3 * TIMEOUT)
            return np.random.default_rng(0).standard_normal((len(POOL), 4)).astype(np.float32)

    distributed.HEARTBEAT_SECONDS = heartbeat
    config = MIWVConfig(embedder="tfidf", scoring_max_length=CONTEXT)
    try:
        with patch.object(embedders, "TfidfVectorizer", SlowVectorizer):
            scorer = prepare_scorer(tiny_model(), POOL, config, impatient(world))
            found = find_exemplars(scorer, Store(output), reuse=False)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return str(found.indices.tolist())


def fail_with(error: Exception) -> Callable[[int], None]:
    def check(tokens: int) -> None:
        raise error

    return check


def out_of_memory_above(most: int) -> Callable[[int], None]:
    def check(tokens: int) -> None:
        if tokens > most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: no")

    return check


def scored(world: World, check: Callable[[int], None]) -> dict:
    """Losses, or the error, and the forwards run, where the last rank checks the tokens of each but the first few."""
    model, forwards = tiny_model(), 0

    def count(module: object, args: object, inputs: dict) -> None:
        nonlocal forwards
        forwards += 1
        if world.rank == world.size - 1 and forwards > FORWARDS_BEFORE:
            check(inputs["input_ids"].numel())

    model.register_forward_pre_hook(count, with_kwargs=True)
    batches = plan_padded(POOL, EXEMPLARS, CONTEXT, 150)
    try:
        with torch.no_grad():
            config = MIWVConfig(scoring_max_length=CONTEXT)
            losses = score_batches(prepare_scorer(model, POOL, config, world), batches, EXEMPLARS)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "forwards": forwards}
    return {"losses": [losses.zero_shot.tolist(), losses.one_shot.tolist()], "forwards": forwards}


if __name__ == "__main__":
    main()
