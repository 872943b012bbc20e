"""Run on each rank by test_resume.py: one training after the other, what each trained noted as JSON.

resume.py OUTPUT RUN [RUN ...]; a RUN is JSON with `folder`, `checkpoint`, and arguments of the Trainer.
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from tests.helpers.resumed import Run, config_of, weights_of


def main() -> None:
    output = Path(sys.argv[1])
    results = []
    for described in map(json.loads, sys.argv[2:]):
        run = Run(config=config_of("steps", rescore_steps=3), **described)
        results.append(
            {
                "world_size": dist.get_world_size() if dist.is_initialized() else 1,
                "wrapper": type(run.trainer.model_wrapped).__name__,
                "order": run.order,
                "places": run.places(),
                "weights": weights_of(run),
            }
        )
    rank = dist.get_rank() if dist.is_initialized() else 0
    (output / f"rank-{rank}.json").write_text(json.dumps(results))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
