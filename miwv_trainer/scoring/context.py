"""How long a sequence may be: the model's context, or less if the user says so."""

from transformers import PretrainedConfig, PreTrainedModel

from miwv_trainer.config import MIWVConfig

# MPT and some others give their context another name or none; then only `scoring_max_length` limits.
NO_LIMIT = 2**31 - 1


def find_context_length(model: PreTrainedModel, config: MIWVConfig) -> int:
    """Longest sequence that is forwarded: `scoring_max_length`, else the model's `max_position_embeddings`."""
    limit = getattr(get_text_config(model), "max_position_embeddings", None) or NO_LIMIT
    return min(limit, config.scoring_max_length) if config.scoring_max_length is not None else limit


def get_text_config(model: PreTrainedModel) -> PretrainedConfig:
    """The configuration of the language model; a model for images and text holds others beside it."""
    return model.config.get_text_config()
