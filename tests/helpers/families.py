"""Every causal family that transformers can build from a tiny random configuration, and what became of its losses."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import plan_scoring, score_pool
from miwv_trainer.scoring.model_checks import check_model
from miwv_trainer.scoring.scorer import prepare_scorer
from tests.helpers.losses import losses_by_hand, pool_of

FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 128
# Rows of 12 to 100 tokens: behind another, some are longer than the windows below.
LENGTHS = ((6, 4), (40, 20), (9, 3), (60, 30), (12, 8), (20, 15), (7, 5))
EXEMPLARS = np.array([2, 0, 4, 0, 2, 0, 4])
CONTEXT = 256
# Small values for the names that most families share. Each is given only to configurations that have it.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3, "init_std": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "n_ctx": CONTEXT, "n_inner": 64,
    "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT, "num_layers": 2, "num_heads": 4,
    "decoder_layers": 2, "encoder_layers": 2, "decoder_attention_heads": 4, "encoder_attention_heads": 4,
    "decoder_ffn_dim": 64, "encoder_ffn_dim": 64, "ffn_dim": 64, "word_embed_proj_dim": 32,
    "max_target_positions": CONTEXT, "emb_dim": 32, "dff": 64, "d_inner": 64, "attention_hidden_size": 32,
    "num_experts": 4, "n_routed_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "n_shared_experts": 1, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "rotary_dim": 8, "expand": 2, "sliding_window": 32, "window_size": 32, "attention_window_size": 32,
    "attention_types": [[["global", "local"], 1]],
    "state_size": 8, "mamba_d_state": 8, "mamba_d_head": 8, "mamba_n_heads": 8, "mamba_d_ssm": 64, "is_decoder": True,
    "causal": True, "use_cache": False,
}  # fmt: skip

# Values without which a single family cannot be built, or is not tiny.
MAMBA = {"hidden_size": 64, "mamba_d_state": 8, "n_mamba_heads": 2, "num_attention_heads": 4, "num_hidden_layers": 4}
GEMMA4 = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "global_head_dim": 8}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PART = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
PART |= {"num_hidden_layers": 1, "max_position_embeddings": CONTEXT, "initializer_range": 0.3}
OF_FAMILY: dict[str, dict[str, Any]] = {
    "blt": {
        "patcher_config": PART, "encoder_config": {**PART, "hidden_size_global": 32},
        "decoder_config": {**PART, "hidden_size_global": 32},
        "global_config": {name: value for name, value in PART.items() if name != "vocab_size"},
        "encoder_hash_byte_group_vocab": 200},
    "cohere_compass_text": {"rope_parameters": {
        "full_attention": None, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2}},
    "dots3_note_text": {
        "layer_types": ["full_attention"] * 2, "mlp_layer_types": ["dense", "sparse"], "index_n_heads": 2,
        "index_head_dim": 8, "index_topk": 16, "shared_experts_intermediate_size": 32, "head_dim": 8},
    "gemma3n_text": {
        "num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
        "laurel_rank": 8},
    "gemma4_text": GEMMA4,
    "git": {"vision_config": {**VISION, "patch_size": 16, "image_size": 32}},
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {
        "num_dense_layers": 1, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"],
        "num_experts": 4, "num_experts_per_tok": 2},
    "longcat_flash": {
        "ffn_hidden_size": 64, "expert_ffn_hidden_size": 32, "zero_expert_num": 2, "moe_topk": 2, "head_dim": 8,
        "qk_head_dim": 16},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 16},
    "mimo_v2_flash": {"num_attention_heads": 8, "num_key_value_heads": 2},
    "mllama": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    "musicgen": {"num_codebooks": 1},
    "musicgen_melody": {"num_codebooks": 1},
    "phi4_multimodal": {
        "vision_config": {**VISION, "crop_size": 28, "image_size": 28, "image_token_id": 120},
        "audio_config": {
            "hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2,
            "ext_pw_out_channel": 16, "nemo_conv_channels": 16, "audio_token_id": 121}},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 32,
        "indexer_compress_ratio": 4, "hc_lowrank": 8, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "ple_embed_dim": 8},
    "reformer": {
        "axial_pos_embds": False, "attention_head_size": 8, "feed_forward_size": 64, "num_buckets": 4,
        "attn_layers": ["local", "lsh"], "local_attn_chunk_length": 16, "lsh_attn_chunk_length": 16,
        "is_decoder": True},
    "zamba": {**MAMBA, "layers_block_type": ["mamba", "hybrid"] * 2, "use_mamba_kernels": False,
              "attention_hidden_size": 128, "attention_head_dim": 32},
    "zamba2": {**MAMBA, "layers_block_type": ["mamba", "hybrid"] * 2, "use_mamba_kernels": False,
               "n_mamba_heads": 8, "adapter_rank": 8, "chunk_size": 16, "intermediate_size": 128,
               "attention_hidden_size": 128, "attention_head_dim": 32},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16, "num_hidden_layers": 2},
}  # fmt: skip
# Families for images or sound whose text part is built from the configuration of that part.
TEXT_OF = {
    "cohere_compass": "cohere_compass_text", "dots3_note": "dots3_note_text", "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text", "qwen4_exp": "qwen4_exp_text",
}  # fmt: skip
# Families whose text part has a class of its own, which `AutoModelForCausalLM` does not know by its configuration.
WITH_OWN_CLASS = ("emu3", "mllama", "musicgen", "musicgen_melody")


@dataclass(frozen=True)
class Outcome:
    """
    What became of a family.

    Args:
        layout: The layout taken; None if the family was not scored.
        difference: Largest difference from a plain forward of each sequence alone, in nats.
        reason: Why it was refused or could not be built.
        is_ours: Whether the reason is a `ValueError` of this library.
    """

    layout: str | None = None
    difference: float = 0.0
    reason: str = ""
    is_ours: bool = True


def make_samples() -> list[list[tuple[int, bool]]]:
    generator = np.random.default_rng(0)
    return [
        [
            (int(generator.integers(3, VOCABULARY)), flag)
            for length, flag in ((p, False), (r, True))
            for _ in range(length)
        ]
        for p, r in LENGTHS
    ]


def find_config(family: str) -> Any:
    """The configuration class of a family, by the beginning of its name. Skips where transformers is too old for it."""
    found = getattr(transformers, f"{family}Config", None)
    return found or pytest.skip(f"transformers {transformers.__version__} has no {family}")


def build_family(family: str, **changed: Any) -> PreTrainedModel:
    """
    A tiny random model, the same each time. Raises whatever transformers raises where it cannot be built.

    Args:
        changed: Entries of the configuration that are not to have the values of `SIZES`.
    """
    known = AutoConfig.for_model(family).get_text_config(decoder=True)
    text = known.to_dict()
    values = {name: value for name, value in SIZES.items() if name in text or name in known.attribute_map}
    if "qk_rope_head_dim" in text:  # Latent attention derives it.
        values.pop("head_dim", None)
    if isinstance(text.get("layer_types"), list):
        kinds = list(dict.fromkeys(text["layer_types"]))
        values |= {"num_hidden_layers": max(2, len(kinds)), "layer_types": (kinds * 2)[: max(2, len(kinds))]}
    values |= OF_FAMILY.get(TEXT_OF.get(family, family), {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = type(known)(**{**values, **changed})
        own = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]) if family in WITH_OWN_CLASS else None
        model = (own(config) if own else AutoModelForCausalLM.from_config(config)).float().eval()
    if sum(parameter.numel() for parameter in model.parameters()) > 30_000_000:
        raise RuntimeError("its configuration has sizes of other names, and the model is not tiny")
    with torch.no_grad():  # Values that do not go together show only here.
        model(input_ids=torch.arange(3, 7)[None], attention_mask=torch.ones((1, 4), dtype=torch.long))
    return model


def score_family(model: PreTrainedModel, layout: str = "auto") -> Outcome:
    """Scores a pool of mixed lengths at default settings and compares it with a plain forward of each sequence."""
    samples = make_samples()
    pool: Pool = pool_of(samples)
    config = MIWVConfig(layout=layout)
    try:
        check_model(model, pool)
        with leave_no_trace(model):
            scorer = prepare_scorer(model, pool, config, World(0, 1, torch.device("cpu"), quiet=True))
            plan = plan_scoring(scorer, EXEMPLARS)
            found = score_pool(scorer.follow(plan), EXEMPLARS, plan.layout)
    except ValueError as error:
        return Outcome(reason=str(error), is_ours=type(model).__name__ in str(error))
    except Exception as error:
        return Outcome(reason=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", is_ours=False)
    context = min(scorer.context, 10_000)
    expected = losses_by_hand(model, samples, EXEMPLARS, context)
    difference = np.abs(np.stack([found.zero_shot, found.one_shot]) - expected)
    return Outcome(plan.layout, float(difference.max()))
