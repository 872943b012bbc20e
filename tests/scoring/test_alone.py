"""Families and positions that no other file names: losses at default settings are those of each sequence alone."""

from typing import Any

import numpy as np
import pytest

from tests.helpers.lengths import EXEMPLARS, LENGTHS, SAMPLES, score
from tests.helpers.losses import losses_by_hand, pool_of
from tests.helpers.trees import SMALL, random_model

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
FALCON = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True}
ROBERTA = {"pad_token_id": 1, "is_decoder": True, "type_vocab_size": 1, "max_position_embeddings": 102}
# Three samples are longer than this with their exemplars, so that the exemplar is cut to what is left.
NEAR = 100
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "yarn on short samples": ("Llama", {**SMALL, "max_position_embeddings": 256, "rope_parameters": YARN}, 256),
    "ALiBi": ("Falcon", {**FALCON, "initializer_range": 0.3}, 512),
    "a window shorter than every exemplar": ("Mistral", {**SMALL, "sliding_window": 8}, 512),
    "windows in every other layer": ("Gemma2", {**SMALL, "head_dim": 8, "sliding_window": 8}, 512),
    "learned positions to their end": (
        "GPT2",
        {"vocab_size": 512, "n_embd": 32, "n_head": 4, "n_positions": NEAR},
        NEAR,
    ),
    "positions behind the padding's": ("Roberta", {**SMALL, **ROBERTA}, NEAR),
    "positions with an offset": ("OPT", {**SMALL, "word_embed_proj_dim": 32, "max_position_embeddings": NEAR}, NEAR),
    "ALiBi to the end": (
        "Mpt",
        {"vocab_size": 512, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": NEAR},
        NEAR,
    ),
}


@pytest.mark.parametrize("layout", ["auto", "padded"])
@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_each_sequence_alone(name: str, layout: str) -> None:
    family, values, context = CASES[name]
    model = random_model(family, values).eval()
    _, found = score(model, pool_of(SAMPLES), layout=layout)
    expected = losses_by_hand(model, SAMPLES, EXEMPLARS, context)
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)
    assert np.isfinite(found).all()


def test_the_cases_near_the_end_cut_exemplars() -> None:
    lengths = np.array([prompt + response for prompt, response in LENGTHS])
    assert (2 + lengths + lengths[EXEMPLARS] > NEAR).sum() == 3
