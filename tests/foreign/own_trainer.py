"""A Trainer of one's own: its loss, and a training dataloader that wraps the Trainer's."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

from miwv_trainer import attach, tokenize  # +


@dataclass
class Arguments:
    model: str = field(default="")
    data: str = field(default="")
    loader: str = field(default="wrapped")


class Prefetching:
    """Draws a batch ahead."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        ahead = next(batches, None)
        while ahead is not None:
            batch, ahead = ahead, next(batches, None)
            yield batch


class SmoothedTrainer(Trainer):
    loader = "wrapped"

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        logits = model(**inputs).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.1)
        return (loss, None) if return_outputs else loss

    def get_train_dataloader(self) -> Any:
        if self.loader == "own":
            return DataLoader(self.train_dataset, batch_size=2, shuffle=True, collate_fn=self.data_collator)
        loader = super().get_train_dataloader()
        return Prefetching(loader) if self.loader == "wrapped" else loader


def main() -> None:
    arguments, training = HfArgumentParser((Arguments, TrainingArguments)).parse_args_into_dataclasses(sys.argv[1:])
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows = load_dataset("json", data_files=arguments.data, split="train")
    SmoothedTrainer.loader = arguments.loader
    trainer = SmoothedTrainer(
        model=AutoModelForCausalLM.from_pretrained(arguments.model),
        args=training,
        train_dataset=tokenize(rows, tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    attach(trainer, {"fraction": 0.5, "rescore_strategy": "epoch", "embedder": "tfidf"})  # +
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
