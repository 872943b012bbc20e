"""Run on each rank by test_trajectory.py: trains with and without a scoring pass before the first step.

launched_trajectory.py FOLDER OUTPUT
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from miwv_trainer import MIWVConfig, MIWVDataSampler, attach, tokenize
from tests.test_attach import lora
from tests.tiny import tiny_dataset, tiny_tokenizer

COUNT = 24
PLAIN: dict[str, Any] = {}
OPTIONS = {"gradient_checkpointing": True, "neftune_noise_alpha": 5.0}


class Held(TrainerCallback):
    """Numbers of parameters on this rank, and the training flags, when training begins."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.seen = [sum(p.numel() for p in model.parameters()), [module.training for module in model.modules()]]


def main() -> None:
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    runs = {
        f"{name}-{scores}": train(folder, output / f"{name}-{scores}", name == "lora", options, scores)
        for name, options in (("full", PLAIN), ("lora", OPTIONS))
        for scores in (False, True)
    }
    rank = dist.get_rank()
    (output / f"rank-{rank}.json").write_text(json.dumps({"rank": rank, "world_size": dist.get_world_size(), **runs}))
    dist.barrier()
    dist.destroy_process_group()


def train(folder: Path, output: Path, is_lora: bool, options: dict[str, Any], scores: bool) -> dict[str, Any]:
    tokenizer = tiny_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(folder)
    before, after = Held(), Held()
    trainer = Trainer(
        model=lora(model, dropout=0.1) if is_lora else model,
        args=TrainingArguments(
            output_dir=str(output),
            max_steps=6,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            **options,
        ),
        train_dataset=tokenize(tiny_dataset(COUNT), tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        callbacks=[before],
    )
    rounds: list[Any] = []
    if scores:
        rounds = attach(trainer, MIWVConfig(fraction=1.0, embedder="tfidf", tokens_per_batch=128)).rounds
    else:
        sampler = MIWVDataSampler(COUNT, 1.0, trainer.args.seed)
        sampler.set_selection(range(COUNT))
        trainer._get_train_sampler = lambda *_, **__: sampler
    trainer.add_callback(after)
    trainer.train()
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "wrapper": type(trainer.model_wrapped).__name__,
        "held": [before.seen, after.seen],
        "zero_shot": [current.column("zero_shot_loss").tolist() for current in rounds],
        "one_shot": [current.column("one_shot_loss").tolist() for current in rounds],
    }


if __name__ == "__main__":
    main()
