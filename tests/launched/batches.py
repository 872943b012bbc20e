"""Run on each rank by test_dataloader.py: trains under every dataloader option and writes the samples of each batch.

batches.py MODEL OUTPUT
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, Trainer

from miwv_trainer import MIWVConfig, attach
from miwv_trainer.compat import is_at_least
from tests.helpers.trainers import noting_trainer, trained

EFFECTIVE_BATCH = 12


def main() -> None:
    output = Path(sys.argv[2])
    # The first Trainer's arguments set the process group up.
    seen = train_cases(Path(sys.argv[1]), output, processes=int(os.environ["WORLD_SIZE"]))
    (output / f"rank-{seen['rank']}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


def train_cases(folder: Path, output: Path, processes: int) -> dict[str, Any]:
    """What this rank has seen in each case."""
    seen: dict[str, Any] = {"wrappers": []}

    def train(case: str, count: int = 24, accumulation: int = 1, split: bool = False, **options: Any) -> Trainer:
        batch = EFFECTIVE_BATCH // accumulation // (1 if split else processes)
        accelerator = {"split_batches": split, **options.pop("accelerator_config", {})}
        trainer = noting_trainer(
            output / case,
            48,
            model=AutoModelForCausalLM.from_pretrained(folder),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            accelerator_config=accelerator,
            **options,
        )
        callback = attach(trainer, MIWVConfig(fraction=count / 48, embedder="tfidf"))
        trainer.train()
        seen["wrappers"].append(type(trainer.model_wrapped).__name__)
        seen[case] = {
            "batches": [positions for _, positions in trained],
            "accumulation": accumulation,
            "selection": callback.rounds[0].selection.tolist(),
            "steps": trainer.state.global_step,
            "max_steps": trainer.state.max_steps,
        }
        return trainer

    trainer = train("plain")
    seen["rank"], seen["world_size"] = trainer.args.process_index, trainer.args.world_size
    train("accumulated", accumulation=2)
    train("split", split=True, accumulation=2)
    train("grouped", train_sampling_strategy="group_by_length")
    if is_at_least("transformers", "5.2"):
        train("sequential", train_sampling_strategy="sequential")
    train("uneven but full", accelerator_config={"even_batches": False})
    train("filled", count=20)
    train("dropped", count=20, dataloader_drop_last=True)
    try:
        # The last 2 samples fill the part of one process at most.
        train("uneven", count=26, accelerator_config={"even_batches": False})
    except ValueError as error:
        seen["uneven"] = str(error)
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
