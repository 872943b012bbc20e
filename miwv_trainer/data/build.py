"""A pool from what people bring: rows of text, or the tokenised dataset of a Trainer."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

import datasets
import numpy as np
from tqdm.auto import tqdm
from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from miwv_trainer.data.alpaca import render_alpaca
from miwv_trainer.data.assistant_turns import mark_assistant_turns
from miwv_trainer.data.chat_template import find_turn_markers, render_chat
from miwv_trainer.data.columns import read_instruction
from miwv_trainer.data.instructions import read_instructions
from miwv_trainer.data.map_style import (
    ROWS_AT_ONCE,
    MapStyleDataset,
    Row,
    check_map_style,
    iterate_rows,
    transpose,
)
from miwv_trainer.data.pool import IGNORED_LABEL, Pool, TokenizedSample
from miwv_trainer.data.preamble import build_pool, split_preamble
from miwv_trainer.data.token_masks import encode
from miwv_trainer.data.tokenized import read_tokenized
from miwv_trainer.data.turn_markers import TurnMarkers, make_blank_test

logger = logging.getLogger(__name__)


def pool_from_rows(rows: MapStyleDataset, tokenizer: PreTrainedTokenizerBase, show_progress: bool = False) -> Pool:
    """
    Makes a pool of raw columns: `instruction/input/output`, `prompt/completion` or `messages`.

    Rows are rendered by the tokenizer's chat template, or by Alpaca's text template if it has none.

    Raises:
        TypeError: `rows` is not map-style.
        ValueError: columns that are none of these; an empty or one-sample pool; no response or no prompt.
    """
    check_map_style(rows)
    markers = find_turn_markers(tokenizer)
    texts: list[str] = []

    def read() -> Iterator[Row]:
        progress = tqdm(iterate_rows(rows), desc="Rendering the pool", total=len(rows), disable=not show_progress)
        for row in progress:
            texts.append(read_instruction(row) or "")
            yield row

    samples = list(render(read(), tokenizer, markers))
    return build_pool(samples, markers, texts)


def pool_from_tokenized(
    dataset: MapStyleDataset,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin | None,
    model_config: PretrainedConfig | None = None,
    with_texts: bool = True,
) -> Pool:
    """
    Makes a pool of a dataset that is tokenised already, such as a Trainer's.

    Args:
        dataset: Map-style, with `input_ids` and `labels` (or `completion_mask` / `assistant_masks`).
        processing_class:
            The Trainer's tokenizer (or a processor that holds one). It tells the preamble from the prompt, and turns
            prompts back into text for text embedders.
        model_config: Names the beginning-of-sequence token if there is no tokenizer.
        with_texts: Whether an embedder will need the instructions as text.

    Raises:
        TypeError: the dataset is not map-style.
        ValueError: it lacks a column, is empty, has one sample, or no response or no prompt.
    """
    tokenizer = processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = None  # An image processor or a feature extractor, which knows nothing of tokens.
    if tokenizer is not None:
        markers = find_turn_markers(tokenizer)
    else:
        # A model without a tokenizer, trained on token ids: its configuration still names BOS.
        text_config = model_config.get_text_config() if model_config is not None else None
        markers = TurnMarkers(bos=getattr(text_config, "bos_token_id", None))
    whole = read_tokenized(dataset)
    # Not where all labels are -100: these samples are not trained on at all, which `split_preamble` refuses.
    covers_all = whole.is_response.any() and not whole.has_prompt_and_response.any()
    if tokenizer is not None and covers_all:
        turns = mark_assistant_turns(whole, markers, make_blank_test(tokenizer))
        if turns.has_prompt_and_response.any():
            logger.info(
                "The labels cover whole conversations: samples are scored on the assistant's turns, found by the chat "
                "template, and trained as they are."
            )
            whole = turns
    pool = split_preamble(whole, markers)
    return replace(pool, texts=read_instructions(dataset, pool, tokenizer, markers)) if with_texts else pool


def tokenize(dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """
    Adds `input_ids`, `attention_mask` and `labels` (-100 outside the response) to a dataset of raw columns.

    The other columns stay, so that a text embedder finds the instruction.
    """

    def add_ids(columns: Mapping[str, list[object]]) -> dict[str, list[list[int]]]:
        samples = list(render(transpose(columns), tokenizer))
        return {
            "input_ids": [ids.tolist() for ids, _ in samples],
            "attention_mask": [[1] * len(ids) for ids, _ in samples],
            "labels": [np.where(mask, ids, IGNORED_LABEL).tolist() for ids, mask in samples],
        }

    return dataset.map(add_ids, batched=True, batch_size=ROWS_AT_ONCE, desc="Tokenizing")


def render(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, markers: TurnMarkers | None = None
) -> Iterator[TokenizedSample]:
    """
    Renders rows and tokenises them, in order.

    Args:
        markers: The tokenizer's turn markers, if they are known already.
    """
    has_template = tokenizer.chat_template is not None
    # Three renderings and four encodings, spared where many short lists of rows are rendered.
    markers = find_turn_markers(tokenizer) if markers is None else markers
    numbered = enumerate(rows)
    # Few enough to hold as text, enough for the tokenizer's threads.
    while part := list(islice(numbered, ROWS_AT_ONCE)):
        texts = []
        for index, row in part:
            try:
                if has_template:
                    texts.append(render_chat(row, tokenizer, markers))
                else:
                    texts.append(render_alpaca(row, tokenizer.eos_token or ""))
            # The row's number is the only thing by which its owner finds it among a million.
            except ValueError as error:
                raise ValueError(f"Sample {index} of the pool cannot be rendered. {error}") from error
        # A chat template writes its special tokens itself; the tokenizer would add a second BOS.
        yield from encode(texts, tokenizer, markers, add_special_tokens=not has_template)
