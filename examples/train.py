"""Fine-tune a causal language model on the samples it chooses, with the plain Hugging Face Trainer.

One process:

    python examples/train.py --model_name_or_path M --dataset pool.jsonl --output_dir out --fraction 0.05 \
        --num_train_epochs 3 --rescore_strategy epoch --lora_rank 16

Several GPUs, with DDP or DeepSpeed:

    accelerate launch --multi_gpu --num_processes 8 examples/train.py ...
    accelerate launch --use_deepspeed --deepspeed_config_file ds_configs/zero3.json --num_processes 8 \
        examples/train.py ...

On machines without a GPU add `--use_cpu`.
"""

import logging
from dataclasses import dataclass, field

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

from miwv_trainer import MIWVConfig, attach, load_rows, tokenize


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(metadata={"help": "Hub name or folder of a causal language model."})
    dataset: str = field(metadata={"help": "Hub name, or a JSON, JSON Lines, CSV or Parquet file."})
    max_samples: int | None = field(default=None, metadata={"help": "Use only this many samples, the first ones."})
    lora_rank: int = field(default=0, metadata={"help": "Rank of a LoRA adapter; 0 trains the whole model."})


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("miwv_trainer").setLevel(logging.INFO)
    parser = HfArgumentParser([ScriptArguments, TrainingArguments, MIWVConfig])
    script, training, config = parser.parse_args_into_dataclasses()
    if training.deepspeed:
        # With `--use_cpu`, transformers joins the processes without DeepSpeed, which then counts one process when the
        # model is loaded and split (ZeRO-3), and ends with "train_batch_size is not equal to ... * world_size".
        import deepspeed

        deepspeed.init_distributed()

    tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(script.model_name_or_path, dtype="auto")
    if script.lora_rank:
        lora = LoraConfig(r=script.lora_rank, lora_alpha=2 * script.lora_rank, target_modules="all-linear")
        model = get_peft_model(model, lora)
    with training.main_process_first(desc="tokenizing the pool"):
        pool = tokenize(load_rows(script.dataset, script.max_samples), tokenizer)

    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=pool,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    attach(trainer, config)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model()
    # ZeRO-3 aborts at exit if the process group still exists, or if another rank still uses it when this one ends it.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
