"""Float32 arithmetic inside a model of lower precision, and which samples are scored again in it."""

import copy
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import nn

from miwv_trainer import precision
from miwv_trainer.config import MIWVConfig
from miwv_trainer.distributed import World
from miwv_trainer.layout import score_pool
from miwv_trainer.pool import Pool
from miwv_trainer.precision import (
    Refinement,
    computes_in_float32,
    float32_arithmetic,
    nearest_to_threshold,
    refine_near_threshold,
)
from miwv_trainer.scoring import Losses, no_trace
from miwv_trainer.selection import select_top
from tests.test_trees import FULL_ATTENTION, SMALL, case, random_model  # noqa: F401

CPU = torch.device("cpu")
WORLD = World(0, 1, CPU)
IDS = torch.arange(40)[None] * 7 % 512


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def in_bfloat16(family: str) -> Any:
    return random_model(family, FULL_ATTENTION[family], "sdpa").bfloat16().eval()


@pytest.mark.parametrize("family", ["Llama", "GPT2", "GPTNeoX", "Mixtral", "Cohere", "Gemma"])
def test_the_forward_is_that_of_the_same_weights_in_float32(family: str) -> None:
    model = in_bfloat16(family)
    expected = logits(copy.deepcopy(model).float())
    before = logits(model)
    with float32_arithmetic(model):
        found = logits(model)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (before - expected).abs().max() > 1e-3


def test_adapters_in_float32_on_a_base_in_bfloat16() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(in_bfloat16("Llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    assert {p.dtype for p in model.parameters()} == {torch.float32, torch.bfloat16}
    expected = logits(copy.deepcopy(model).float())
    with float32_arithmetic(model):
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)


def test_the_autocast_that_accelerate_puts_into_the_forward_is_off_inside_and_on_again_outside() -> None:
    plain = random_model("Llama", SMALL, "sdpa").eval()
    expected = logits(plain)
    model = Accelerator(mixed_precision="bf16", cpu=True).prepare(copy.deepcopy(plain))
    before = logits(model)
    assert (before - expected).abs().max() > 1e-3
    assert not computes_in_float32(model)
    with float32_arithmetic(model):
        assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model), before)
    assert not torch.is_autocast_enabled("cpu")


def test_the_head_that_trl_fuses_is_widened_too(case: tuple[Pool, np.ndarray]) -> None:  # noqa: F811
    from trl.trainer.utils import add_fused_lm_head

    model = in_bfloat16("Llama")
    wide = copy.deepcopy(model).float()
    add_fused_lm_head(model)
    with no_trace(model), float32_arithmetic(model):
        found = score_pool(model, *case, MIWVConfig(), "tree", WORLD)
    with no_trace(wide):
        expected = score_pool(wide, *case, MIWVConfig(), "padded", WORLD)
    np.testing.assert_allclose(found.one_shot, expected.one_shot, atol=2e-5, rtol=0)


class Fails(nn.Module):
    def forward(self, *args: Any) -> Any:
        raise RuntimeError("halfway")


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind_not_even_after_an_error(fails: bool) -> None:
    model = in_bfloat16("GPT2")  # embeddings tied to the head
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: (p, p.data_ptr(), p.dtype) for name, p in model.named_parameters()}
    hooks = hooks_of(model)
    output = logits(model)
    if fails:
        kept = model.transformer.h[1].mlp.act
        model.transformer.h[1].mlp.act = Fails()
        with pytest.raises(RuntimeError, match="halfway"), float32_arithmetic(model):
            logits(model)
        model.transformer.h[1].mlp.act = kept
    else:
        with float32_arithmetic(model):
            logits(model)
    after = {name: (p, p.data_ptr(), p.dtype) for name, p in model.named_parameters()}
    assert all(before[name][0] is after[name][0] and before[name][1:] == after[name][1:] for name in before)
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())
    assert torch.equal(logits(model), output)
    assert hooks_of(model) == hooks


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_only_one_modules_weights_are_wide_at_a_time() -> None:
    model = in_bfloat16("Llama")
    wide: list[int] = []
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not model.lm_head]
    with float32_arithmetic(model):
        for layer in layers:
            layer.register_forward_hook(
                lambda *_: wide.append(sum(each.weight.dtype == torch.float32 for each in layers))
            )
        logits(model)
    assert len(wide) == len(layers) and max(wide) <= 1


