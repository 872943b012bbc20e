"""Random samples, and their losses by a plain forward and by the scorer."""

import numpy as np
import peft
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
)

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.scoring.losses import Losses, score_batches
from miwv_trainer.scoring.rows import plan_padded
from miwv_trainer.scoring.scorer import Scorer, prepare_scorer
from tests.helpers.tiny import tiny_config, tiny_model

PREAMBLE = [1, 2]
CONTEXT = 128


def random_samples(count: int = 9, seed: int = 0) -> list[list[tuple[int, bool]]]:
    """Samples as (token, is response) pairs, of uneven lengths; the last two have two response spans."""
    generator = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        spans = [(int(generator.integers(3, 14)), False), (int(generator.integers(1, 12)), True)]
        spans *= 1 + (index >= count - 2)
        samples.append([(int(generator.integers(3, 512)), flag) for length, flag in spans for _ in range(length)])
    return samples


def pool_of(samples: list[list[tuple[int, bool]]]) -> Pool:
    pairs = [pair for sample in samples for pair in sample]
    return Pool(
        preamble=np.asarray(PREAMBLE, dtype=np.int32),
        tokens=np.asarray([token for token, _ in pairs], dtype=np.int32),
        is_response=np.asarray([flag for _, flag in pairs]),
        offsets=np.cumsum([0, *map(len, samples)]),
    )


SAMPLES = random_samples()
EXEMPLARS = np.array([4, 0, 5, 1, 8, 7, 2, 3, 6])


def loss_by_hand(model, before: list[int], sample: list[tuple[int, bool]]) -> float:
    """One sequence, all logits, the log-softmax read out token by token."""
    ids = before + [token for token, _ in sample]
    with torch.no_grad():
        inputs = torch.tensor([ids])
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits[0]
    log_p = logits.float().log_softmax(dim=-1)
    positions = [len(before) + offset for offset, (_, is_response) in enumerate(sample) if is_response]
    return -sum(log_p[t - 1, ids[t]].item() for t in positions) / len(positions)


def losses_by_hand(model, samples=SAMPLES, exemplars=EXEMPLARS, context: int = CONTEXT) -> np.ndarray:
    """`(2, N)` zero-shot and one-shot losses."""
    losses = []
    for sample, exemplar in zip(samples, exemplars, strict=True):
        room = context - len(PREAMBLE) - len(sample)
        shown = [token for token, _ in samples[exemplar]]
        shown = shown[max(len(shown) - room, 0) :]
        losses.append([loss_by_hand(model, PREAMBLE, sample), loss_by_hand(model, PREAMBLE + shown, sample)])
    return np.transpose(losses)


ONE_PROCESS = World(0, 1, torch.device("cpu"))
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


ATTENTION = {**SHAPE, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 256}
GROUPED = {**ATTENTION, "num_key_value_heads": 2}
CONFIGS = {
    "llama": tiny_config(),
    "gpt2": GPT2Config(
        vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None,
    ),
    "gpt_neox": GPTNeoXConfig(**ATTENTION),
    "qwen2": Qwen2Config(**GROUPED),
    "gemma2": Gemma2Config(**GROUPED, head_dim=8, sliding_window=8),
    "mistral": MistralConfig(**GROUPED, sliding_window=8),
    "mamba": MambaConfig(**SHAPE, state_size=8),
}  # fmt: skip


class WithoutLogitsToKeep(LlamaForCausalLM):
    def forward(self, input_ids, attention_mask, use_cache=None, output_hidden_states=None):
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )


def lora_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = peft.LoraConfig(
            r=4, target_modules=["q_proj", "v_proj", "down_proj"], lora_dropout=0.1, init_lora_weights=False
        )
        return peft.get_peft_model(tiny_model(), config).eval()


def model_named(name: str) -> nn.Module:
    if name == "lora":
        return lora_model()
    if name == "without logits_to_keep":
        model = WithoutLogitsToKeep(tiny_config()).eval()
        model.load_state_dict(tiny_model().state_dict())
        return model
    return tiny_model(CONFIGS[name])


POOL = pool_of(SAMPLES)


def scorer_of(model, pool=POOL, world=ONE_PROCESS, scoring_max_length=CONTEXT, **values) -> Scorer:
    config = MIWVConfig(scoring_max_length=scoring_max_length, **values)
    return prepare_scorer(model, pool, config, world)


def score(
    model, pool=POOL, exemplars=EXEMPLARS, context=CONTEXT, tokens_per_batch=150, logits_chunk=5, world=ONE_PROCESS
):
    batches = plan_padded(pool, exemplars, context, tokens_per_batch)
    with torch.no_grad():
        scorer = scorer_of(model, pool, world, scoring_max_length=context, logits_chunk=logits_chunk)
        return score_batches(scorer, batches, exemplars)


def as_array(losses: Losses) -> np.ndarray:
    return np.stack([losses.zero_shot, losses.one_shot])
