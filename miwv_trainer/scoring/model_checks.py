"""Whether MIWV is defined for a model, before anything is computed."""

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.wrappers import get_inner_model, is_prompt_tuned, unwrap_model
from miwv_trainer.scoring.context import get_text_config
from miwv_trainer.scoring.memory import read_sizes

A_MODEL = "a loaded model (`AutoModelForCausalLM.from_pretrained(...)`)"
# Endings of the names of transformers' classes, and what such a model does.
OTHER_TASKS = {
    "ForSequenceClassification": "classifies sequences (or predicts a number for them)",
    "ForTokenClassification": "classifies tokens",
    "ForQuestionAnswering": "marks answers within a text",
    "ForMultipleChoice": "chooses between texts",
    "ForNextSentencePrediction": "compares sentences",
    "ForMaskedLM": "fills masked tokens in, seeing those behind them too",
    "ForCTC": "transcribes audio",
    "ForImageClassification": "classifies images",
}
# Entries of a configuration that make families causal, where they are false.
SWITCHES = ("is_decoder", "causal")
# Families of transformers that attend in both directions, by `model_type`: unless a switch is on, or always. They are
# told from their configuration in `attach`, and all others by two forwards (`causality.py`) when training begins. Other
# families have an `is_decoder` too that changes nothing (GPT-NeoX, BART's decoders).
SEEING_UNLESS_SWITCHED = {
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "flaubert",
    "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta",
    "xlm-roberta-xl", "xmod",
}  # fmt: skip
SEEING_ALWAYS = {"cpmant", "prophetnet", "xlnet"}
TRAIN_ANOTHER = "Train an `AutoModelForCausalLM`, or train without a selection."


def check_model_kind(model: nn.Module, advice: str = TRAIN_ANOTHER) -> None:
    """
    Checks that a model predicts each token from those before it, as far as its class and configuration tell.

    Args:
        advice: What to do, in errors about models for other tasks.

    Raises:
        ValueError:
            it is no model of transformers, one for another task, an encoder-decoder, of a family that sees the tokens
            that follow, or prompt-tuned.
    """
    inside = get_inner_model(unwrap_model(model))
    name = type(inside).__name__
    if not isinstance(inside, PreTrainedModel):
        raise ValueError(
            f"The model is a {name}, which is no `PreTrainedModel` of transformers: it has no configuration that tells "
            "its context, vocabulary and attention, by which rows are composed and losses computed. Derive it from "
            "`PreTrainedModel`, or load it with `AutoModelForCausalLM`."
        )
    bases = [base.__name__ for base in type(inside).__mro__]
    for ending, task in OTHER_TASKS.items():
        if any(base.endswith(ending) for base in bases):
            raise ValueError(
                f"{name} is no causal language model: it {task}, and gives no loss of a response behind its prompt. "
                f"{advice}"
            )
    if inside.config.is_encoder_decoder:
        raise ValueError(
            f"{name} is an encoder-decoder model; MIWV is defined for causal language models, where the exemplar "
            f"stands before the sample in one sequence. {advice}"
        )
    if is_known_to_see(inside):
        raise ValueError(explain_sight(inside))
    if is_prompt_tuned(unwrap_model(model)):
        raise ValueError(
            "The model is prompt-tuned by PEFT: its virtual tokens shift every position, and losses would be read at "
            "the wrong ones. Train LoRA, another adapter, or the whole model."
        )


def is_known_to_see(model: PreTrainedModel) -> bool:
    """Whether a model's configuration tells that its predictions depend on the tokens that follow."""
    if not type(model).__module__.startswith("transformers."):
        return False  # A class of one's own may mask them itself.
    family = model.config.model_type
    return family in SEEING_ALWAYS or (family in SEEING_UNLESS_SWITCHED and find_switch(model) is not None)


def find_switch(model: nn.Module) -> str | None:
    """The entry of a model's configuration that would make it causal; None where there is none, or it is on."""
    config = get_text_config(model)
    return next((entry for entry in SWITCHES if getattr(config, entry, None) is False), None)


def explain_sight(model: nn.Module) -> str:
    """What is wrong with a model that sees the tokens that follow, and what to do."""
    switch = find_switch(model)
    advice = (
        f"Load it with `{switch}=True`, or train a causal language model"
        if switch is not None
        else "Train a causal language model instead"
    )
    return (
        f"{type(get_inner_model(model)).__name__} sees the tokens that follow: other tokens behind a position change "
        f"what it predicts there, so its losses do not tell how well it knows a response. {advice}."
    )


def check_model(model: PreTrainedModel, pool: Pool) -> None:
    """
    Checks that MIWV is defined for the model, and that the pool is in its vocabulary.

    Raises:
        ValueError: as in `check_model_kind`, or the model lacks a token id of the pool.
    """
    check_model_kind(model)
    vocabulary = read_sizes(model).vocabulary
    tokens = np.concatenate([pool.preamble, pool.tokens])
    wrong = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if len(wrong):
        raise ValueError(
            f"The pool holds token id {wrong.max()}, but the model's vocabulary has {vocabulary} entries: the pool was "
            "tokenised with another tokenizer. Tokenise it with the model's own, or resize the embeddings."
        )
