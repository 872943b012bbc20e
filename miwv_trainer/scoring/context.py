"""How long a sequence may be, and other sizes that families of models name differently."""

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from miwv_trainer.config import MIWVConfig
from miwv_trainer.distributed.wrappers import get_inner_model
from miwv_trainer.scoring.rope import read_context_factor

# ALiBi and recurrent models often have no limit; then only `scoring_max_length` limits.
NO_LIMIT = 2**31 - 1
# What families of transformers 5.23 call the context, the first that is given: MPT, GPT-2 and its relatives, ChatGLM,
# decoders of speech and translation, RWKV. Whisper's `max_source_positions` are its encoder's, so they come last.
CONTEXT_NAMES = (
    "max_position_embeddings",
    "max_seq_len",
    "n_positions",
    "seq_length",
    "max_sequence_length",
    "max_target_positions",
    "n_ctx",
    "context_length",
    "max_source_positions",
)


def find_context_length(model: PreTrainedModel, config: MIWVConfig) -> int:
    """Longest sequence that is forwarded: `scoring_max_length`, else what the model's configuration allows."""
    text_config = get_text_config(model)
    limit = read_size(text_config, *CONTEXT_NAMES) or NO_LIMIT
    if limit != NO_LIMIT:
        limit = int(limit * read_context_factor(text_config)) - _count_reserved_positions(model, limit)
    return min(limit, config.scoring_max_length) if config.scoring_max_length is not None else limit


def _count_reserved_positions(model: PreTrainedModel, limit: int) -> int:
    """
    Rows of a table of positions that no token gets: RoBERTa and its relatives count positions from behind the padding's
    index, so that a sequence of `max_position_embeddings` ends in an IndexError. (OPT's and BART's tables are larger
    than the limit by their offset.)
    """
    tables = (module for name, module in get_inner_model(model).named_modules() if "position" in name)
    return max(
        (
            table.padding_idx + 1
            for table in tables
            if isinstance(table, nn.Embedding) and table.num_embeddings == limit and table.padding_idx is not None
        ),
        default=0,
    )


def get_text_config(model: PreTrainedModel) -> PretrainedConfig:
    """The configuration of the language model; a model for images and text holds others beside it."""
    return get_inner_model(model).config.get_text_config()


def read_size(config: PretrainedConfig, *names: str) -> int | None:
    """The first of these entries of a configuration that is a positive whole number; None if none is."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)
