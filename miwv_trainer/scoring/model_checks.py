"""Whether MIWV is defined for a model, before anything is computed."""

import numpy as np
from transformers import PreTrainedModel

from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.wrappers import is_prompt_tuned
from miwv_trainer.scoring.context import get_text_config


def check_model(model: PreTrainedModel, pool: Pool) -> None:
    """
    Checks that MIWV is defined for the model, and that the pool is in its vocabulary.

    Raises:
        ValueError: the model is an encoder-decoder or prompt-tuned, or lacks a token id of the pool.
    """
    config = model.config
    if config.is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder model; MIWV is defined for causal language models, where "
            "the exemplar stands before the sample in one sequence."
        )
    if is_prompt_tuned(model):
        raise ValueError(
            "The model is prompt-tuned by PEFT: its virtual tokens shift every position, and losses would be read at "
            "the wrong ones. Train LoRA, another adapter, or the whole model."
        )
    vocabulary = get_text_config(model).vocab_size
    tokens = np.concatenate([pool.preamble, pool.tokens])
    wrong = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if len(wrong):
        raise ValueError(
            f"The pool holds token id {wrong.max()}, but the model's vocabulary has {vocabulary} entries: the pool was "
            "tokenised with another tokenizer. Tokenise it with the model's own, or resize the embeddings."
        )
