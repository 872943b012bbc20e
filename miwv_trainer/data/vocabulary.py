"""Whether two tokenizers mean the same by the token ids of a pool."""

import numpy as np
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from miwv_trainer.data.pool import Pool


def find_tokenizer(given: object) -> PreTrainedTokenizerBase | None:
    """The tokenizer in what a Trainer takes as `processing_class`; None if it holds none."""
    found = given.tokenizer if isinstance(given, ProcessorMixin) else given
    return found if isinstance(found, PreTrainedTokenizerBase) else None


def describe_vocabulary_difference(
    pool: Pool, own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase
) -> str | None:
    """How two tokenizers differ on the token ids of a pool, in words; None if each id is the same token to both."""
    ids = np.unique(np.concatenate([pool.preamble, pool.tokens])).tolist()
    tokens, others = own.convert_ids_to_tokens(ids), other.convert_ids_to_tokens(ids)
    wrong = [each for each in zip(ids, tokens, others, strict=True) if each[1] != each[2]]
    if not wrong:
        return None
    number, token, another = wrong[0]
    return f"{len(wrong)} of the {len(ids)} token ids in the pool; id {number} is {token!r} and {another!r}"
