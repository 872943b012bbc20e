"""A Trainer that trains a LoRA adapter on tokenised samples and saves nothing, for comparisons of samples."""

from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)


def make_adapter_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: datasets.Dataset,
    folder: Path,
    seed: int,
    **arguments: Any,
) -> Trainer:
    """
    The Trainer of one run of a comparison.

    Args:
        model: The model without adapter; the adapter is put around it.
        tokenizer: Its tokenizer.
        samples: Tokenised samples.
        folder: `output_dir` of the Trainer.
        seed: Seed of the adapter and of the order.
        arguments: Further `TrainingArguments`. Samples of like length share a batch unless they say otherwise.
    """
    set_seed(seed)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return Trainer(
        model=get_peft_model(model, lora),
        args=TrainingArguments(
            output_dir=str(folder),
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            seed=seed,
            **{"train_sampling_strategy": "group_by_length", **arguments},
        ),
        train_dataset=samples,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
