"""The shape of peft's SFT example: arguments of its own, a model and its adapter made in a helper, SFTTrainer."""

import sys
from dataclasses import dataclass, field
from typing import Any

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, set_seed
from trl import SFTConfig, SFTTrainer

from miwv_trainer import MIWVConfig, attach  # +


@dataclass
class ModelArguments:
    model_name_or_path: str = field(default="")
    lora_alpha: int = field(default=16)
    lora_r: int = field(default=8)
    lora_target_modules: str = field(default="q_proj,v_proj")


@dataclass
class DataTrainingArguments:
    dataset_name: str = field(default="")
    splits: str = field(default="train")


def create_and_prepare_model(args: ModelArguments) -> tuple[Any, LoraConfig, Any]:
    model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path)
    peft_config = LoraConfig(
        lora_alpha=args.lora_alpha,
        r=args.lora_r,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=args.lora_target_modules.split(","),
    )
    return model, peft_config, AutoTokenizer.from_pretrained(args.model_name_or_path)


def main(model_args: ModelArguments, data_args: DataTrainingArguments, training_args: SFTConfig) -> None:
    set_seed(training_args.seed)
    model, peft_config, tokenizer = create_and_prepare_model(model_args)
    model.config.use_cache = not training_args.gradient_checkpointing
    train_dataset = load_dataset("json", data_files=data_args.dataset_name, split=data_args.splits)
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=training_args,
        train_dataset=train_dataset,
        peft_config=peft_config,
    )
    trainer.accelerator.print(f"{trainer.model}")
    attach(trainer, MIWVConfig(fraction=0.5, rescore_strategy="epoch", embedder="tfidf"))  # +
    checkpoint = None
    if training_args.resume_from_checkpoint is not None:
        checkpoint = training_args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()


if __name__ == "__main__":
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, SFTConfig))
    main(*parser.parse_args_into_dataclasses(args=sys.argv[1:]))
