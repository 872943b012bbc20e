"""Forwards of low-precision weights in float32 arithmetic, and no trace of it."""

import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, MixtralConfig, PretrainedConfig

from miwv_trainer.scoring.float32 import use_float32
from miwv_trainer.scoring.isolation import leave_no_trace
from tests.helpers.fused import add_fused_head
from tests.helpers.low_precision import bfloat16_model, state
from tests.helpers.tiny import tiny_config, tiny_model

IDS = torch.tensor([[5, 17, 300, 42, 9, 88], [7, 7, 250, 1, 0, 3]])


FAMILIES: dict[str, PretrainedConfig] = {
    "llama": tiny_config(),
    "llama, tied": tiny_config(tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3),
    "mixtral": MixtralConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        initializer_range=0.3,
    ),
}


def with_lora(model: Any, **more: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False), **more)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_inside_the_forward_is_that_of_the_same_weights_in_float32(family: str) -> None:
    model = bfloat16_model(FAMILIES[family])
    exact, rounded = logits(copy.deepcopy(model).float()), logits(model)
    before = state(model)
    with use_float32(model):
        inside = logits(model)
    assert inside.dtype == torch.float32 and rounded.dtype == torch.bfloat16
    torch.testing.assert_close(inside, exact, atol=1e-6, rtol=1e-6)
    assert (rounded - exact).abs().max() > 1e-3  # what the rounding had cost
    assert state(model) == before
    assert torch.equal(logits(model), rounded)


@pytest.mark.parametrize("adapter_in_float32", [True, False])
def test_lora_on_low_precision_weights(adapter_in_float32: bool) -> None:
    model = with_lora(bfloat16_model(), autocast_adapter_dtype=adapter_in_float32)
    if not adapter_in_float32:
        model.to(torch.bfloat16)
    exact, before = logits(copy.deepcopy(model).float()), state(model)
    with use_float32(model):
        torch.testing.assert_close(logits(model), exact, atol=1e-6, rtol=1e-6)
    assert state(model) == before
    assert (logits(model) - exact).abs().max() > 1e-3


@pytest.mark.parametrize("peft", [False, True])
def test_autocast_put_around_the_forward_by_accelerate_is_off_inside(bf16_accelerator: Accelerator, peft: bool) -> None:
    plain = with_lora(tiny_model()) if peft else tiny_model()
    model = bf16_accelerator.prepare(copy.deepcopy(plain))
    rounded, before = logits(model), state(model)
    with use_float32(model):
        torch.testing.assert_close(logits(model), logits(plain), atol=1e-6, rtol=1e-6)
    assert (rounded - logits(plain)).abs().max() > 1e-3
    assert state(model) == before
    assert torch.equal(logits(model), rounded)


def test_autocast_around_everything_is_off_inside_and_on_again_outside() -> None:
    model = tiny_model()
    exact = logits(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with use_float32(model):
            torch.testing.assert_close(logits(model), exact, atol=1e-6, rtol=1e-6)
        assert torch.is_autocast_enabled("cpu")
        assert (logits(model) - exact).abs().max() > 1e-3


def test_trls_fused_head_which_reads_the_heads_weight_itself() -> None:
    def log_probs(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=IDS, labels=IDS, fused_lm_head=True).log_probs

    model = bfloat16_model()
    exact_model = copy.deepcopy(model).float()
    add_fused_head(model), add_fused_head(exact_model)
    with use_float32(model):
        torch.testing.assert_close(log_probs(model), log_probs(exact_model), atol=1e-5, rtol=1e-5)
    assert (log_probs(model) - log_probs(exact_model)).abs().max() > 1e-3


def test_a_hook_that_calls_the_head_itself_finds_it_in_float32() -> None:
    model = bfloat16_model()
    exact = logits(copy.deepcopy(model).float())
    seen: list[torch.Tensor] = []

    def one_position(module: Any, args: Any) -> Any:
        seen.append(module.forward(args[0]))
        return (args[0][:, :1],)

    with use_float32(model), torch.no_grad():
        hook = model.get_output_embeddings().register_forward_pre_hook(one_position)
        assert model(input_ids=IDS).logits.shape[1] == 1
        hook.remove()
    torch.testing.assert_close(seen[0], exact, atol=1e-6, rtol=1e-6)


def test_no_trace_after_an_error_inside_a_layer() -> None:
    model = bfloat16_model()
    rounded = logits(model)

    def fail(*_: Any) -> None:
        raise KeyError("in the layer")

    before = state(model)
    with pytest.raises(KeyError, match="in the layer"), use_float32(model):
        hook = model.model.layers[1].mlp.register_forward_pre_hook(fail)
        try:
            logits(model)
        finally:
            hook.remove()
    assert state(model) == before
    assert torch.equal(logits(model), rounded)


def test_a_gradient_and_what_others_hooked_to_its_accumulation_stay() -> None:
    model = bfloat16_model().train()
    model.gradient_checkpointing_enable()
    model(input_ids=IDS, labels=IDS).loss.backward()
    weight = model.model.layers[0].mlp.up_proj.weight
    accumulator = weight.expand_as(weight).grad_fn.next_functions[0][0]
    gradient, before = weight.grad.clone(), state(model)
    counted: list[int] = []
    accumulator.register_hook(lambda *_: counted.append(1))  # as DistributedDataParallel does
    with leave_no_trace(model), use_float32(model):
        logits(model)
    assert state(model) == before and torch.equal(weight.grad, gradient)
    assert weight.expand_as(weight).grad_fn.next_functions[0][0] is accumulator
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert counted == [1]


def test_one_layer_at_a_time_is_held_in_float32() -> None:
    model = bfloat16_model()
    seen: list[list[torch.dtype]] = []
    note = lambda *_: seen.append([layer.mlp.up_proj.weight.dtype for layer in model.model.layers])  # noqa: E731
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(note)
    with use_float32(model):
        logits(model)
    low, high = torch.bfloat16, torch.float32
    assert seen == [[high, low], [low, high]]


class Sharing(nn.Module):
    """Layers that share a weight, a module, and a buffer with each other or with the outside."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        second[0].weight = first[0].weight
        second[1] = first[1]
        self.layers = nn.ModuleList([nn.ModuleList([first]), second])
        self.out = nn.Linear(4, 4)
        self.out.register_buffer("shift", torch.full((4,), 0.1))
        second[0].bias = self.out.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.out.weight.dtype)
        return self.out(self.layers[1](self.layers[0][0](x))) + self.out.shift


def test_what_layers_share_is_float32_in_all_of_them() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Sharing().to(torch.bfloat16), torch.randn(2, 4)
    before = state(model)
    with torch.no_grad():
        exact = copy.deepcopy(model).float()(x)
        with use_float32(model):
            torch.testing.assert_close(model(x), exact, atol=1e-7, rtol=1e-7)
    assert state(model) == before
