"""The shape of Stanford Alpaca's train.py: a torch Dataset of lists, its own collator, the plain Trainer."""

import copy
import json
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch.utils.data import Dataset
from transformers import Trainer

from miwv_trainer import attach  # +

IGNORE_INDEX = -100
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


@dataclass
class ModelArguments:
    model_name_or_path: str = field(default="")


@dataclass
class DataArguments:
    data_path: str = field(default="")


class SupervisedDataset(Dataset):
    def __init__(self, data_path: str, tokenizer: Any) -> None:
        super().__init__()
        with open(data_path) as file:
            rows = [json.loads(line) for line in file]
        sources = [PROMPT.format_map(row) for row in rows]
        targets = [f"{row['output']}{tokenizer.eos_token}" for row in rows]
        self.input_ids = [self.tokenized(a + b, tokenizer) for a, b in zip(sources, targets, strict=True)]
        self.labels = copy.deepcopy(self.input_ids)
        for label, source in zip(self.labels, sources, strict=True):
            label[: len(self.tokenized(source, tokenizer))] = IGNORE_INDEX

    def tokenized(self, text: str, tokenizer: Any) -> torch.Tensor:
        return tokenizer(text, return_tensors="pt", truncation=True, max_length=512).input_ids[0]

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.input_ids[i], "labels": self.labels[i]}


@dataclass
class DataCollatorForSupervisedDataset:
    tokenizer: Any

    def __call__(self, instances: Any) -> dict[str, torch.Tensor]:
        input_ids, labels = ([instance[key] for instance in instances] for key in ("input_ids", "labels"))
        pad = self.tokenizer.pad_token_id
        input_ids = torch.nn.utils.rnn.pad_sequence(input_ids, batch_first=True, padding_value=pad)
        labels = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX)
        return {"input_ids": input_ids, "labels": labels, "attention_mask": input_ids.ne(pad)}


def train() -> None:
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, transformers.TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    model = transformers.AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_args.model_name_or_path, padding_side="right")
    trainer = Trainer(
        model=model,
        processing_class=tokenizer,
        args=training_args,
        train_dataset=SupervisedDataset(data_args.data_path, tokenizer),
        eval_dataset=None,
        data_collator=DataCollatorForSupervisedDataset(tokenizer),
    )
    attach(trainer, {"fraction": 0.5, "rescore_strategy": "epoch", "embedder": "tfidf"})  # +
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_state()
    trainer.save_model(output_dir=training_args.output_dir)


if __name__ == "__main__":
    train()
