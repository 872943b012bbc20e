"""A pool from what people bring: rows of text, or the tokenised dataset of a Trainer."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import islice

import datasets
import numpy as np
from tqdm.auto import tqdm
from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from miwv_trainer.checks import check_argument, explain_argument
from miwv_trainer.data.alpaca import render_alpaca
from miwv_trainer.data.assistant_turns import mark_assistant_turns
from miwv_trainer.data.chat_template import find_turn_markers, render_chat
from miwv_trainer.data.columns import ColumnNames, check_names, read_any, read_conversation, read_instruction
from miwv_trainer.data.content import hash_samples
from miwv_trainer.data.conversation import Row
from miwv_trainer.data.cuts import find_cut_samples
from miwv_trainer.data.instructions import read_instructions
from miwv_trainer.data.map_style import (
    ROWS_AT_ONCE,
    MapStyleDataset,
    check_map_style,
    iterate_rows,
    transpose,
)
from miwv_trainer.data.opening import add_opening
from miwv_trainer.data.plain_text import render_plain
from miwv_trainer.data.pool import IGNORED_LABEL, Pool, TokenizedSample
from miwv_trainer.data.preamble import build_pool, split_preamble
from miwv_trainer.data.rows import DATASET_KINDS, JsonRows, to_dataset
from miwv_trainer.data.token_masks import RenderedText, encode
from miwv_trainer.data.tokenized import read_tokenized
from miwv_trainer.data.turn_markers import TurnMarkers, make_blank_test

logger = logging.getLogger(__name__)

A_TOKENIZER = "a loaded tokenizer (`AutoTokenizer.from_pretrained(...)`)"


def pool_from_rows(
    rows: MapStyleDataset,
    tokenizer: PreTrainedTokenizerBase,
    show_progress: bool = False,
    columns: ColumnNames | None = None,
) -> Pool:
    """
    Makes a pool of raw columns, of any format in docs/formats.md.

    Conversations are rendered by the tokenizer's chat template, or by Alpaca's text template if it has none. A prompt
    and its completion as text are joined as they are, as TRL's SFTTrainer joins them.

    Args:
        columns: The rows' own names of what is read, such as `{"prompt": "question", "response": "answer"}`.

    Raises:
        TypeError: `rows` is not map-style, or the tokenizer is none.
        ValueError: columns that are none of these; an empty or one-sample pool; no response or no prompt.
    """
    check_argument("pool_from_rows(rows, tokenizer)", "tokenizer", tokenizer, PreTrainedTokenizerBase, A_TOKENIZER)
    check_map_style(rows)
    _check_names(rows, columns)
    markers = find_turn_markers(tokenizer)
    texts: list[str] = []

    def read() -> Iterator[Row]:
        progress = tqdm(iterate_rows(rows), desc="Rendering the pool", total=len(rows), disable=not show_progress)
        for row in progress:
            texts.append(read_instruction(row, columns) or "")
            yield row

    samples = list(render(read(), tokenizer, markers, columns))
    _tell_plain_text(rows, tokenizer, columns)
    pool = add_opening(build_pool(samples, markers, texts), tokenizer)
    return replace(pool, hashes=hash_samples(rows, pool, tokenizer, markers, columns))


def pool_from_tokenized(
    dataset: MapStyleDataset,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin | None,
    model_config: PretrainedConfig | None = None,
    with_texts: bool = True,
    with_hashes: bool = True,
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
        with_hashes: Whether the samples are to be found in a file by `miwv select` and `miwv report`.

    Raises:
        TypeError: the dataset is not map-style, or the tokenizer is a name or a dataset.
        ValueError: it lacks a column, is empty, has one sample, or no response or no prompt.
    """
    # A Trainer may have anything else that processes, such as an image processor.
    if isinstance(processing_class, str | datasets.Dataset):
        call = "pool_from_tokenized(dataset, processing_class)"
        raise TypeError(explain_argument(call, "processing_class", processing_class, A_TOKENIZER))
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
            whole = replace(turns, is_trained_whole=True)
    pool = add_opening(split_preamble(whole, markers), tokenizer)
    if tokenizer is not None and with_hashes:
        # Decoded once, and only where it is asked for.
        pool = replace(pool, find_cut_samples=cache(partial(find_cut_samples, dataset, pool, tokenizer, markers)))
    return replace(
        pool,
        texts=read_instructions(dataset, pool, tokenizer, markers) if with_texts else None,
        hashes=hash_samples(dataset, pool, tokenizer, markers) if with_hashes else None,
    )


