"""Losses that depend on length or padding: rotary positions by the forward's length, models that padding changes."""

import logging
from typing import Any

import numpy as np
import pytest
import torch

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.scoring.attention import find_tree_obstacle
from miwv_trainer.scoring.context import NO_LIMIT, find_context_length
from miwv_trainer.scoring.head import choose_head
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.memory import estimate_memory
from miwv_trainer.scoring.padding import settle_padding
from miwv_trainer.scoring.prompt_embeddings import choose_hidden_states, embed_prompts
from miwv_trainer.scoring.rows import plan_prompts
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.scoring.sharing import Sharing
from tests.helpers.families import build_family
from tests.helpers.lengths import EXEMPLARS, POOL, SAMPLES, WORLD, score
from tests.helpers.losses import PREAMBLE, loss_by_hand, losses_by_hand, pool_of
from tests.helpers.tiny import tiny_model
from tests.helpers.trees import SMALL, random_model

LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 20.0, 64.0]}
LONG |= {"original_max_position_embeddings": 64, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0}


def small_vocabulary_samples() -> list[list[tuple[int, bool]]]:
    return [[(token % 100 + 3, flag) for token, flag in sample] for sample in SAMPLES]


def small_vocabulary_pool() -> Pool:
    return pool_of(small_vocabulary_samples())


def make_rope_model(family: str, rope: dict[str, Any]) -> Any:
    context = 64 if rope is DYNAMIC else 512
    values = {**SMALL, "max_position_embeddings": context, "rope_parameters": rope}
    if family == "Phi3":
        values["original_max_position_embeddings"] = 64
    return random_model(family, values).eval()


def score_by_hand(family: str, rope: dict[str, Any]) -> np.ndarray:
    """Each sequence through a model that has forwarded nothing else: "dynamic" factors depend on what came before."""
    losses = []
    for sample, exemplar in zip(SAMPLES, EXEMPLARS, strict=True):
        shown = [token for token, _ in SAMPLES[exemplar]]
        before = (PREAMBLE, PREAMBLE + shown)
        losses.append([loss_by_hand(make_rope_model(family, rope), tokens, sample) for tokens in before])
    return np.transpose(losses)


@pytest.mark.parametrize("layout", ["auto", "padded"])
@pytest.mark.parametrize(("family", "rope"), [("Llama", LONG), ("Phi3", LONG), ("Llama", DYNAMIC), ("Qwen2", DYNAMIC)])
def test_each_sample_sees_the_rotary_factors_that_it_would_see_alone(
    family: str, rope: dict[str, Any], layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="miwv_trainer"):
        taken, found = score(make_rope_model(family, rope), layout=layout)
    assert taken == "padded"
    said = "its rotary positions depend on the longest sequence of a forward, and 5 are longer than 64 tokens"
    assert (said in caplog.text) == (layout == "auto")
    np.testing.assert_allclose(found, score_by_hand(family, rope), atol=2e-5, rtol=0)


def test_dynamic_factors_of_training_are_as_they_were_after_scoring() -> None:
    model = make_rope_model("Llama", DYNAMIC)
    ids = torch.arange(3, 103)[None]
    with torch.no_grad():
        model(input_ids=ids)
        before = model(input_ids=ids[:, :70]).logits
        score(model)
        assert torch.equal(model(input_ids=ids[:, :70]).logits, before)


def test_short_sequences_of_a_model_with_longrope_still_share_rows_of_trees() -> None:
    model = make_rope_model("Llama", LONG)
    taken, _ = score(model, scoring_max_length=64)
    assert taken == "tree"
    with pytest.raises(ValueError, match='cannot be scored with `layout="tree"`.*longer than 64 tokens'):
        score(model, layout="tree")


def test_mixed_lengths_in_bfloat16_are_near_those_alone() -> None:
    model = make_rope_model("Llama", LONG)
    expected = score_by_hand("Llama", LONG)
    _, found = score(model.bfloat16())
    assert np.abs(found - expected).mean() < 0.05


def test_the_models_own_embeddings_do_not_mix_lengths_across_the_threshold() -> None:
    model = make_rope_model("Llama", {**LONG, "original_max_position_embeddings": 30})
    with leave_no_trace(model):
        scorer = prepare_scorer(model, POOL, MIWVConfig(), WORLD)
        found = embed_prompts(scorer, plan_prompts(POOL, 512, 4096, scorer.sharing))
        alone = embed_prompts(scorer, plan_prompts(POOL, 512, 1))
        mixed = embed_prompts(scorer, plan_prompts(POOL, 512, 4096))
    np.testing.assert_allclose(found, alone, atol=1e-5)
    assert np.abs(mixed - alone).max() > 1e-3


def test_companions_by_hand() -> None:
    lengths = np.array([90, 70, 70, 64, 10])
    assert Sharing().count_companions(lengths) == 5
    assert Sharing(threshold=64).count_companions(lengths) == 3
    assert Sharing(threshold=64).count_companions(lengths[3:]) == 2
    assert Sharing(equal_beyond=64).count_companions(lengths[1:]) == 2
    assert Sharing().without_padding().count_companions(lengths[3:]) == 1


def attend_to_padding(model: Any) -> Any:
    """The model with positions counted from the end of the row, as some families do."""
    original = model.model.forward

    def forward(input_ids: Any = None, position_ids: Any = None, **kwargs: Any) -> Any:
        position_ids = torch.arange(input_ids.shape[1])[None] * 64 // input_ids.shape[1]
        return original(input_ids=input_ids, position_ids=position_ids, **kwargs)

    model.model.forward = forward
    return model


