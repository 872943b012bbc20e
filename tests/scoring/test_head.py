"""Losses through the head, chunk by chunk, against the model's own logits, family by family."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from miwv_trainer.data.pool import Pool
from miwv_trainer.scoring.head import Head, Targets, choose_head, compute_answer_losses
from miwv_trainer.scoring.root_forward import forward_one_position
from miwv_trainer.scoring.tree_masks import make_mask
from miwv_trainer.scoring.trees import Tree, make_tree_row
from tests.helpers.families import find_config
from tests.helpers.fused import add_fused_head
from tests.helpers.tiny import tiny_config, tiny_model

VOCABULARY = 509  # no other size in any of these models
LENGTHS = (23, 9, 17)

SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ATTENTION = {**SHARED, "intermediate_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64}
GROUPED = {**ATTENTION, "num_key_value_heads": 2}
EXPERTS = {**GROUPED, "output_router_logits": True}
HYBRID = {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": GROUPED,
    "Gemma2": {**GROUPED, "head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 1.5},
    "Gemma3Text": {**GROUPED, "head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 2.0},
    "RecurrentGemma": {**ATTENTION, "attention_window_size": 8, "logits_soft_cap": 1.5},
    "Cohere": {**GROUPED, "logit_scale": 0.3},
    "Cohere2": {**GROUPED, "logit_scale": 1.7, "sliding_window": 8},
    "Granite": {**GROUPED, "logits_scaling": 2.5},
    "GraniteMoe": {**GROUPED, "logits_scaling": 0.4, "num_local_experts": 4, "num_experts_per_tok": 2},
    "HyperCLOVAX": {**GROUPED, "logits_scaling": 0.4},
    "MiniCPM3": {
        **ATTENTION, "dim_model_base": 16, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 8,
    },
    "xLSTM": {**SHARED, "num_heads": 2, "output_logit_soft_cap": 1.5},
    "FalconH1": {**GROUPED, **HYBRID, "lm_head_multiplier": 0.4},
    "GPT2": {
        "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3,
        "bos_token_id": None, "eos_token_id": None,
    },
    "GPTNeoX": ATTENTION,
    "Phi": ATTENTION,
    "Mamba": {**SHARED, "state_size": 8},
    "Bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
    "Mpt": {
        "vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64,
        "initializer_range": 0.3, "logit_scale": "inv_sqrt_d_model",
    },
    "Qwen2Moe": {**EXPERTS, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4},
    "Mixtral": {**EXPERTS, "num_local_experts": 4, "sliding_window": None},
}  # fmt: skip
SCALED_OR_CAPPED = [
    "Gemma2", "Gemma3Text", "RecurrentGemma", "Cohere", "Cohere2", "Granite", "GraniteMoe", "HyperCLOVAX", "xLSTM",
    "FalconH1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def family_model(family: str) -> Any:
    model = tiny_model(find_config(family)(**FAMILIES[family]))
    head = model.get_output_embeddings()
    if head.bias is not None:
        head.bias.copy_(torch.linspace(-2, 2, len(head.bias)))  # it starts as zero, and would not be missed
    return model


def batch() -> tuple[dict[str, torch.Tensor], np.ndarray, np.ndarray, np.ndarray]:
    """Padded rows, and answers that do not stand in them in one piece: inputs, rows, predicting positions, answers."""
    generator = np.random.default_rng(0)
    ids = generator.integers(1, VOCABULARY, (len(LENGTHS), max(LENGTHS)))
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    rows, targets = np.nonzero(mask & (np.arange(max(LENGTHS)) >= 4) & (generator.random(ids.shape) < 0.7))
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
    return inputs, rows, targets - 1, ids[rows, targets].astype(np.int32)


def by_own_logits(model: Any, autocast: bool = False) -> np.ndarray:
    """-log p of each answer from all logits of a plain forward."""
    inputs, rows, predicting, answers = batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(**inputs, use_cache=False, **without_balancing(model)).logits
    log_p = logits.float().log_softmax(dim=-1).numpy()
    return -log_p[rows, predicting, answers]


def without_balancing(model: Any) -> dict[str, bool]:
    return {"output_router_logits": False} if "output_router_logits" in model.config.to_dict() else {}


def losses(model: nn.Module, logits_chunk: int = 256, head: Head | None = None) -> np.ndarray:
    inputs, rows, predicting, answers = batch()
    return compute_answer_losses(
        model, inputs, Targets.from_arrays(rows, predicting, answers), logits_chunk, head or choose_head(model)
    )


class WidestVocabulary(TorchDispatchMode):
    """Notes, for every tensor that any operation makes, how many rows of vocabulary it holds, weights left out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.most = 0
        self.weights = {parameter.numel() for parameter in model.parameters() if parameter.ndim > 1}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            is_wide = isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.shape[-1] == VOCABULARY
            if is_wide and tensor.numel() not in self.weights:
                self.most = max(self.most, tensor.numel() // VOCABULARY)
        return result


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_the_models_own_logits(family: str) -> None:
    model = family_model(family)
    expected = by_own_logits(model)
    assert choose_head(model) == "chunked"
    for logits_chunk in (1, 3, 1000):
        np.testing.assert_allclose(losses(model, logits_chunk), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", SCALED_OR_CAPPED)
def test_what_a_family_does_to_its_logits_matters_in_these_tests(family: str) -> None:
    model = family_model(family)
    inputs, rows, predicting, answers = batch()
    heads: list[torch.Tensor] = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: heads.append(output))
    expected = by_own_logits(model)
    log_p = heads[0].float().log_softmax(dim=-1).numpy()
    assert np.abs(-log_p[rows, predicting, answers] - expected).max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("logits_chunk", [1, 5])
def test_no_more_than_a_chunk_of_vocabulary_rows_ever_exists(family: str, logits_chunk: int) -> None:
    model = family_model(family)
    head = choose_head(model)
    with WidestVocabulary(model) as seen:
        losses(model, logits_chunk, head)
    assert seen.most == logits_chunk
    with WidestVocabulary(model) as seen:
        choose_head(model)
        forward_one_position(model, batch()[0])
    assert seen.most == 1


def test_the_watch_over_the_vocabulary_sees_the_logits_of_a_plain_forward() -> None:
    model = family_model("Llama")
    with WidestVocabulary(model) as seen:
        by_own_logits(model)
    assert seen.most == len(LENGTHS) * max(LENGTHS)


def test_scoring_is_one_forward_of_the_root() -> None:
    model = family_model("Llama")
    head = choose_head(model)
    forwards: list[torch.Size] = []
    model.register_forward_hook(lambda module, args, output: forwards.append(output.logits.shape))
    losses(model, 2, head)
    assert forwards == [(1, 1, VOCABULARY)]


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Cohere", "Granite", "MiniCPM3", "FalconH1", "Phi", "Mixtral"])
def test_trls_fused_head_gives_the_losses_of_the_models_own_logits(family: str) -> None:
    model = family_model(family)
    expected = by_own_logits(model)
    add_fused_head(model)
    assert choose_head(model) == "fused"
    np.testing.assert_allclose(losses(model), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["lm_head"], "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_adapters_of_the_head_count(options: dict[str, Any]) -> None:
    plain = by_own_logits(family_model("Cohere"))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        # The saved head is a copy, which is changed so that it shows which of the two is used.
        model = get_peft_model(family_model("Cohere"), LoraConfig(**options, init_lora_weights=False)).eval()
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
    assert choose_head(model) == "chunked"
    expected = by_own_logits(model)
    np.testing.assert_allclose(losses(model, 3), expected, atol=2e-5, rtol=0)
    assert np.abs(expected - plain).max() > 1e-2


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Cohere", "GPT2", "FalconH1"])
@pytest.mark.parametrize("way", ["autocast", "weights"])
def test_in_bfloat16_losses_differ_from_the_models_own_by_rounding_only(family: str, way: str) -> None:
    model = family_model(family)
    if way == "weights":
        model = model.to(torch.bfloat16)
    expected = by_own_logits(model, autocast=way == "autocast")
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        assert choose_head(model) == "chunked"
        found = losses(model, 3)
    np.testing.assert_allclose(found, expected, atol=0.06, rtol=0)
    assert np.abs(found - expected).mean() < 0.01


def test_the_logarithm_is_taken_in_float32() -> None:
    """In bfloat16 the head is exact, so that nothing but the arithmetic behind it could lose digits."""
    model = tiny_model(tiny_config(VOCABULARY)).to(torch.bfloat16)
    heads: list[torch.Tensor] = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: heads.append(output.double()))
    by_own_logits(model)
    handle.remove()
    _, rows, predicting, answers = batch()
    expected = -heads[0].log_softmax(dim=-1).numpy()[rows, predicting, answers]
    np.testing.assert_allclose(losses(model, 1000), expected, atol=1e-5, rtol=0)


def test_rows_of_trees_of_a_mixture_of_experts_that_balances_its_load() -> None:
    """The loss for that is made of the mask, which has four dimensions here."""
    model = family_model("Mixtral")
    pool = Pool(np.arange(3), np.arange(3, 13, dtype=np.int32), np.arange(10) % 5 > 2, np.array([0, 5, 10]))
    row = make_tree_row([Tree(0, (1,), True, 64)], pool)
    inputs = {
        "input_ids": torch.as_tensor(row.ids.astype(np.int64))[None],
        "position_ids": torch.as_tensor(row.positions)[None],
        "attention_mask": make_mask([row], torch.device("cpu")),
    }
    targets = Targets.from_arrays(np.zeros_like(row.targets), row.targets - 1, row.ids[row.targets])
    found = compute_answer_losses(model, inputs, targets, 2, "chunked")
    logits = model(torch.arange(13)[None], output_router_logits=False).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[[5, 6, 10, 11]], torch.tensor([6, 7, 11, 12]), reduction="none")
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("use", [losses, choose_head, lambda model: forward_one_position(model, batch()[0])])
def test_no_hook_stays_behind_not_even_after_an_error(use: Callable[[nn.Module], Any]) -> None:
    model = family_model("Llama")

    def hooks() -> int:
        return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())

    use(model)
    assert hooks() == 0

    def fail(*args: Any) -> None:
        raise MemoryError("too wide")

    model.lm_head.forward = fail
    with pytest.raises(MemoryError, match="too wide"):
        use(model)
    assert hooks() == 0