def tokenize(
    dataset: datasets.Dataset | JsonRows, tokenizer: PreTrainedTokenizerBase, columns: ColumnNames | None = None
) -> datasets.Dataset:
    """
    Adds `input_ids`, `attention_mask` and `labels` (-100 outside the response) to a dataset of raw columns.

    The other columns stay, so that a text embedder finds the instruction.

    Args:
        dataset: A dataset, or what `load_rows` reads.
        columns: The dataset's own names of what is read, such as `{"prompt": "question", "response": "answer"}`.

    Raises:
        TypeError: the dataset is none of these, or the tokenizer is none.
        ValueError: a sample cannot be read or rendered; the message names it.
    """
    call = "tokenize(dataset, tokenizer)"
    check_argument(call, "dataset", dataset, (datasets.Dataset, JsonRows), DATASET_KINDS)
    check_argument(call, "tokenizer", tokenizer, PreTrainedTokenizerBase, A_TOKENIZER)
    _check_names(dataset, columns)
    _tell_plain_text(dataset, tokenizer, columns)
    markers = find_turn_markers(tokenizer)

    def add_ids(batch: Mapping[str, list[object]], numbers: list[int]) -> dict[str, list[list[int]]]:
        # Rows of JSON are rendered as they are written: a dataset fills their missing keys with nulls.
        rows = (dataset[number] for number in numbers) if isinstance(dataset, JsonRows) else transpose(batch)
        samples = list(render(rows, tokenizer, markers, columns, first=numbers[0]))
        return {
            "input_ids": [ids.tolist() for ids, _ in samples],
            "attention_mask": [[1] * len(ids) for ids, _ in samples],
            "labels": [np.where(mask, ids, IGNORED_LABEL).tolist() for ids, mask in samples],
        }

    return to_dataset(dataset).map(add_ids, batched=True, with_indices=True, batch_size=ROWS_AT_ONCE, desc="Tokenizing")


def render(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    markers: TurnMarkers | None = None,
    columns: ColumnNames | None = None,
    first: int = 0,
) -> Iterator[TokenizedSample]:
    """
    Renders rows and tokenises them, in order.

    Args:
        markers: The tokenizer's turn markers, if they are known already.
        columns: The rows' own names of what is read.
        first: The number of the first row in its pool, for messages.
    """
    # Three renderings and four encodings, spared where many short lists of rows are rendered.
    markers = find_turn_markers(tokenizer) if markers is None else markers
    numbered = enumerate(rows, start=first)
    # Few enough to hold as text, enough for the tokenizer's threads.
    while part := list(islice(numbered, ROWS_AT_ONCE)):
        texts = []
        for index, row in part:
            try:
                texts.append(_render_row(row, tokenizer, markers, columns))
            # The row's number is the only thing by which its owner finds it among a million.
            except ValueError as error:
                raise ValueError(f"Sample {index} of the pool cannot be rendered. {error}") from error
        yield from encode(texts, tokenizer, markers)


def _check_names(rows: MapStyleDataset, columns: ColumnNames | None) -> None:
    """Raises `ValueError` if a column is named that no sample has: each sample by itself may lack some of them."""
    if columns is None:
        return
    check_names(columns)
    found = (
        rows.column_names
        if isinstance(rows, datasets.Dataset)
        else {name for row in iterate_rows(rows) for name in row}
    )
    missing = [column for column in columns.values() if column not in found]
    if missing:
        raise ValueError(f"`columns` names {missing[0]!r}, but no sample has it; found: {', '.join(sorted(found))}.")


def _tell_plain_text(rows: MapStyleDataset, tokenizer: PreTrainedTokenizerBase, columns: ColumnNames | None) -> None:
    """Tells who brings a chat template that it is not used, where the first sample shows that."""
    first = read_any(rows[0], columns) if len(rows) else None
    if first is not None and first.is_plain and tokenizer.chat_template is not None:
        logger.info(
            "The prompts and answers of the pool are texts, so they are joined as they are, as TRL's trainers do it. "
            "To render them by the chat template, name their columns: `--columns prompt=prompt,response=completion`."
        )


def _render_row(
    row: Row, tokenizer: PreTrainedTokenizerBase, markers: TurnMarkers, columns: ColumnNames | None
) -> RenderedText:
    conversation = read_conversation(row, columns)
    if conversation.is_plain:
        return render_plain(conversation, tokenizer.eos_token or "")
    if tokenizer.chat_template is None:
        return render_alpaca(conversation, tokenizer.eos_token or "")
    return render_chat(conversation, tokenizer, markers)
