"""How long a sequence may be."""

import pytest
import torch
from transformers import MambaConfig

from miwv_trainer.config import MIWVConfig
from miwv_trainer.scoring.context import find_context_length
from tests.helpers.families import CONTEXT, build_family
from tests.helpers.tiny import tiny_model


@pytest.mark.parametrize(("scoring_max_length", "expected"), [(None, 512), (100, 100), (512, 512), (9_000, 512)])
def test_the_context_is_the_shorter_of_the_models_and_the_configured_one(model, scoring_max_length, expected):
    assert find_context_length(model, MIWVConfig(scoring_max_length=scoring_max_length)) == expected


def test_a_model_without_a_longest_sequence_takes_any():
    model = tiny_model(MambaConfig(vocab_size=512, hidden_size=32, num_hidden_layers=1, state_size=4))
    assert find_context_length(model, MIWVConfig()) > 10**9
    assert find_context_length(model, MIWVConfig(scoring_max_length=64)) == 64


@pytest.mark.parametrize(
    ("family", "reserved"),
    [("roberta", 1), ("camembert", 1), ("xlm-roberta-xl", 1), ("data2vec-text", 1), ("bert", 0), ("electra", 0)]
    + [("opt", 0), ("bart", 0), ("gpt2", 0), ("biogpt", 0), ("xglm", 0), ("trocr", 0)],
)
def test_a_sequence_as_long_as_the_context_is_forwarded_and_a_longer_one_of_a_table_is_not(family, reserved):
    """The tiny configurations have 0 as the padding's id, behind which RoBERTa's positions begin."""
    model = build_family(family)
    context = find_context_length(model, MIWVConfig())
    assert context == CONTEXT - reserved
    with torch.no_grad():
        model(input_ids=torch.full((1, context), 5))
        if family in ("xglm", "trocr"):  # These compute further positions.
            return
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, context + 1), 5))


def test_a_padding_id_of_one_takes_two_positions_as_in_roberta_itself():
    assert find_context_length(build_family("roberta", pad_token_id=1), MIWVConfig()) == CONTEXT - 2
    assert find_context_length(build_family("roberta", pad_token_id=1), MIWVConfig(scoring_max_length=200)) == 200
