"""Models for which MIWV is not defined."""

import numpy as np
import pytest
from transformers import T5Config, T5ForConditionalGeneration

from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.pool import Pool, TokenizedSample
from miwv_trainer.data.preamble import build_pool
from miwv_trainer.data.turn_markers import TurnMarkers
from miwv_trainer.scoring.model_checks import check_model
from tests.helpers.tiny import tiny_dataset
from tests.helpers.tiny_rounds import pool_of


@pytest.fixture
def pool(tokenizer) -> Pool:
    return pool_from_rows(tiny_dataset(4), tokenizer)


def test_a_token_id_outside_the_vocabulary_is_refused(model):
    check_model(model, pool_of(([10], [511]), ([12], [13])))
    with pytest.raises(
        ValueError, match=r"holds token id 512, but the model's vocabulary has 512 entries.*own, or resize"
    ):
        check_model(model, pool_of(([10], [11]), ([512], [13])))


def test_a_token_id_outside_the_vocabulary_is_refused_in_the_preamble_too(model):
    sequences = [TokenizedSample(np.array([700, 10, 11]), np.array([False, False, True]))] * 2
    with pytest.raises(ValueError, match="token id 700"):
        check_model(model, build_pool(sequences, TurnMarkers(bos=700)))


def test_an_encoder_decoder_model_is_refused_by_its_name(pool):
    config = T5Config(vocab_size=512, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(
        ValueError, match="T5ForConditionalGeneration is an encoder-decoder model; MIWV is defined for caus"
    ):
        check_model(T5ForConditionalGeneration(config), pool)


def test_a_prompt_tuned_model_is_refused(model, pool) -> None:
    from peft import PromptTuningConfig, get_peft_model

    tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(ValueError, match="prompt-tuned by PEFT: its virtual tokens shift every position"):
        check_model(tuned, pool)


def test_a_negative_token_id_is_refused(model, pool) -> None:
    tokens = pool.tokens.copy()
    tokens[3] = -1
    with pytest.raises(ValueError, match="token id -1, but the model's vocabulary has 512 entries"):
        check_model(model, Pool(pool.preamble, tokens, pool.is_response, pool.offsets))
