import contextlib
import random

import numpy as np
import peft
import pytest
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
from transformers.modeling_outputs import CausalLMOutput

from miwv_trainer.config import MIWVConfig
from miwv_trainer.distributed.world import World
from miwv_trainer.scoring import row_losses
from miwv_trainer.scoring.isolation import leave_no_trace, preserve_rng
from miwv_trainer.scoring.losses import Losses, score_batches
from miwv_trainer.scoring.prompt_embeddings import average_hidden_states, embed_prompts
from miwv_trainer.scoring.row_losses import compute_row_losses
from miwv_trainer.scoring.rows import Row, plan_padded, plan_prompts, plan_zero_shot
from miwv_trainer.scoring.scorer import Scorer, prepare_scorer
from tests.helpers.losses import CONTEXT, EXEMPLARS, PREAMBLE, SAMPLES, losses_by_hand, pool_of
from tests.helpers.tiny import tiny_config, tiny_model

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


class Unconnected(World):
    """One rank of several, without messages: what this rank alone computes."""

    def all_reduce_sum(self, array):
        return array


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


FAMILIES = [*CONFIGS, "lora", "without logits_to_keep"]


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


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_equal_a_row_by_row_forward_with_all_logits(family):
    model = model_named(family)
    losses = score(model)
    expected = losses_by_hand(model)
    np.testing.assert_allclose(as_array(losses), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(losses.miwv, expected[1] - expected[0], rtol=0, atol=1e-5)
    assert losses.zero_shot.dtype == losses.one_shot.dtype == losses.miwv.dtype == np.float32
    assert np.median(np.abs(losses.miwv)) > 1e-3  # the exemplar is seen
    assert np.ptp(losses.zero_shot) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("tokens_per_batch", "logits_chunk"), [(1, 1), (1, 1_000), (10_000, 1), (10_000, 1_000)])
def test_losses_do_not_depend_on_how_rows_are_batched(family, tokens_per_batch, logits_chunk):
    model = model_named(family)
    losses = score(model, tokens_per_batch=tokens_per_batch, logits_chunk=logits_chunk)
    np.testing.assert_allclose(as_array(losses), as_array(score(model)), rtol=0, atol=1e-5)


def test_zero_shot_losses_alone_need_no_exemplars(model):
    longest = max(len(sample) for sample in SAMPLES)
    context = len(PREAMBLE) + longest
    batches = plan_zero_shot(POOL, context, 150)
    with torch.no_grad():
        losses = score_batches(scorer_of(model, scoring_max_length=context), batches)
    np.testing.assert_allclose(losses.zero_shot, losses_by_hand(model)[0], rtol=0, atol=1e-5)
    assert np.isnan(losses.one_shot).all()


def test_a_sliding_window_is_respected():
    with_window = score(tiny_model(CONFIGS["mistral"]))
    without = score(tiny_model(MistralConfig(**GROUPED, sliding_window=None)))
    assert np.abs(with_window.zero_shot - without.zero_shot).max() > 1e-2


def test_adapters_take_part_in_the_losses():
    adapted = lora_model()
    losses = as_array(score(adapted))
    with adapted.disable_adapter():
        assert np.abs(losses - as_array(score(adapted))).min() > 1e-4
    merged = lora_model().merge_and_unload()
    np.testing.assert_allclose(losses, losses_by_hand(merged), rtol=0, atol=1e-5)


def test_losses_do_not_depend_on_the_padding_id(monkeypatch, model):
    losses, ids = as_array(score(model)), []
    monkeypatch.setattr(row_losses, "PADDING_ID", 77)
    model.register_forward_pre_hook(lambda _, args, inputs: ids.append(inputs["input_ids"]), with_kwargs=True)
    assert np.array_equal(as_array(score(model)), losses)
    assert any((rows[:, -1] == 77).any() for rows in ids)


@pytest.mark.parametrize("context", [28, 30, 34, 38])
def test_an_exemplar_that_does_not_fit_is_cut_at_its_beginning_and_the_sample_never(model, context):
    losses = score(model, context=context)
    expected = losses_by_hand(model, context=context)
    fits = np.array([len(PREAMBLE) + len(sample) < context for sample in SAMPLES])
    cut = np.array(
        [len(PREAMBLE) + len(sample) + len(SAMPLES[k]) > context for sample, k in zip(SAMPLES, EXEMPLARS, strict=True)]
    )
    assert (fits & cut).any()
    np.testing.assert_allclose(as_array(losses)[:, fits], expected[:, fits], rtol=0, atol=1e-5)
    uncut = losses_by_hand(model)
    np.testing.assert_allclose(losses.zero_shot[fits], uncut[0, fits], rtol=0, atol=1e-5)
    assert np.abs(losses.one_shot - uncut[1])[fits & cut].min() > 1e-5