class Tripled(LlamaForCausalLM):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = 3 * output.logits
        return output


class FaintlyCapped(LlamaForCausalLM):
    """The tiny model's own logits are far below the cap; only wide ones show it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = 500 * torch.tanh(output.logits / 500)
        return output


class CutVocabulary(LlamaForCausalLM):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits[..., : VOCABULARY - 1]
        return output


class HeadBySide(LlamaForCausalLM):
    """Multiplies by the head's weight, and never calls the head."""

    def forward(self, input_ids: Any, attention_mask: Any = None, use_cache: Any = None) -> Any:
        hidden = self.model(input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return transformers.modeling_outputs.CausalLMOutput(logits=hidden @ self.lm_head.weight.T)


class FlatHead(LlamaForCausalLM):
    """Hands the head all positions of all rows as one."""

    def forward(self, input_ids: Any, attention_mask: Any = None, use_cache: Any = None) -> Any:
        hidden = self.model(input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        logits = self.lm_head(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)


class HookedHead(LlamaForCausalLM):
    """Somebody's hook changes what the head puts out."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.lm_head.register_forward_hook(lambda module, args, output: output * 2)


class NamelessHead(LlamaForCausalLM):
    def get_output_embeddings(self) -> None:
        return None


TOLD_IN_UNKNOWN_WORDS = "its forward does something to the logits that its configuration does not tell"
STRANGE = {
    Tripled: TOLD_IN_UNKNOWN_WORDS,
    FaintlyCapped: TOLD_IN_UNKNOWN_WORDS,
    CutVocabulary: TOLD_IN_UNKNOWN_WORDS,
    HeadBySide: "its output embeddings are not called once with the hidden states of all positions",
    FlatHead: "its output embeddings are not called once with the hidden states of all positions",
    HookedHead: "its output embeddings give something else when they are called as a module",
    NamelessHead: "it names no output embeddings",
}


@pytest.mark.parametrize("strange", STRANGE)
def test_a_model_whose_head_is_not_understood_makes_its_own_logits_with_one_warning(
    strange: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = strange(tiny_config(VOCABULARY)).eval()
    with caplog.at_level(logging.WARNING, logger="miwv_trainer"):
        found = losses(model, 3)
        np.testing.assert_array_equal(losses(model, 3), found)
    (warning,) = caplog.messages
    assert f"{strange.__name__} is scored by the logits that its forward returns, because {STRANGE[strange]}" in warning
    assert "lower `tokens_per_batch` and `tokens_per_row`" in warning
    np.testing.assert_allclose(found, by_own_logits(model), atol=2e-5, rtol=0)
    forward_one_position(model, batch()[0])


def test_where_the_forward_takes_logits_to_keep_a_model_makes_its_own_at_these_only() -> None:
    model = family_model("Llama")
    inputs, rows, predicting, answers = batch()
    shapes: list[torch.Size] = []
    model.register_forward_hook(lambda module, args, output: shapes.append(output.logits.shape))
    found = losses(model, 3, "own")
    assert shapes == [(len(LENGTHS), len(set(predicting.tolist())), VOCABULARY)]
    np.testing.assert_allclose(found, by_own_logits(model), atol=2e-5, rtol=0)


@pytest.mark.parametrize("build", [LlamaForCausalLM, NamelessHead])
def test_a_forward_for_the_others_sake_makes_logits_at_one_position(build: Any) -> None:
    model = build(tiny_config(VOCABULARY)).eval()
    shapes: list[torch.Size] = []
    model.register_forward_hook(lambda module, args, output: shapes.append(output.logits.shape))
    forward_one_position(model, batch()[0])
    assert shapes == [(1 if build is LlamaForCausalLM else len(LENGTHS), 1, VOCABULARY)]


def test_a_known_family_is_chosen_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    choose_head(family_model("Gemma2"))
    assert not caplog.messages
