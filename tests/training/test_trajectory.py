"""A round before the first step scores what training options leave of a model, and leaves the training as it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from miwv_trainer.data.build import pool_from_rows
from tests.helpers.held import plain_losses
from tests.helpers.launch import NEEDS_CHECKPOINTED_ADAPTERS, ROOT, launch
from tests.helpers.tiny import save_tiny, tiny_dataset, tiny_tokenizer
from tests.launched.trajectory import COUNT

SCRIPT = ROOT / "tests" / "launched" / "trajectory.py"
NORMS = 5 * 32
ADAPTERS = 2 * (32 * 4 + 4 * 32 + 32 * 4 + 4 * 16)
WRAPPERS = {"ddp": "DistributedDataParallel", "zero3": "DeepSpeedEngine"}


def check_rank(rank: dict[str, Any], folder: Path) -> None:
    """The training with and without a round before it is the same, and the round's losses are the model's own."""
    for name in ("full", "lora"):
        without, scored = rank[f"{name}-False"], rank[f"{name}-True"]
        if rank["rank"] == 0:  # the Trainer logs there
            assert len(scored["losses"]) == 6 and scored["losses"] == without["losses"]
            assert scored["losses"][-1] < scored["losses"][0]
    pool, model = pool_from_rows(tiny_dataset(COUNT), tiny_tokenizer()), AutoModelForCausalLM.from_pretrained(folder)
    # The adapters start as zero, so these are all the model's, whatever noise and dropout the training has.
    for name, tolerance in (("full", 1e-5), ("lora", 1e-5), ("bfloat16", 0.05)):
        (exemplars,), (scored,) = rank[f"{name}-True"]["exemplars"], rank[f"{name}-True"]["scored"]
        np.testing.assert_allclose(scored, plain_losses(model, pool, exemplars), atol=tolerance, rtol=0)


@pytest.mark.parametrize("backend", ["ddp", pytest.param("zero3", marks=NEEDS_CHECKPOINTED_ADAPTERS)])
def test_losses_of_the_training_are_the_same_with_and_without_a_round_before_it(backend: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    done = launch(backend, 2, SCRIPT, str(folder), str(tmp_path))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert [(rank["rank"], rank["world_size"]) for rank in ranks] == [(0, 2), (1, 2)]
    for rank in ranks:
        check_rank(rank, folder)
        for name in ("full-True", "lora-True", "bfloat16-True"):
            run = rank[name]
            assert run["wrapper"] == WRAPPERS[backend]
            (parameters, before), (held, after) = run["held"]
            assert before == after
            assert before["grad"].count(None) == len(before["grad"]) and all(before["training"])
            # ZeRO-3 keeps what is small once it was gathered.
            small = NORMS + (0 if name == "full-True" else ADAPTERS)
            assert held == (parameters if backend == "ddp" else small)
