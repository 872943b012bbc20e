"""What a Trainer was not given and what that changes, told in one line each before the first round."""

import logging
from typing import cast

import numpy as np
from torch.utils.data import DataLoader
from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from miwv_trainer.data.map_style import MapStyleDataset, list_columns
from miwv_trainer.data.pool import Pool

logger = logging.getLogger(__name__)


def warn_of_missing_parts(
    dataloader: DataLoader,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin | None,
    model_config: PretrainedConfig,
    pool: Pool,
) -> None:
    """
    Warns where a tokenizer or an attention mask is missing without which samples are scored otherwise.

    Args:
        processing_class: The Trainer's. An image processor counts as no tokenizer.
        model_config: Names the pad token if there is no tokenizer.
    """
    found = processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class
    tokenizer = found if isinstance(found, PreTrainedTokenizerBase) else None
    shared = count_shared_tokens(pool) if tokenizer is None else 0
    if shared:
        logger.warning(
            "The Trainer has no tokenizer (`processing_class`), so the %d tokens with which all prompts begin cannot "
            "be told from a system turn that the chat template renders once: they are scored before the exemplar and "
            "again before the sample. Give the tokenizer if it is a system turn; other samples may be selected then.",
            shared,
        )
    pad = model_config.get_text_config().pad_token_id if tokenizer is None else tokenizer.pad_token_id
    # A wrapper around the dataloader need not have a `dataset`.
    dataset = cast(MapStyleDataset, dataloader.dataset) if isinstance(dataloader, DataLoader) else None
    if pad is None or dataset is None or "attention_mask" in list_columns(dataset):
        return
    padded = count_padded(pool, pad)
    if padded:
        logger.warning(
            "%d of %d samples begin or end with several pad tokens (id %d), and the dataset has no `attention_mask`: "
            "the padding is scored as a part of them, and stands between exemplar and sample. Give the mask, or leave "
            "padding to the data collator.", padded, len(pool), pad,
        )  # fmt: skip


def count_shared_tokens(pool: Pool) -> int:
    """The number of tokens with which all prompts of a pool begin, after its preamble."""
    starts, shared = pool.offsets[:-1], 0
    shortest = int(pool.prompt_tokens.min())
    while shared < shortest and (pool.tokens[starts + shared] == pool.tokens[shared]).all():
        shared += 1
    return shared


def count_padded(pool: Pool, pad: int) -> int:
    """The number of samples that begin or end with at least two pad tokens. One may be EOS or BOS, where these pad."""
    starts, ends = pool.offsets[:-1][pool.lengths >= 2], pool.offsets[1:][pool.lengths >= 2]
    is_pad = pool.tokens == pad
    begins, finishes = is_pad[starts] & is_pad[starts + 1], is_pad[ends - 1] & is_pad[ends - 2]
    # Where all samples begin with the same padding, it is a part of the preamble.
    if (pool.preamble[:2] == pad).sum() == 2:
        return len(pool)
    return int(np.count_nonzero(begins | finishes))
