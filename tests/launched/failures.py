"""Run on each rank by test_world.py: the last rank fails in the middle of a round, and nothing catches it.

    failures.py KIND FOLDER OUTPUT

KIND: "raise" an error, run out of "memory" on a single sample, or "kill" the process, as the system does where memory
is short. The time is noted in OUTPUT/failed.
"""

import os
import signal
import sys
import time
from pathlib import Path

from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from miwv_trainer import MIWVConfig, attach, tokenize
from tests.helpers.tiny import tiny_dataset, tiny_tokenizer

FORWARDS_BEFORE = 40


def main() -> None:
    kind, folder, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    tokenizer = tiny_tokenizer()
    pool = tokenize(tiny_dataset(60), tokenizer)
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=TrainingArguments(output_dir=str(output), save_strategy="no", report_to="none", use_cpu=True),
        train_dataset=pool.remove_columns(["instruction", "input", "output"]),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    attach(trainer, MIWVConfig(embedder="tfidf", layout="padded", tokens_per_batch=1))  # one sample a forward
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls < FORWARDS_BEFORE:
            return
        (output / "failed").write_text(str(time.time()))
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "memory":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: no tea")
        raise OSError("no tea")

    if trainer.args.process_index == trainer.args.world_size - 1:
        trainer.model.model.layers[1].register_forward_pre_hook(fail)
    trainer.train()


if __name__ == "__main__":
    main()
