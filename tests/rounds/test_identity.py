"""What a model is known by."""

import numpy as np

from miwv_trainer.rounds.identity import fingerprint_model
from tests.helpers.tiny import tiny_config, tiny_model


def test_a_models_fingerprint_holds_its_configuration_and_four_losses_spread_over_the_pool(model):
    losses = np.array([np.nan, *range(1, 12), np.inf], dtype=np.float32)
    fingerprint = fingerprint_model(model, losses)
    assert fingerprint["zero_shot_losses"] == {"1": 1.0, "4": 4.0, "7": 7.0, "11": 11.0}
    assert fingerprint == fingerprint_model(tiny_model(seed=1), losses)
    other = fingerprint_model(tiny_model(tiny_config(num_hidden_layers=1)), losses)
    assert other["config"] != fingerprint["config"]


def test_a_models_fingerprint_names_as_many_losses_as_there_are(model):
    assert fingerprint_model(model, np.array([np.nan, 2.0], dtype=np.float32))["zero_shot_losses"] == {"1": 2.0}


def test_special_tokens_that_a_trainer_aligns_with_its_tokenizer_make_no_other_model(model):
    losses = np.arange(8, dtype=np.float32)
    before, aligned = fingerprint_model(model, losses), tiny_model(seed=1)
    for name, token in (("pad_token_id", 3), ("bos_token_id", 4), ("eos_token_id", 5)):
        assert getattr(aligned.config, name) != token
        setattr(aligned.config, name, token)
    assert fingerprint_model(aligned, losses) == before
