"""Run on each rank by test_trajectory.py: trains with and without a scoring pass before the first step.

trajectory.py FOLDER OUTPUT
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from miwv_trainer import MIWVConfig, MIWVDataSampler, attach, tokenize
from tests.helpers.held import facts
from tests.helpers.tiny import tiny_dataset, tiny_tokenizer
from tests.helpers.trainers import lora

COUNT = 24
PLAIN: dict[str, Any] = {}
OPTIONS = {"gradient_checkpointing": True, "neftune_noise_alpha": 5.0}
# Name, whether adapters are trained, options, and with how many rounds before the first step: none, or one.
RUNS: list[tuple[str, bool, dict[str, Any], tuple[bool, ...]]] = [
    ("full", False, PLAIN, (False, True)),
    ("lora", True, OPTIONS, (False, True)),
    ("bfloat16", True, {**OPTIONS, "bf16": True}, (True,)),
]


class Held(TrainerCallback):
    """
    How many parameters lie on this rank when training begins, and whatever else a round could change.

    The model is put in training mode, as the Trainer does before its first step: noise and dropout are on.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"].train()
        self.seen = [sum(parameter.numel() for parameter in model.parameters()), facts(model)]


def main() -> None:
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    runs = {
        f"{name}-{scores}": train(folder, output / f"{name}-{scores}", is_lora, options, scores)
        for name, is_lora, options, both in RUNS
        for scores in both
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
    callback = None
    if scores:
        # Batches are checked by a hook that stays on the model during training; here nothing may stay.
        config = MIWVConfig(fraction=1.0, embedder="tfidf", tokens_per_batch=128, check_batches=False)
        callback = attach(trainer, config)
    else:
        sampler = MIWVDataSampler(COUNT, 1.0, trainer.args.seed)
        sampler.set_selection(range(COUNT))
        trainer._get_train_sampler = lambda *_, **__: sampler
    trainer.add_callback(after)
    trainer.train()
    rounds = callback.rounds if callback is not None else []
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "wrapper": type(trainer.model_wrapped).__name__,
        "held": [before.seen, after.seen],
        "exemplars": [current.column("exemplar").tolist() for current in rounds],
        "scored": [[current.column(f"{kind}_shot_loss").tolist() for kind in ("zero", "one")] for current in rounds],
    }


if __name__ == "__main__":
    main()
