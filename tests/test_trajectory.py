"""A scoring pass before the first step leaves the training as it would have been, under DDP and ZeRO-3."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.launched import ROOT, launch
from tests.tiny import save_tiny

NORMS = 5 * 32
ADAPTERS = 2 * (32 * 4 + 4 * 32 + 32 * 4 + 4 * 16)
WRAPPERS = {"ddp": "DistributedDataParallel", "zero3": "DeepSpeedEngine"}


@pytest.mark.parametrize("backend", WRAPPERS)
def test_losses_of_the_training_are_the_same_with_and_without_a_round_before_it(backend: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    done = launch(backend, 2, ROOT / "tests" / "launched_trajectory.py", str(folder), str(tmp_path))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert [(rank["rank"], rank["world_size"]) for rank in ranks] == [(0, 2), (1, 2)]
    for rank in ranks:
        for name in ("full", "lora"):
            without, scored = rank[f"{name}-False"], rank[f"{name}-True"]
            assert without["wrapper"] == scored["wrapper"] == WRAPPERS[backend]
            if rank["rank"] == 0:  # the Trainer logs there
                assert len(scored["losses"]) == 6 and scored["losses"] == without["losses"]
                assert scored["losses"][-1] < scored["losses"][0]
            (parameters, flags), (held, flags_after) = scored["held"]
            assert flags == flags_after
            # ZeRO-3 keeps what is small once it was gathered.
            small = NORMS + (ADAPTERS if name == "lora" else 0)
            assert held == (parameters if backend == "ddp" else small)
        # The adapters start as zero: the scores of both are the model's, whatever noise and dropout the training has.
        for losses in ("zero_shot", "one_shot"):
            np.testing.assert_allclose(rank["full-True"][losses], rank["lora-True"][losses], atol=1e-5, rtol=0)
