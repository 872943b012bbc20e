"""The shape of LLaMA-Factory's SFT stage: labelled columns, a Seq2SeqTrainer that overrides what there is."""

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from miwv_trainer import attach  # +


@dataclass
class FinetuningArguments:
    model_name_or_path: str = field(default="")
    dataset: str = field(default="")
    disable_shuffling: bool = field(default=False)


class CustomSeq2SeqTrainer(Seq2SeqTrainer):
    def __init__(self, finetuning_args: FinetuningArguments, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.finetuning_args = finetuning_args

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.args.learning_rate)
        return super().create_optimizer(*args, **kwargs)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler | None:
        if self.finetuning_args.disable_shuffling:
            return torch.utils.data.SequentialSampler(self.train_dataset)
        return super()._get_train_sampler(*args, **kwargs)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(model, inputs, *args, **kwargs)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().prediction_step(model, inputs, *args, **kwargs)


class SFTDataCollator(DataCollatorForSeq2Seq):
    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        batch = super().__call__(features)
        return {key: value.contiguous() for key, value in batch.items()}


def get_dataset(path: str, tokenizer: Any) -> Dataset:
    columns: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": []}
    with open(path) as file:
        for row in map(json.loads, file):
            source = tokenizer(f"Human: {row['instruction']}\nAssistant:", add_special_tokens=False).input_ids
            target = tokenizer(f"{row['output']}{tokenizer.eos_token}", add_special_tokens=False).input_ids
            columns["input_ids"].append(source + target)
            columns["attention_mask"].append([1] * len(source + target))
            columns["labels"].append([-100] * len(source) + target)
    return Dataset.from_dict(columns)


def run_sft() -> None:
    parser = HfArgumentParser((FinetuningArguments, Seq2SeqTrainingArguments))
    finetuning_args, training_args = parser.parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained(finetuning_args.model_name_or_path)
    trainer = CustomSeq2SeqTrainer(
        model=AutoModelForCausalLM.from_pretrained(finetuning_args.model_name_or_path),
        args=training_args,
        finetuning_args=finetuning_args,
        train_dataset=get_dataset(finetuning_args.dataset, tokenizer),
        data_collator=SFTDataCollator(tokenizer, pad_to_multiple_of=8, label_pad_token_id=-100),
        processing_class=tokenizer,
    )
    attach(trainer, {"fraction": 0.5, "rescore_strategy": "epoch", "embedder": "tfidf"})  # +
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    run_sft()
