"""Trainers that note what they train on, and their arguments."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from miwv_trainer import tokenize
from miwv_trainer.compat import is_at_least, masks_prompts_of_conversations
from tests.helpers.templates import template
from tests.helpers.tiny import instruction_rows, tiny_dataset, tiny_model, tiny_tokenizer


class PositionCollator(DataCollatorForSeq2Seq):
    """Notes the pool index of every sample that becomes part of a batch, by its `position` column."""

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        positions = torch.tensor([feature.pop("position") for feature in features])
        batch = super().__call__(features, return_tensors)
        batch["position"] = positions
        return batch


class NotingTrainer(Trainer):
    """Takes the positions out of the batches where they are trained, whatever process collated them."""

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        trained.append((int(self.state.epoch or 0), inputs.pop("position").tolist()))
        return super().training_step(model, inputs, num_items_in_batch)


trained: list[tuple[int, list[int]]] = []


def arguments(folder: Path, **overrides: Any) -> TrainingArguments:
    values = {
        "output_dir": str(folder),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "seed": 3,
    }
    return TrainingArguments(**say_strategy({**values, **overrides}))


def say_strategy(values: dict[str, Any]) -> dict[str, Any]:
    """Arguments with the `train_sampling_strategy` in the words of transformers before 5.2, if that is installed."""
    if "train_sampling_strategy" not in values or is_at_least("transformers", "5.2"):
        return values
    strategy = values["train_sampling_strategy"]
    if strategy not in ("random", "group_by_length"):
        pytest.skip(f"transformers has no {strategy} strategy before 5.2")
    others = {name: value for name, value in values.items() if name != "train_sampling_strategy"}
    return {**others, "group_by_length": strategy == "group_by_length"}


def noting_trainer(folder: Path, count: int = 32, model: Any = None, **overrides: Any) -> NotingTrainer:
    """Forgets what Trainers before it trained on."""
    trained.clear()
    tokenizer = tiny_tokenizer()
    pool = tokenize(tiny_dataset(count), tokenizer).add_column("position", list(range(count)))
    return NotingTrainer(
        model=model or tiny_model(),
        args=arguments(folder, **{"remove_unused_columns": False, **overrides}),
        train_dataset=pool.remove_columns(["instruction", "input", "output"]),
        data_collator=PositionCollator(tokenizer),
        processing_class=tokenizer,
    )


def rebuilt(kind: type[Trainer], plain: Trainer, **more: Any) -> Trainer:
    """Another kind of Trainer over the same parts."""
    return kind(
        model=plain.model,
        args=plain.args,
        train_dataset=plain.train_dataset,
        data_collator=plain.data_collator,
        processing_class=plain.processing_class,
        **more,
    )


def lora(model: PreTrainedModel, dropout: float = 0.0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["q_proj", "v_proj"])
        return get_peft_model(model, config)


def by_epoch() -> list[list[int]]:
    epochs: dict[int, list[int]] = {}
    for epoch, positions in trained:
        epochs.setdefault(epoch, []).extend(positions)
    return [epochs[epoch] for epoch in sorted(epochs)]


def conversations(count: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": row["instruction"]},
                {"role": "assistant", "content": row["output"]},
            ]
        }
        for row in instruction_rows(count)
    ]


def split_turns(count: int) -> list[dict[str, Any]]:
    return [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in conversations(count)]


def prompt_completions(count: int) -> list[dict[str, Any]]:
    """Prompts and completions: turns, or texts where TRL does not tell prompts from completions that are turns."""
    if masks_prompts_of_conversations():
        return split_turns(count)
    return [{"prompt": row["instruction"], "completion": " " + row["output"]} for row in instruction_rows(count)]


def qwen_tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer(chat_template=template("qwen2_5"))
