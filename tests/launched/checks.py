"""Run on each rank by test_world.py: trains with the sampler attached and writes what it saw as JSON.

    checks.py FOLDER OUTPUT [ENCODER]

With the folder of a sentence encoder, a smaller model scores too.

One launch makes all checks of a backend, because importing torch and DeepSpeed takes 15 s a process.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from miwv_trainer import MIWVConfig, attach, tokenize
from miwv_trainer.distributed.sharding import is_whole
from miwv_trainer.distributed.world import World
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.row_losses import compute_row_losses
from miwv_trainer.scoring.rows import Row
from miwv_trainer.storage.stored_round import HASHES
from tests.helpers.tiny import tiny_config, tiny_dataset, tiny_model, tiny_tokenizer


class PositionCollator(DataCollatorForSeq2Seq):
    """Notes the `position` column of every sample that becomes part of a batch."""

    def __init__(self, tokenizer, seen: list[int]) -> None:
        super().__init__(tokenizer)
        self.seen = seen

    def __call__(self, features, return_tensors=None):
        self.seen.extend(feature.pop("position") for feature in features)
        return super().__call__(features, return_tensors)


class ForgetTried(TrainerCallback):
    """Drops what was collated before the first epoch: two samples, on which the library tries the collator."""

    def __init__(self, seen: list[int]) -> None:
        self.seen = seen

    def on_epoch_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.seen.clear()


class EngineLosses(TrainerCallback):
    """Two losses through the wrapped model's own forward, beside the library's through the module inside."""

    def __init__(self) -> None:
        self.own: list[float] = []
        self.engine: list[float] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        wrapped = self.trainer.model_wrapped
        generator = np.random.default_rng(0)
        for length in (9, 23):
            ids = generator.integers(0, 300, length).astype(np.int32)
            targets = np.arange(length // 2, length)
            labels = torch.full((1, length), -100)
            labels[0, targets] = torch.from_numpy(ids[targets].astype(np.int64))
            with leave_no_trace(model):
                self.own.append(float(compute_row_losses(model, [Row(ids, targets)])[0]))
                tensor = torch.from_numpy(ids.astype(np.int64))[None]
                self.engine.append(float(wrapped(input_ids=tensor, labels=labels, use_cache=False).loss))


def main() -> None:
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    results = []
    # Before any TrainingArguments are made: under ZeRO-3, models that are loaded later are split.
    small = tiny_model(tiny_config(num_hidden_layers=1, hidden_size=16, intermediate_size=32), seed=5)
    # 17 samples over the ranks leave some of them without a batch at the end; 2 and 3 leave one without any.
    for count, fraction in ((17, 0.5), (7, 0.6), (3, 0.7), (2, 0.5)):
        results.append(train(folder, output / f"pool-{count}", count, fraction))
    rank = dist.get_rank() if dist.is_initialized() else 0
    if len(sys.argv) > 3:
        results[0]["by_others"] = train_by_others(folder, output, small, sys.argv[3])
    results[0]["failure"] = failure_of_the_last_rank(rank)
    (output / f"rank-{rank}.json").write_text(json.dumps(results))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def count_gloo_threads() -> int:
    return sum("gloo" in each.read_text() for each in Path("/proc/self/task").glob("*/comm"))


def failure_of_the_last_rank(rank: int) -> str:
    """What this rank raises when the last one fails in a block that all run together."""
    world = World.current(torch.device("cpu"))
    try:
        with world.run_together("reading tea leaves"):
            if rank == world.size - 1:
                raise OSError("no tea")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def make_trainer(folder: Path, output: Path, count: int) -> tuple[Trainer, list[int]]:
    """A Trainer, and the positions of the samples that it trains on."""
    tokenizer = tiny_tokenizer()
    pool = tokenize(tiny_dataset(count), tokenizer).add_column("position", list(range(count)))
    seen: list[int] = []
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=TrainingArguments(
            output_dir=str(output),
            num_train_epochs=2,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=pool.remove_columns(["instruction", "input", "output"]),
        data_collator=PositionCollator(tokenizer, seen),
        processing_class=tokenizer,
        callbacks=[ForgetTried(seen)],
    )
    return trainer, seen


def train(folder: Path, output: Path, count: int, fraction: float) -> dict:
    trainer, seen = make_trainer(folder, output, count)
    losses = EngineLosses()
    losses.trainer = trainer
    trainer.add_callback(losses)
    config = MIWVConfig(fraction=fraction, embedder="tfidf", rescore_strategy="epoch", tokens_per_batch=128)
    callback = attach(trainer, config)
    threads_before = count_gloo_threads()
    trainer.train()
    threads_after = count_gloo_threads()
    world = World.current(trainer.args.device, trainer.model)
    return {
        "rank": world.rank,
        "world_size": world.size,
        "sharded": world.sharded,
        "wrapper": type(trainer.model_wrapped).__name__,
        "seen": seen,
        "selections": [current.selection.tolist() for current in callback.rounds],
        "zero_shot": [current.column("zero_shot_loss").tolist() for current in callback.rounds],
        "one_shot": [current.column("one_shot_loss").tolist() for current in callback.rounds],
        "gloo_threads": [threads_before, threads_after],
        "own_losses": losses.own,
        "engine_losses": losses.engine,
        "steps": trainer.state.global_step,
        "max_steps": trainer.state.max_steps,
    }


def train_by_others(folder: Path, output: Path, small: PreTrainedModel, encoder: str) -> dict:
    """A smaller model scores for one training, the next compares fewer samples, and two others take its scores."""
    values = {"fraction": 0.25, "embedder": encoder, "tokens_per_batch": 128, "proxy_check": 8}
    first, found = str(output / "proxy"), {}
    for name, at, more in (
        ("proxy", "proxy", {}),
        ("again", "proxy", {"proxy_check": 6}),
        ("source", "source", {"scores_from": first}),
        ("rows", "rows", {"scores_from": first, "match": "rows", "score": "low_miwv"}),
    ):
        trainer, seen = make_trainer(folder, output / at, 17)
        forwards = []
        trainer.model.register_forward_pre_hook(lambda module, _, to=forwards: to.append(module.training))
        callback = attach(trainer, MIWVConfig(**values | more), scorer=small if at == "proxy" else None)
        trainer.train()
        (scored,) = callback.rounds
        found[name] = {
            **{each: scored.column(each).tolist() for each in ("exemplar", "similarity", *HASHES)},
            "losses": [scored.column(f"{each}_shot_loss").tolist() for each in ("zero", "one")],
            "selection": scored.selection.tolist(),
            "seen": sorted(set(seen)),
            "scoring_forwards": forwards.count(False),
            "proxy": scored.summary.get("proxy"),
        }
    found["is_whole"] = is_whole(small)
    return found


if __name__ == "__main__":
    main()
