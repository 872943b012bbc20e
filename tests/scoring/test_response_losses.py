"""The losses of a pool's responses, beside one plain forward a sample."""

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from miwv_trainer import compute_response_losses
from tests.helpers.losses import PREAMBLE, SAMPLES, loss_by_hand, pool_of
from tests.helpers.tiny import tiny_config, tiny_model


@pytest.mark.parametrize("tokens_per_batch", [1, 64, 4096])
def test_losses_are_those_of_one_forward_a_sample(tokens_per_batch: int) -> None:
    model = tiny_model()
    found = compute_response_losses(model, pool_of(SAMPLES), tokens_per_batch)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [loss_by_hand(model, PREAMBLE, sample) for sample in SAMPLES], atol=1e-5)


def test_a_sample_without_a_response_has_no_loss_and_the_others_have_theirs() -> None:
    samples = [*SAMPLES[:2], [(7, False), (8, False)]]
    found = compute_response_losses(tiny_model(), pool_of(samples))
    assert np.isnan(found).tolist() == [False, False, True]


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model().train()
    state = torch.get_rng_state()
    compute_response_losses(model, pool_of(SAMPLES))
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_for_which_it_is_not_defined_is_refused() -> None:
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=512)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder model"):
        compute_response_losses(T5ForConditionalGeneration(config), pool_of(SAMPLES))
    with pytest.raises(ValueError, match="but the model's vocabulary has 300 entries"):
        compute_response_losses(tiny_model(tiny_config(vocab_size=300)), pool_of(SAMPLES))
