"""What only a GPU can show: `make test-gpu`."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from miwv_trainer.compat import load_varlen_attention
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.scoring.attention import choose_tree_attention
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import choose_layout, score_pool
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.scoring.tree_masks import make_block_mask
from miwv_trainer.scoring.trees import Tree, make_tree_row
from miwv_trainer.scoring.varlen import find_varlen_obstacle, make_sequences
from tests.helpers.launch import CONFIGS, ROOT, run
from tests.helpers.tiny import instruction_rows, save_tiny
from tests.helpers.trees import (
    SEVERAL_WINDOWS,
    SMALL,
    WINDOWED,
    a_row,
    random_model,
    several_windows,
    synthetic_pool,
)
from tests.helpers.varlen import attend_by_definition

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


@pytest.fixture
def needs_varlen() -> None:
    obstacle = find_varlen_obstacle(random_model("Llama", SMALL).to("cuda", torch.bfloat16))
    if obstacle is not None:
        pytest.skip(f"variable-length attention cannot run here: {obstacle}")


def world() -> World:
    return World(0, 1, torch.device("cuda"))


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_trees_have_the_losses_of_padded_rows(attention: str, case: tuple[Pool, np.ndarray]) -> None:
    values: dict[str, Any] = {**SMALL, "hidden_size": 64}
    model = random_model("Llama", values, attention).cuda()
    reference = random_model("Llama", values, "sdpa").cuda()
    with leave_no_trace(model), leave_no_trace(reference):
        assert choose_layout(prepare_scorer(model, case[0], MIWVConfig(), world()), case[1]) == "tree"
        tree = score_pool(prepare_scorer(model, case[0], MIWVConfig(tokens_per_row=256), world()), case[1], "tree")
        padded = score_pool(prepare_scorer(reference, case[0], MIWVConfig(), world()), case[1], "padded")
    np.testing.assert_allclose(tree.zero_shot, padded.zero_shot, atol=1e-4, rtol=0)
    np.testing.assert_allclose(tree.one_shot, padded.one_shot, atol=1e-4, rtol=0)


@pytest.mark.parametrize("window", [None, 1, 2, 7, 30])
@pytest.mark.parametrize(("heads", "key_heads", "dim"), [(4, 4, 64), (8, 2, 128), (4, 1, 256), (4, 2, 80)])
def test_the_kernel_computes_what_its_definition_says(
    heads: int, key_heads: int, dim: int, window: int | None, needs_varlen: None
) -> None:
    sequences = make_sequences(a_row(1), torch.device("cuda"), window)
    query, keys, values = (
        torch.randn(count, number, dim, device="cuda", dtype=torch.bfloat16)
        for count, number in ((int(sequences.query_ends[-1]), heads), *[(int(sequences.key_ends[-1]), key_heads)] * 2)
    )
    rest = (sequences.query_ends, sequences.key_ends, sequences.longest_query, sequences.longest_key)
    options = {"scale": dim**-0.5, "window_size": sequences.window, "enable_gqa": heads != key_heads}
    found = load_varlen_attention()(query, keys, values, *rest, **options)
    expected = attend_by_definition(query.float(), keys.float(), values.float(), *rest, **options)
    # bfloat16 keeps 8 bits of the weights and of the sum, whose size is at most about 4.
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.02)


VARLEN_FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {**SMALL, "hidden_size": 64},
    **{family: {**WINDOWED[family], "hidden_size": 64} for family in ("Mistral", "Qwen2", "Gemma3Text", "Olmo3")},
}


def losses_of(model: Any, case: tuple[Pool, np.ndarray], values: dict[str, Any], layout: str) -> np.ndarray:
    with leave_no_trace(model):
        found = score_pool(prepare_scorer(model, case[0], MIWVConfig(**values), world()), case[1], layout)
    return np.stack([found.zero_shot, found.one_shot])


def check_half_precision(model: Any, reference: Any, case: tuple[Pool, np.ndarray], values: dict[str, Any]) -> None:
    """Trees are as near to the losses of float32 as padded rows in the same precision are."""
    assert choose_tree_attention(model) == "varlen"
    with leave_no_trace(model):
        assert choose_layout(prepare_scorer(model, case[0], MIWVConfig(**values), world()), case[1]) == "tree"
    exact = losses_of(reference, case, values, "padded")
    tree, padded = (np.abs(losses_of(model, case, values, layout) - exact) for layout in ("tree", "padded"))
    assert np.nanmean(tree) < 2.5 * np.nanmean(padded) + 5e-3
    assert np.nanmax(tree) < 4 * np.nanmax(padded) + 2e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", VARLEN_FAMILIES)
def test_trees_in_one_call_a_layer_have_the_losses_of_padded_rows(
    family: str, dtype: torch.dtype, needs_varlen: None
) -> None:
    model = random_model(family, VARLEN_FAMILIES[family]).to("cuda", dtype)
    reference = random_model(family, VARLEN_FAMILIES[family]).to("cuda", dtype).float()
    for name in SEVERAL_WINDOWS:
        case, values = several_windows(name)
        check_half_precision(model, reference, case, values)


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3"])
def test_a_model_loaded_with_flash_attention_takes_trees(
    name: str, case: tuple[Pool, np.ndarray], needs_varlen: None
) -> None:
    values = {**SMALL, "hidden_size": 64}
    model = random_model("Llama", values).to("cuda", torch.bfloat16)
    reference = random_model("Llama", values).to("cuda", torch.bfloat16).float()
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        pytest.skip(f"{name} is not installed: {error}")
    check_half_precision(model, reference, case, {})
    assert model.config._attn_implementation == name


def test_a_block_mask_costs_less_than_a_tenth_of_the_forward_it_is_for() -> None:
    config = LlamaConfig(hidden_size=1024, intermediate_size=2816, num_hidden_layers=16, num_attention_heads=16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).bfloat16().eval()
    pool = synthetic_pool([200] * 40)
    row = make_tree_row([Tree(i, (i + 1, i + 2, i + 3), True, 8192) for i in range(0, 40, 4)], pool)
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
    assert seconds(lambda: make_block_mask(row, torch.device("cuda"))) < forward / 10


def test_a_gpu_that_runs_out_of_memory_goes_on_with_half(caplog: pytest.LogCaptureFixture) -> None:
    pool = synthetic_pool([100] * 200)
    pool = Pool(pool.preamble, pool.tokens % SMALL["vocab_size"], pool.is_response, pool.offsets)
    exemplars = (np.arange(200) + 1) % 200
    model = random_model("Llama", {**SMALL, "hidden_size": 256, "intermediate_size": 16384}, "sdpa").cuda()
    with leave_no_trace(model):
        expected = score_pool(
            prepare_scorer(model, pool, MIWVConfig(tokens_per_batch=1024), world()), exemplars, "tree"
        )
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**30) / total)
        try:
            found = score_pool(
                prepare_scorer(model, pool, MIWVConfig(tokens_per_batch=2**17), world()), exemplars, "tree"
            )
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert "Out of memory on" in caplog.text
    np.testing.assert_allclose(found.one_shot, expected.one_shot, atol=1e-4, rtol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
def test_a_trainer_under_fsdp2_scores_as_one_process_does(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    rows = "".join(json.dumps(row) + "\n" for row in instruction_rows(24))
    (tmp_path / "pool.jsonl").write_text(rows)
    alone = [sys.executable, str(ROOT / "examples" / "train.py")]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "fsdp2.yaml")]
    found = []
    for name, command in (("alone", alone), ("fsdp2", [*launcher, "--num_processes", "2", alone[1]])):
        output = tmp_path / name
        options = f"--model_name_or_path {folder} --dataset {tmp_path / 'pool.jsonl'} --output_dir {output}"
        training = "--fraction 0.5 --embedder tfidf --rescore_strategy epoch --num_train_epochs 2 --report_to none"
        done = run([*command, *options.split(), *training.split()])
        assert done.returncode == 0, done.stderr[-4000:]
        scores = [pq.read_table(output / "miwv" / f"round-00{number}" / "scores.parquet") for number in range(2)]
        assert json.loads((output / "miwv" / "round-000" / "round.json").read_text())["processes"] == len(found) + 1
        found.append(scores[0])
    for column in ("zero_shot_loss", "one_shot_loss"):
        np.testing.assert_allclose(found[1][column].to_numpy(), found[0][column].to_numpy(), atol=1e-4, rtol=0)
    assert found[0]["selected"] == found[1]["selected"]