def test_samples_that_are_too_long_alone_have_no_loss_and_the_others_keep_theirs(model):
    lengths = np.array([len(PREAMBLE) + len(sample) for sample in SAMPLES])
    too_long = lengths == lengths.max()
    losses = score(model, context=int(lengths.max()))
    assert np.isnan(losses.zero_shot).tolist() == too_long.tolist()
    assert np.isnan(losses.one_shot).tolist() == too_long.tolist()
    assert np.isnan(losses.miwv).tolist() == too_long.tolist()
    np.testing.assert_allclose(losses.zero_shot[~too_long], losses_by_hand(model)[0, ~too_long], rtol=0, atol=1e-5)


def test_a_sample_without_exemplar_has_no_loss(model):
    exemplars = EXEMPLARS.copy()
    exemplars[3] = -1
    losses = as_array(score(model, exemplars=exemplars))
    assert np.isnan(losses[:, 3]).all()
    others = np.arange(9) != 3
    np.testing.assert_allclose(losses[:, others], losses_by_hand(model)[:, others], rtol=0, atol=1e-5)


def test_a_loss_that_is_not_finite_does_not_touch_the_other_rows_of_its_batch(model):
    poisoned = SAMPLES[2][0][0]
    with torch.no_grad():
        model.get_input_embeddings().weight[poisoned] = float("nan")
    losses = score(model, tokens_per_batch=10_000)
    holds_it = np.array([any(token == poisoned for token, _ in sample) for sample in SAMPLES])
    assert holds_it.any() and not holds_it.all()
    assert np.isnan(losses.zero_shot).tolist() == holds_it.tolist()
    assert np.isnan(losses.one_shot).tolist() == (holds_it | holds_it[EXEMPLARS]).tolist()


