"""Run on each rank by test_sharded.py: scores models that are wrapped or split and writes what it saw as JSON.

    sharded.py OUTPUT

accelerate has no FSDP on a CPU, so the models are split here.
"""

import functools
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from schedulefree import AdamWScheduleFree
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.nn.parallel import DistributedDataParallel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.distributed.wrappers import use_evaluation_weights
from miwv_trainer.embeddings.embedders import embed_texts
from miwv_trainer.embeddings.nearest import find_nearest_exemplars
from miwv_trainer.rounds.exemplars import find_exemplars
from miwv_trainer.rounds.identity import TrainingPoint
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import choose_layout
from miwv_trainer.scoring.refine import score_refined
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.storage.store import Store
from tests.helpers.held import live_bytes
from tests.helpers.selecting import ranking_by_miwv, select_highest
from tests.helpers.tiny import tiny_config, tiny_dataset, tiny_model, tiny_tokenizer

CONFIG = MIWVConfig(embedder="tfidf", tokens_per_batch=256, tokens_per_row=256)
STEPS = 6
SELECTED = 5


def lora(model: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        adapted = get_peft_model(
            model, LoraConfig(r=4, lora_dropout=0.1, init_lora_weights=False, target_modules="all-linear")
        )
    return adapted.eval()


def tied() -> Any:
    return tiny_model(tiny_config(tie_word_embeddings=True))


MODELS = {
    "untied": tiny_model,
    "tied": tied,
    "lora": lambda: lora(tiny_model()),
    "bfloat16": lambda: tiny_model().to(torch.bfloat16),
}


def by_fsdp2(model: Any) -> Any:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in layers(model):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def by_fsdp1(model: Any, **options: Any) -> Any:
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={LlamaDecoderLayer})
    options = {"auto_wrap_policy": policy, "device_id": torch.device("cpu"), "use_orig_params": True, **options}
    return FullyShardedDataParallel(model, **options)


# What keeps all parameters after a forward, in one tensor a layer.
by_fsdp1_keeping = functools.partial(by_fsdp1, use_orig_params=False, sharding_strategy=ShardingStrategy.SHARD_GRAD_OP)
SHARDED = {"fsdp2": by_fsdp2, "fsdp1": by_fsdp1}
HELD = {**SHARDED, "fsdp1_keeping": by_fsdp1_keeping, "ddp": DistributedDataParallel}
OPTIMIZERS = {"adamw": torch.optim.AdamW, "schedule_free": AdamWScheduleFree}
# Before which step a pass over the pool is made; -1 is before none.
PASSES = (-1, 0, 3)


def layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, LlamaDecoderLayer)]


def main() -> None:
    output = Path(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    dist.init_process_group("gloo")
    pool = pool_from_rows(tiny_dataset(17), tiny_tokenizer())
    exemplars, _ = find_nearest_exemplars(embed_texts("tfidf", pool.texts), pool, 512)
    results: dict[str, Any] = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    for kind, shard in SHARDED.items():
        results[kind] = {name: scored(shard(make()), pool, exemplars) for name, make in MODELS.items()}
    results["rounds"] = {kind: whole_round(hold(tiny_model()), pool, output / kind) for kind, hold in HELD.items()}
    results["trajectories"] = {
        f"{kind}-{optimizer}": [trajectory(shard(tiny_model()), pool, exemplars, optimizer, step) for step in PASSES]
        for kind, shard in SHARDED.items()
        for optimizer in OPTIMIZERS
    }
    (output / f"rank-{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def scored(model: Any, pool: Pool, exemplars: np.ndarray) -> dict[str, Any]:
    world = World.current(torch.device("cpu"), model)
    before = live_bytes()
    found: dict[str, Any] = {"sharded": world.sharded}
    with leave_no_trace(model):
        found["layout"] = choose_layout(prepare_scorer(model, pool, CONFIG, world), exemplars)
        for layout in ("tree", "padded"):
            refined = score_refined(
                prepare_scorer(model, pool, CONFIG, world), exemplars, layout, ranking_by_miwv(SELECTED)
            )
            losses = refined.losses
            found[layout] = [losses.zero_shot.tolist(), losses.one_shot.tolist()]
            found["refined"] = refined.samples
            found["selection"] = select_highest(losses.miwv, SELECTED).tolist()
    found["held"] = [before, live_bytes()]
    return found


def whole_round(model: Any, pool: Pool, folder: Path) -> dict[str, Any]:
    """A round as a callback runs it, of the model as it is wrapped, its exemplars found with the model."""
    world = World.current(torch.device("cpu"), model)
    config = MIWVConfig(fraction=0.3, embedder="model", tokens_per_batch=256, tokens_per_row=256)
    store, before = Store(folder), live_bytes()
    exemplars = find_exemplars(prepare_scorer(model, pool, config, world), store, reuse=False)
    finished = run_round(prepare_scorer(model, pool, config, world), exemplars, store, TrainingPoint())
    return {
        "exemplars": exemplars.indices.tolist(),
        "losses": [finished.column(f"{kind}_shot_loss").tolist() for kind in ("zero", "one")],
        "selection": finished.selection.tolist(),
        "live": [before, live_bytes()],
    }


def trajectory(model: Any, pool: Pool, exemplars: np.ndarray, optimizer: str, scored_step: int) -> list[float]:
    """Losses of a few steps of an optimizer, with or without a pass over the pool before one of them."""
    model.train()
    inner = OPTIMIZERS[optimizer](model.parameters(), lr=1e-2)
    losses = []
    for step in range(STEPS):
        if step == scored_step:
            world = World.current(torch.device("cpu"), model)
            with use_evaluation_weights(SimpleNamespace(optimizer=inner, **of_wrapper(inner))), leave_no_trace(model):
                score_refined(prepare_scorer(model, pool, CONFIG, world), exemplars, "tree", ranking_by_miwv(SELECTED))
        if optimizer == "schedule_free":
            inner.train()
        ids = torch.from_numpy(pool.sample(2 * step + dist.get_rank()).astype(np.int64))[None]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        inner.step()
        inner.zero_grad()
        losses.append(loss.item())
    return losses


def of_wrapper(optimizer: Any) -> dict[str, Any]:
    """What accelerate's wrapper hands on."""
    names = ("param_groups", "train", "eval")
    return {name: getattr(optimizer, name) for name in names if hasattr(optimizer, name)}


if __name__ == "__main__":
    main()
