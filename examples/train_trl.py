"""Fine-tune on the samples the model chooses, with TRL's SFTTrainer, on prompt/completion pairs or conversations.

    python examples/train_trl.py --model_name_or_path M --dataset conversations.jsonl --output_dir out \
        --fraction 0.05 --rescore_strategy epoch --assistant_only_loss --use_peft
    accelerate launch --multi_gpu --num_processes 8 examples/train_trl.py ...
    accelerate launch --use_deepspeed --deepspeed_config_file ds_configs/zero3.json --num_processes 8 \
        examples/train_trl.py ...

On machines without a GPU add `--use_cpu`.
"""

import logging
from dataclasses import dataclass, field

from transformers import HfArgumentParser
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config

from miwv_trainer import MIWVConfig, attach, load_rows, to_dataset


@dataclass
class ScriptArguments:
    dataset: str = field(metadata={"help": "Hub name, or a JSON, JSON Lines, CSV or Parquet file."})
    max_samples: int | None = field(default=None, metadata={"help": "Use only this many samples, the first ones."})


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("miwv_trainer").setLevel(logging.INFO)
    parser = HfArgumentParser([ScriptArguments, SFTConfig, ModelConfig, MIWVConfig])
    script, training, model, config = parser.parse_args_into_dataclasses()
    if training.deepspeed:
        # With `--use_cpu`, transformers joins the processes without DeepSpeed, which then counts one process when the
        # model is loaded and split (ZeRO-3), and ends with "train_batch_size is not equal to ... * world_size".
        import deepspeed

        deepspeed.init_distributed()
    trainer = SFTTrainer(
        model=model.model_name_or_path,
        args=training,
        train_dataset=to_dataset(load_rows(script.dataset, script.max_samples)),
        peft_config=get_peft_config(model),
    )
    attach(trainer, config)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model()
    # ZeRO-3 aborts at exit if the process group still exists, or if another rank still uses it when this one ends it.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