@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_a_model_that_padding_changes_is_scored_in_rows_of_equal_length(
    layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = attend_to_padding(tiny_model())
    with caplog.at_level(logging.WARNING, logger="miwv_trainer"):
        taken, found = score(model, layout=layout)
        score(model, layout=layout)
    assert taken == "equal"
    (warning,) = caplog.messages
    assert "LlamaForCausalLM is scored in rows of equal length" in warning and "right padding changes" in warning
    np.testing.assert_allclose(found, losses_by_hand(model, SAMPLES, EXEMPLARS, 512), atol=2e-5, rtol=0)
    with pytest.raises(ValueError, match='cannot be scored with `layout="tree"`: right padding changes its losses'):
        score(model, layout="tree")


def test_zero_shot_losses_alone_have_rows_of_equal_length_too() -> None:
    taken, found = score(attend_to_padding(tiny_model()), score="zero_shot_loss")
    assert taken == "zero_shot_equal"
    assert np.isfinite(found[0]).all()


def test_a_model_that_padding_does_not_change_keeps_padded_rows() -> None:
    model = tiny_model()
    with leave_no_trace(model):
        scorer = prepare_scorer(model, POOL, MIWVConfig(), WORLD)
        assert settle_padding(scorer, EXEMPLARS) is scorer
        assert settle_padding(scorer) is scorer


def test_a_model_whose_forward_is_random_is_refused() -> None:
    model, generator = tiny_model(), torch.Generator().manual_seed(0)
    shift = model.model.norm.register_forward_hook(
        lambda module, args, output: output + torch.randn(output.shape, generator=generator)
    )
    with pytest.raises(ValueError, match="LlamaForCausalLM gives other losses each time for the same row alone"):
        score(model)
    shift.remove()
    score(model)


def test_reformer_draws_its_hashes_anew_unless_it_has_a_seed() -> None:
    with pytest.raises(ValueError, match="ReformerModelWithLMHead gives other losses.*`hash_seed`"):
        score(build_family("reformer"), pool=small_vocabulary_pool())
    model = build_family("reformer", hash_seed=1)
    samples = small_vocabulary_samples()
    _, found = score(model, pool=small_vocabulary_pool())
    np.testing.assert_allclose(found, losses_by_hand(model, samples, EXEMPLARS, 256), atol=2e-5, rtol=0)


WITHOUT_COMMON_NAMES = {
    "Mamba": {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2},
    "FalconMamba": {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2},
    "Rwkv": {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 128},
    "Mpt": {"vocab_size": 512, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 200},
    "GPT2": {"vocab_size": 512, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 99},
    "Bloom": {"vocab_size": 512, "hidden_size": 32, "n_layer": 2, "n_head": 4},
}
CONTEXTS = {"Mamba": NO_LIMIT, "FalconMamba": NO_LIMIT, "Rwkv": 128, "Mpt": 200, "GPT2": 99, "Bloom": NO_LIMIT}


@pytest.mark.parametrize("family", WITHOUT_COMMON_NAMES)
def test_families_without_the_common_names_have_a_context_and_a_size(family: str) -> None:
    model = random_model(family, WITHOUT_COMMON_NAMES[family])
    assert find_context_length(model, MIWVConfig()) == CONTEXTS[family]
    assert find_context_length(model, MIWVConfig(scoring_max_length=50)) == 50
    # 100 tokens through a hidden size of 32 and at least that inside, and a head of 512.
    assert estimate_memory(model, 50, 100, 10, "segments") >= 100 * 4 * (4 * 32 + 8 * 32) + 10 * 512 * 12


def test_windows_under_other_names_are_an_obstacle_for_trees() -> None:
    values = {"vocab_size": 512, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 256}
    values = {**values, "attention_types": [[["global", "local"], 1]], "window_size": 16}
    model = random_model("GPTNeo", values)
    assert "slides over a window of 16 tokens" in str(find_tree_obstacle(model, 256))
    assert find_tree_obstacle(model, 16) is None
    values["attention_types"] = [[["global"], 2]]
    assert find_tree_obstacle(random_model("GPTNeo", values), 256) is None


DECODER = {"vocab_size": 512, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
OPT = {"vocab_size": 512, "hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "ffn_dim": 64}
EMBEDDERS = {
    "OPT": {**OPT, "num_attention_heads": 4},
    "Llama4Text": {**SMALL, "head_dim": 8, "num_local_experts": 2},
    "Bart": {**DECODER, "pad_token_id": 0},
    "Marian": {**DECODER, "pad_token_id": 0, "decoder_start_token_id": 0},
    "TrOCR": {**DECODER, "pad_token_id": 0},
}


@pytest.mark.parametrize("family", EMBEDDERS)
def test_the_models_own_embeddings_are_the_mean_of_its_last_hidden_states(family: str) -> None:
    model = random_model(family, EMBEDDERS[family]).eval()
    with leave_no_trace(model):
        scorer = prepare_scorer(model, POOL, MIWVConfig(), WORLD)
        found = embed_prompts(scorer, plan_prompts(POOL, 512, 4096))
        for sample in (0, 1):
            ids = torch.tensor([[*POOL.preamble, *POOL.prompt(sample)]])
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
            # The head turns the last hidden states into the logits.
            expected = output.hidden_states[-1][0, len(POOL.preamble) :].mean(dim=0)
            np.testing.assert_allclose(found[sample], expected, atol=1e-4)


def test_a_model_whose_hidden_states_do_not_show_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("OPT", EMBEDDERS["OPT"])
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    with pytest.raises(ValueError, match="OPTForCausalLM cannot embed the prompts.*Use another `embedder`"):
        choose_hidden_states(model)


def test_a_forward_that_needs_more_than_token_ids_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()

    def forward(input_ids: Any, pixels: Any, **kwargs: Any) -> None: ...

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot be scored: a forward of `input_ids` and.*fails"):
        choose_head(model)