def test_logits_are_turned_into_float32_before_the_logarithm():
    table = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)).mul(4).to(torch.bfloat16)

    class Bigram(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(table)

        def forward(self, input_ids, attention_mask, use_cache, logits_to_keep):
            return CausalLMOutput(logits=self.table[input_ids][:, logits_to_keep])

    ids = np.array([5, 9, 300, 17, 40])
    with torch.no_grad():
        (loss,) = compute_row_losses(Bigram(), [Row(ids, np.array([2, 3, 4]))], logits_chunk=2, head="own")
    log_p = table.double().log_softmax(dim=-1)
    assert loss == pytest.approx(-(log_p[9, 300] + log_p[300, 17] + log_p[17, 40]).item() / 3, abs=1e-5)


def test_tokens_forwarded_are_those_that_went_through_the_model(model):
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    for tokens_per_batch in (1, 150, 10_000):
        seen.clear()
        losses = score(model, tokens_per_batch=tokens_per_batch)
        assert losses.tokens_forwarded == sum(seen[1:])  # the first forward checks the head


@pytest.mark.parametrize("size", [2, 3, 7])  # of five batches, so that shares are unequal
def test_the_losses_of_several_ranks_add_up_to_those_of_one(model, size):
    alone = as_array(score(model))
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    counts, together = [], np.full_like(alone, np.nan)
    for rank in range(size):
        forwards.clear()
        share = as_array(score(model, world=Unconnected(rank, size, torch.device("cpu"))))
        counts.append(len(forwards))
        assert np.isnan(together[np.isfinite(share)]).all()  # no row is scored by two ranks
        together = np.where(np.isfinite(share), share, together)
    assert np.array_equal(together, alone)
    batches = plan_padded(POOL, EXEMPLARS, CONTEXT, 150)
    assert len(batches) % size
    assert sum(counts) == size + len(batches)  # each rank's first one checks the head


@pytest.mark.parametrize("family", ["llama", "gpt2", "lora", "without logits_to_keep"])
@pytest.mark.parametrize("tokens_per_batch", [1, 60])
def test_model_embeddings_equal_the_mean_of_the_last_hidden_states_over_the_prompt(family, tokens_per_batch):
    model = model_named(family)
    batches = plan_prompts(POOL, CONTEXT, tokens_per_batch)
    with torch.no_grad():
        embeddings = embed_prompts(scorer_of(model), batches)
    base = model.get_base_model() if family == "lora" else model
    for index, sample in enumerate(SAMPLES):
        flags = [is_response for _, is_response in sample]
        prompt = [token for token, _ in sample[: flags.index(True)]]
        with torch.no_grad():
            hidden = base.base_model(input_ids=torch.tensor([PREAMBLE + prompt])).last_hidden_state[0]
        by_hand = hidden[len(PREAMBLE) :].mean(dim=0)
        np.testing.assert_allclose(embeddings[index], by_hand.numpy(), rtol=0, atol=1e-5)


def test_model_embeddings_of_different_prompts_differ(model):
    with torch.no_grad():
        embeddings = embed_prompts(scorer_of(model), plan_prompts(POOL, CONTEXT, 60))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert (unit @ unit.T - 2 * np.eye(len(SAMPLES))).max() < 0.99


def test_miwv_is_one_shot_minus_zero_shot_where_both_are_finite(recwarn):
    inf, nan = np.inf, np.nan
    zero_shot = np.array([1.0, 2.0, inf, nan, 1.0, inf], dtype=np.float32)
    one_shot = np.array([1.5, 0.5, 1.0, 1.0, inf, inf], dtype=np.float32)
    assert Losses(zero_shot, one_shot, 0).miwv.tolist() == pytest.approx([0.5, -1.5, nan, nan, nan, nan], nan_ok=True)
    assert not recwarn.list


def draw_from_all() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()


def random_states() -> tuple:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


@pytest.mark.parametrize(
    "guard", [preserve_rng, lambda: leave_no_trace(nn.Dropout())], ids=["preserve_rng", "leave_no_trace"]
)
@pytest.mark.parametrize("raising", [False, True])
def test_random_states_come_back_although_the_block_draws_from_all_of_them(guard, raising):
    before = random_states()
    context = pytest.raises(RuntimeError, match="in the block") if raising else contextlib.nullcontext()
    with context, guard():
        draw_from_all()
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        assert all(inside != outside for inside, outside in zip(random_states(), before, strict=True))
        if raising:
            raise RuntimeError("in the block")
    assert random_states() == before


def test_without_the_guard_random_states_do_not_come_back():
    before = random_states()
    draw_from_all()
    assert all(after != outside for after, outside in zip(random_states(), before, strict=True))


@pytest.mark.parametrize("raising", [False, True])
def test_every_module_gets_its_own_training_flag_back(model, raising):
    model.train()
    model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    assert len(set(before.values())) == 2
    context = pytest.raises(RuntimeError, match="in the block") if raising else contextlib.nullcontext()
    with context, leave_no_trace(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        if raising:
            raise RuntimeError("in the block")
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.is_grad_enabled()


def test_a_model_with_dropout_in_training_mode_gives_the_losses_of_evaluation_mode():
    model = tiny_model(tiny_config(attention_dropout=0.5))
    in_evaluation = as_array(score(model))
    model.train()
    assert not np.array_equal(as_array(score(model)), in_evaluation)
    with leave_no_trace(model):
        assert np.array_equal(as_array(score(model)), in_evaluation)
    assert model.training


def test_scoring_leaves_weights_and_gradients_alone(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with leave_no_trace(model):
        score(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("adapter", [False, True])
def test_trls_fused_head_gives_the_same_losses_and_embeddings(adapter: bool) -> None:
    from peft import LoraConfig, get_peft_model
    from trl.trainer.utils import add_fused_lm_head

    rows = [
        Row(np.arange(1, 20, dtype=np.int32), np.arange(7, 19)),
        Row(np.arange(30, 40, dtype=np.int32), np.array([3, 4, 9])),
    ]
    plain, fused = tiny_model(), tiny_model()
    add_fused_lm_head(fused)
    calls = []
    fused.lm_head.register_forward_hook(lambda *_: calls.append(1))  # the fused way does not call the module
    if adapter:
        fused = get_peft_model(fused, LoraConfig(target_modules=["q_proj"]))  # starts as the identity
    with leave_no_trace(plain), leave_no_trace(fused):
        expected = compute_row_losses(plain, rows)
        np.testing.assert_allclose(compute_row_losses(fused, rows), expected, atol=1e-6, rtol=0)
        np.testing.assert_allclose(average_hidden_states(fused, rows), average_hidden_states(plain, rows), atol=1e-6)
    assert not calls
