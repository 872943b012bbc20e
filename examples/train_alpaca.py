"""Stanford Alpaca's train.py (https://github.com/tatsu-lab/stanford_alpaca), on the samples that the model chooses.

    python examples/train_alpaca.py --model_name_or_path M --data_path pool.jsonl --output_dir out \
        --num_train_epochs 3 --per_device_train_batch_size 4 --learning_rate 2e-5 --warmup_ratio 0.03 \
        --lr_scheduler_type cosine --fraction 0.05 --rescore_strategy epoch
    torchrun --nproc_per_node 4 examples/train_alpaca.py --deepspeed ds_configs/zero3.json ...

The recipe is unchanged: its prompts, labels on the response alone, its own torch Dataset and collator. Only `attach` is
new. The data are JSON or JSON Lines with `instruction`, `input` and `output`. On machines without a GPU add
`--use_cpu`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from miwv_trainer import MIWVConfig, attach, load_rows

IGNORED = -100
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(metadata={"help": "Hub name or folder of a causal language model."})
    data_path: str = field(metadata={"help": "JSON or JSON Lines file of instruction, input and output."})
    model_max_length: int = field(default=512, metadata={"help": "Longest sample in tokens; longer ones are cut."})


class SupervisedDataset(Dataset):
    """Samples tokenised by Alpaca's recipe, all of them at the start."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.samples = [self._tokenize(row, tokenizer, max_length) for row in rows]

    @staticmethod
    def _tokenize(
        row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> dict[str, torch.Tensor]:
        source = (WITH_INPUT if row.get("input") else WITHOUT_INPUT).format_map(row)
        ids = tokenizer(f"{source}{row['output']}{tokenizer.eos_token}", truncation=True, max_length=max_length)
        prompt = tokenizer(source, truncation=True, max_length=max_length)
        input_ids = torch.tensor(ids["input_ids"])
        labels = input_ids.clone()
        labels[: len(prompt["input_ids"])] = IGNORED
        return {"input_ids": input_ids, "labels": labels}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.samples[index]


@dataclass
class Collator:
    """Pads on the right."""

    pad_token_id: int

    def __call__(self, samples: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        ids = pad_sequence([sample["input_ids"] for sample in samples], True, self.pad_token_id)
        labels = pad_sequence([sample["labels"] for sample in samples], True, IGNORED)
        mask = pad_sequence([torch.ones_like(sample["input_ids"]) for sample in samples], True, 0)
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("miwv_trainer").setLevel(logging.INFO)
    parser = HfArgumentParser([ScriptArguments, TrainingArguments, MIWVConfig])
    script, training, config = parser.parse_args_into_dataclasses()

    tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path, padding_side="right")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    pool = SupervisedDataset(list(load_rows(script.data_path)), tokenizer, script.model_max_length)
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(script.model_name_or_path),
        args=training,
        train_dataset=pool,
        data_collator=Collator(tokenizer.pad_token_id),
        processing_class=tokenizer,
    )
    attach(trainer, config)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_state()
    trainer.save_model()
    # ZeRO-3 aborts at exit if the process group still exists, or if another rank still uses it when this one ends it.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
