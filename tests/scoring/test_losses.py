"""Losses of a pool in padded rows, against plain forwards of one row each."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import MistralConfig
from transformers.modeling_outputs import CausalLMOutput

from miwv_trainer.distributed.world import World
from miwv_trainer.scoring import row_losses
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.losses import Losses, score_batches
from miwv_trainer.scoring.prompt_embeddings import average_hidden_states
from miwv_trainer.scoring.row_losses import compute_row_losses
from miwv_trainer.scoring.rows import Row, plan_padded, plan_zero_shot
from tests.helpers.fused import add_fused_head
from tests.helpers.losses import (
    CONFIGS,
    CONTEXT,
    EXEMPLARS,
    GROUPED,
    POOL,
    PREAMBLE,
    SAMPLES,
    as_array,
    lora_model,
    losses_by_hand,
    model_named,
    score,
    scorer_of,
)
from tests.helpers.tiny import tiny_model


class Unconnected(World):
    """One rank of several, without messages: what this rank alone computes."""

    def all_reduce_sum(self, array):
        return array


FAMILIES = [*CONFIGS, "lora", "without logits_to_keep"]


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


def test_miwv_is_one_shot_minus_zero_shot_where_both_are_finite(recwarn):
    inf, nan = np.inf, np.nan
    zero_shot = np.array([1.0, 2.0, inf, nan, 1.0, inf], dtype=np.float32)
    one_shot = np.array([1.5, 0.5, 1.0, 1.0, inf, inf], dtype=np.float32)
    assert Losses(zero_shot, one_shot, 0).miwv.tolist() == pytest.approx([0.5, -1.5, nan, nan, nan, nan], nan_ok=True)
    assert not recwarn.list


@pytest.mark.parametrize("adapter", [False, True])
def test_trls_fused_head_gives_the_same_losses_and_embeddings(adapter: bool) -> None:
    from peft import LoraConfig, get_peft_model

    rows = [
        Row(np.arange(1, 20, dtype=np.int32), np.arange(7, 19)),
        Row(np.arange(30, 40, dtype=np.int32), np.array([3, 4, 9])),
    ]
    plain, fused = tiny_model(), tiny_model()
    add_fused_head(fused)
    calls = []
    fused.lm_head.register_forward_hook(lambda *_: calls.append(1))  # the fused way does not call the module
    if adapter:
        fused = get_peft_model(fused, LoraConfig(target_modules=["q_proj"]))  # starts as the identity
    with leave_no_trace(plain), leave_no_trace(fused):
        expected = compute_row_losses(plain, rows)
        np.testing.assert_allclose(compute_row_losses(fused, rows), expected, atol=1e-6, rtol=0)
        np.testing.assert_allclose(average_hidden_states(fused, rows), average_hidden_states(plain, rows), atol=1e-6)
    assert not calls
