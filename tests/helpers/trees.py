"""Random pools and models whose rows are trees."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from miwv_trainer.compat import is_at_least
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.pool import NO_EXEMPLAR, Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.embeddings.embedders import embed_texts
from miwv_trainer.embeddings.nearest import find_nearest_exemplars
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import score_pool
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.scoring.trees import TreeRow, make_tree_row, plan_trees
from tests.helpers.tiny import tiny_dataset, tiny_tokenizer

CONTEXT = 512


PREAMBLE = 3


def synthetic_pool(lengths: list[int]) -> Pool:
    """Samples of given lengths, tokens all different, the last third of each its response."""
    masks = [np.arange(length) >= length - max(length // 3, 1) for length in lengths]
    offsets = np.cumsum([0, *lengths])
    tokens = np.arange(PREAMBLE, PREAMBLE + offsets[-1], dtype=np.int32)
    return Pool(np.arange(PREAMBLE, dtype=np.int32), tokens, np.concatenate(masks), offsets)


def random_case(seed: int) -> tuple[Pool, np.ndarray, int, int]:
    """A pool whose exemplars crowd on a few samples, some without one, some too long for the context together."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(2, 60))
    pool = synthetic_pool(generator.integers(2, 40, count).tolist())
    exemplars = np.minimum((generator.pareto(1.0, count) * 2).astype(np.int64), count - 1)
    exemplars = np.where(exemplars == np.arange(count), (exemplars + 1) % count, exemplars)
    exemplars[generator.random(count) < 0.1] = NO_EXEMPLAR
    return pool, exemplars, int(generator.integers(30, 90)), int(generator.integers(20, 200))


SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


GPT2 = {"vocab_size": 512, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "initializer_range": 0.3}


FULL_ATTENTION = {
    "Llama": SMALL,
    "Qwen2": SMALL,
    "Qwen3": {**SMALL, "head_dim": 8},
    "Mistral": {**SMALL, "sliding_window": None},
    "Phi3": SMALL,
    "Olmo2": SMALL,
    "Nemotron": SMALL,
    "Mixtral": {**SMALL, "num_local_experts": 2},
    "Granite": SMALL,
    "Gemma": {**SMALL, "head_dim": 8},
    "Cohere": SMALL,
    "GPT2": GPT2,
    "GPTNeoX": {name: value for name, value in SMALL.items() if name != "num_key_value_heads"},
}


WINDOW = 12
MIXED = {**SMALL, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
# Windows in all layers, or in some; soft-capped scores, and sinks.
WINDOWED: dict[str, dict[str, Any]] = {
    "Mistral": {**SMALL, "sliding_window": WINDOW},
    "Phi3": {**SMALL, "sliding_window": WINDOW},
    "Starcoder2": {**SMALL, "sliding_window": WINDOW},
    "Mixtral": {**SMALL, "num_local_experts": 2, "sliding_window": WINDOW},
    "Qwen2": {**SMALL, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "Qwen3": {**MIXED, "head_dim": 8, "use_sliding_window": True},
    "Gemma2": {**MIXED, "head_dim": 8, "attn_logit_softcapping": 2.0},
    "Gemma3Text": {**MIXED, "head_dim": 8},
    "Cohere2": {**MIXED, "logit_scale": 1.0},
    "Olmo3": MIXED,
    "GptOss": {**MIXED, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
}
# Families whose attention cannot be replaced before these versions of transformers.
OWN_ATTENTION_BEFORE = {"Nemotron": "5.13", "GPT2": "5.0"}
EAGER_ONLY = {"Gemma2", "GptOss"}


def skip_if_masked(family: str) -> None:
    """Skips where the installed transformers leaves a family with masks."""
    first = OWN_ATTENTION_BEFORE.get(family)
    if first is not None and not is_at_least("transformers", first):
        pytest.skip(f"before transformers {first}, the attention of {family} cannot be replaced, and it takes masks")


def random_model(family: str, values: dict[str, Any], attention: str | None = None) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**values)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).float()


@pytest.fixture(scope="module")
def case() -> tuple[Pool, np.ndarray]:
    pool = pool_from_rows(tiny_dataset(30), tiny_tokenizer())
    exemplars, _ = find_nearest_exemplars(embed_texts("tfidf", pool.texts), pool, CONTEXT)
    return pool, exemplars


def both_layouts(model: Any, case: tuple[Pool, np.ndarray], **overrides: Any) -> tuple[np.ndarray, np.ndarray]:
    with leave_no_trace(model):
        found = (
            score_pool(
                prepare_scorer(model, case[0], MIWVConfig(**overrides), World(0, 1, torch.device("cpu"))),
                case[1],
                layout,
            )
            for layout in ("tree", "padded")
        )
        tree, padded = (np.stack([losses.zero_shot, losses.one_shot]) for losses in found)
    return tree, padded


SEVERAL_WINDOWS = {
    "all are several windows long": ([60, 50, 45, 70, 40, 55], [1, 0, 0, 0, 3, 4], 0),
    "the trunk is longer than the window": ([80, 5, 9, 4, 11, 6], [1, 0, 0, 0, 0, 0], 0),
    "branches are longer than the window": ([5, 60, 47, 80, 13, 30], [1, 0, 0, 0, 0, 0], 0),
    "the exemplar is cut": ([60, 50, 45, 70, 40, 55], [1, 0, 0, 0, 3, 4], 90),
}


def several_windows(name: str) -> tuple[tuple[Pool, np.ndarray], dict[str, Any]]:
    lengths, exemplars, context = SEVERAL_WINDOWS[name]
    pool = synthetic_pool(lengths)
    return (pool, np.array(exemplars)), {"scoring_max_length": context or CONTEXT, "tokens_per_row": 300}


# None, one that sees itself only, and some that are shorter or longer than trunks and branches.
WINDOWS = [None, 1, 2, 7, 30]


def sees(row: TreeRow, window: int | None = None) -> np.ndarray:
    """`(length, length)` by the definition, token by token: a window counts the tokens of a token's own sequence."""
    length = len(row.ids)
    seen = np.zeros((length, length), dtype=bool)
    for query in range(length):
        own = (row.tree == row.tree[query]) & ((row.branch == 0) | (row.branch == row.branch[query]))
        sequence = np.flatnonzero(own[: query + 1])
        seen[query, sequence[-(window or length) :]] = True
    return seen


def a_row(seed: int, budget: int = 600) -> TreeRow:
    pool, exemplars, context, _ = random_case(seed)
    return make_tree_row(plan_trees(pool, exemplars, context, budget)[0], pool)
