"""What only a GPU can show: `make test-gpu`."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from miwv_trainer.attention import _block_mask
from miwv_trainer.config import MIWVConfig
from miwv_trainer.distributed import World
from miwv_trainer.layout import choose_layout, score_pool
from miwv_trainer.packing import Tree, tree_row
from miwv_trainer.pool import Pool
from miwv_trainer.scoring import no_trace
from tests.launched import ROOT, free_port, run
from tests.test_trajectory import check_rank
from tests.test_trees import SMALL, case, random_model, synthetic_pool  # noqa: F401
from tests.tiny import save_tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


def world() -> World:
    return World(0, 1, torch.device("cuda"))


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_trees_have_the_losses_of_padded_rows(attention: str, case: tuple[Pool, np.ndarray]) -> None:  # noqa: F811
    values: dict[str, Any] = {**SMALL, "hidden_size": 64}
    model = random_model("Llama", values, attention).cuda()
    reference = random_model("Llama", values, "sdpa").cuda()
    with no_trace(model), no_trace(reference):
        assert choose_layout(model, *case, MIWVConfig(), world()) == "tree"
        tree = score_pool(model, *case, MIWVConfig(tokens_per_row=256), "tree", world())
        padded = score_pool(reference, *case, MIWVConfig(), "padded", world())
    np.testing.assert_allclose(tree.zero_shot, padded.zero_shot, atol=1e-4, rtol=0)
    np.testing.assert_allclose(tree.one_shot, padded.one_shot, atol=1e-4, rtol=0)


def test_a_block_mask_costs_less_than_a_tenth_of_the_forward_it_is_for() -> None:
    config = LlamaConfig(hidden_size=1024, intermediate_size=2816, num_hidden_layers=16, num_attention_heads=16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).bfloat16().eval()
    pool = synthetic_pool([200] * 40)
    row = tree_row([Tree(i, (i + 1, i + 2, i + 3), True, 8192) for i in range(0, 40, 4)], pool)
    ids = torch.as_tensor(row.ids % config.vocab_size, device="cuda").long()[None]

    def seconds(run: Any) -> float:
        run()
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(5):
            run()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    with torch.no_grad():
        forward = seconds(lambda: model(ids, logits_to_keep=1, use_cache=False))
    assert seconds(lambda: _block_mask(row, torch.device("cuda"))) < forward / 10


def test_a_gpu_that_runs_out_of_memory_goes_on_with_half(caplog: pytest.LogCaptureFixture) -> None:
    pool = synthetic_pool([100] * 200)
    pool = Pool(pool.preamble, pool.tokens % SMALL["vocab_size"], pool.is_response, pool.offsets)
    exemplars = (np.arange(200) + 1) % 200
    model = random_model("Llama", {**SMALL, "hidden_size": 256, "intermediate_size": 16384}, "sdpa").cuda()
    with no_trace(model):
        expected = score_pool(model, pool, exemplars, MIWVConfig(tokens_per_batch=1024), "tree", world())
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**30) / total)
        try:
            found = score_pool(model, pool, exemplars, MIWVConfig(tokens_per_batch=2**17), "tree", world())
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert "Out of memory on" in caplog.text
    np.testing.assert_allclose(found.one_shot, expected.one_shot, atol=1e-4, rtol=0)


def test_a_trainer_with_fsdp2_scores_and_trains_as_it_would_without_a_round(tmp_path: Path) -> None:
    folder, number = save_tiny(tmp_path / "model"), torch.cuda.device_count()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(number)]
    script = str(ROOT / "tests" / "launched_trajectory.py")
    done = run([*launcher, "--master_port", str(free_port()), script, str(folder), str(tmp_path), "FSDP"])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for rank in range(number):
        found = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert found["full-True"]["wrapper"] == "FSDPLlamaForCausalLM"
        check_rank(found, folder, tolerance=1e-3, noise=1e-3)
