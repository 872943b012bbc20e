"""How long a sequence may be."""

import pytest
from transformers import MambaConfig

from miwv_trainer.config import MIWVConfig
from miwv_trainer.scoring.context import find_context_length
from tests.helpers.tiny import tiny_model


@pytest.mark.parametrize(("scoring_max_length", "expected"), [(None, 512), (100, 100), (512, 512), (9_000, 512)])
def test_the_context_is_the_shorter_of_the_models_and_the_configured_one(model, scoring_max_length, expected):
    assert find_context_length(model, MIWVConfig(scoring_max_length=scoring_max_length)) == expected


def test_a_model_without_a_longest_sequence_takes_any():
    model = tiny_model(MambaConfig(vocab_size=512, hidden_size=32, num_hidden_layers=1, state_size=4))
    assert find_context_length(model, MIWVConfig()) > 10**9
    assert find_context_length(model, MIWVConfig(scoring_max_length=64)) == 64