def test_nearest_to_the_threshold_by_hand() -> None:
    miwv = np.array([5.0, 1.0, np.nan, 3.0, 2.0, -4.0])
    # Two are selected, 5 and 3, and 2 is the next: the threshold is 2.5.
    assert nearest_to_threshold(miwv, 2).tolist() == [3, 4, 1, 0, 5]
    assert nearest_to_threshold(miwv, 2, within=0.5).tolist() == [3, 4]
    assert nearest_to_threshold(miwv, 2, within=0.4).tolist() == []
    assert nearest_to_threshold(miwv, 5).tolist() == []  # all that were scored are selected


def both(model: Any, case: tuple[Pool, np.ndarray]) -> tuple[Losses, Losses]:  # noqa: F811
    """Losses in bfloat16, and those of the same weights in float32."""
    wide = copy.deepcopy(model).float()
    with no_trace(model), no_trace(wide):
        low = score_pool(model, *case, MIWVConfig(), "tree", WORLD)
        return low, score_pool(wide, *case, MIWVConfig(), "padded", WORLD)


def test_refinement_repairs_what_bfloat16_selects_wrongly(
    case: tuple[Pool, np.ndarray],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "FIRST", 4)
    monkeypatch.setattr(precision, "MOST", 0.8)
    model = in_bfloat16("Llama")
    low, reference = both(model, case)
    flipped = 0
    for number in range(1, len(case[0])):
        with no_trace(model):
            found, cost = refine_near_threshold(model, *case, MIWVConfig(), "tree", WORLD, low, number)
        changed = (found.miwv != low.miwv).sum()
        assert 0 < changed <= cost.samples < len(case[0])
        assert cost.tokens > 0 and cost.seconds > 0
        wanted = set(select_top(reference.miwv, number).tolist())
        flipped += set(select_top(low.miwv, number).tolist()) != wanted
        assert set(select_top(found.miwv, number).tolist()) == wanted
    assert flipped > 1


def test_no_more_than_a_quarter_is_scored_again(
    case: tuple[Pool, np.ndarray],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "WIDTH", 1e6)
    model = in_bfloat16("Llama")
    low, reference = both(model, case)
    with no_trace(model):
        found, cost = refine_near_threshold(model, *case, MIWVConfig(), "tree", WORLD, low, 5)
    assert cost.samples == len(case[0]) // 4
    is_exact = np.abs(found.miwv - reference.miwv) < 2e-5
    assert is_exact[nearest_to_threshold(low.miwv, 5)[:4]].all()
    assert np.array_equal(found.miwv[~is_exact], low.miwv[~is_exact])


@pytest.mark.parametrize(
    ("world", "model", "reason"),
    [
        (WORLD, random_model("Llama", SMALL, "sdpa"), "computes in float32"),
        (World(0, 1, CPU, sharded=True), in_bfloat16("Llama"), "parameters are sharded"),
    ],
)
def test_where_it_is_of_no_use_nothing_is_scored_again(
    world: World,
    model: Any,
    reason: str,
    case: tuple[Pool, np.ndarray],  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    losses = Losses(np.zeros(30, np.float32), np.arange(30, dtype=np.float32), 1)
    with caplog.at_level(logging.INFO, logger="miwv_trainer"):
        same, cost = refine_near_threshold(model, *case, MIWVConfig(), "tree", world, losses, 5)
    assert same is losses and cost == Refinement()
    assert "No sample is scored again in float32: the model" in caplog.text and reason in caplog.text


def test_a_quantised_model_is_left_alone(case: tuple[Pool, np.ndarray], caplog: Any) -> None:  # noqa: F811
    model = in_bfloat16("Llama")
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    losses = Losses(np.zeros(30, np.float32), np.arange(30, dtype=np.float32), 1)
    with caplog.at_level(logging.INFO, logger="miwv_trainer"):
        same, _ = refine_near_threshold(model, *case, MIWVConfig(), "tree", WORLD, losses, 5)
    assert same is losses and "the model is quantised" in caplog.text


def test_everything_selected_leaves_nothing_in_doubt(case: tuple[Pool, np.ndarray]) -> None:  # noqa: F811
    model = in_bfloat16("Llama")
    losses = Losses(np.zeros(30, np.float32), np.arange(30, dtype=np.float32), 1)
    found, cost = refine_near_threshold(model, *case, MIWVConfig(), "tree", WORLD, losses, 30)
    assert np.array_equal(found.miwv, losses.miwv) and replace(cost, seconds=0) == Refinement()
