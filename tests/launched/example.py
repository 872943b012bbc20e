"""Runs an example as its own `__main__` and notes, beside it, what it was run on.

example.py NOTES SCRIPT [ARGUMENTS ...]
"""

import gc
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import Trainer


def main() -> None:
    notes, script, *arguments = sys.argv[1:]
    original = Trainer.train

    def noting_train(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        rank, wrapped = self.args.process_index, self.model_wrapped
        is_deepspeed = type(wrapped).__name__ == "DeepSpeedEngine"
        seen = {
            "rank": rank,
            "world_size": self.args.world_size,
            "wrapper": type(wrapped).__name__,
            "stage": wrapped.zero_optimization_stage() if is_deepspeed else None,
            "optimizer": type(wrapped.basic_optimizer).__name__ if is_deepspeed else None,
            "steps": self.state.global_step,
            "max_steps": self.state.max_steps,
        }
        Path(notes, f"rank-{rank}.json").write_text(json.dumps(seen))
        return result

    Trainer.train = noting_train
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(script))
    runpy.run_path(script, run_name="__main__")
    if dist.is_initialized():
        # On CPUs a thread of gloo that drops a tensor while the interpreter exits aborts the process
        # (pytorch#190489): 1 of some 60 runs of these examples ended so.
        dist.destroy_process_group()
        gc.collect()


if __name__ == "__main__":
    main()
