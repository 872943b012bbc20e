"""Columns and a tokenizer to token ids, through the chat template.

A sample is rendered twice: its prompt with the generation prompt, and the whole conversation. The response is what
the whole holds beyond the part both share, so it includes the end of the turn; this is where TRL's prompt/completion
training puts its loss. A blank answer is no response. Where a template renders an earlier turn differently from the
last one (Qwen3, Phi-3, gpt-oss), a sample is always rendered as the last.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import datasets
import numpy as np
from jinja2.exceptions import TemplateError
from tqdm.auto import tqdm
from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from miwv_trainer.data.columns import Message, conversation, instruction_text
from miwv_trainer.data.pool import (
    IGNORED_LABEL,
    Pool,
    TokenizedSample,
    TurnMarkers,
    build_pool,
    check_map_style,
    find_tokens,
    split_preamble,
)
from miwv_trainer.data.token_masks import RenderedText, common_prefix, encode
from miwv_trainer.data.tokenized import read_tokenized

Ids = TypeVar("Ids", list[int], np.ndarray)
# Stanford Alpaca's two texts (tatsu-lab/stanford_alpaca, train.py), for tokenizers without a chat template.
ALPACA_INTRODUCTION = (
    "Below is an instruction that describes a task{}. Write a response that appropriately completes the request."
)
ALPACA_WITH_INPUT = ", paired with an input that provides further context"
RENDERED_AT_ONCE = 512


def pool_from_rows(rows: Any, tokenizer: PreTrainedTokenizerBase, show_progress: bool = False) -> Pool:
    """
    A pool from raw columns: `instruction/input/output`, `prompt/completion` or `messages`.

    Goes through the tokenizer's chat template; through Alpaca's text template where it has none.

    Raises:
        TypeError: `rows` is not map-style.
        ValueError: columns that are none of these; an empty or one-sample pool; no response or no prompt.
    """
    check_map_style(rows)
    markers = turn_markers(tokenizer)
    texts: list[str] = []

    def read() -> Iterator[Mapping[str, Any]]:
        for row in tqdm(_iterate(rows), desc="Rendering the pool", total=len(rows), disable=not show_progress):
            texts.append(instruction_text(row) or "")
            yield row

    samples = list(render(read(), tokenizer, markers))
    return build_pool(samples, markers, texts)


def pool_from_tokenized(
    dataset: Any,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin | None,
    model_config: PretrainedConfig | None = None,
    with_texts: bool = True,
) -> Pool:
    """
    A pool from a dataset that is tokenised already, as a Trainer holds it.

    Args:
        dataset: Map-style, with `input_ids` and `labels` (or `completion_mask` / `assistant_masks`).
        processing_class:
            The Trainer's tokenizer (or a processor that holds one). Tells the preamble from the prompt, and turns
            prompts back into text for text embedders.
        model_config: Names the beginning-of-sequence token where there is no tokenizer.
        with_texts: Whether an embedder will ask for the instructions as text.

    Raises:
        TypeError: the dataset is not map-style.
        ValueError: it lacks a column, is empty, has one sample, or no response or no prompt.
    """
    tokenizer = processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class
    if tokenizer is not None:
        markers = turn_markers(tokenizer)
    else:
        text_config = model_config.get_text_config() if model_config is not None else None
        markers = TurnMarkers(bos=getattr(text_config, "bos_token_id", None))
    pool = split_preamble(read_tokenized(dataset), markers)
    return replace(pool, texts=_texts(dataset, pool, tokenizer, markers)) if with_texts else pool


def tokenize(dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """
    Adds `input_ids`, `attention_mask` and `labels` (-100 outside the response) to a dataset of raw columns.

    The other columns stay, so that a text embedder finds the instruction.
    """

    def add_ids(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        samples = list(render(_rows_of(columns), tokenizer))
        return {
            "input_ids": [ids.tolist() for ids, _ in samples],
            "attention_mask": [[1] * len(ids) for ids, _ in samples],
            "labels": [np.where(mask, ids, IGNORED_LABEL).tolist() for ids, mask in samples],
        }

    return dataset.map(add_ids, batched=True, batch_size=RENDERED_AT_ONCE, desc="Tokenizing")


def render(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, markers: TurnMarkers | None = None
) -> Iterator[TokenizedSample]:
    """Token ids and response mask of each row, in order; `markers` spares finding the tokenizer's own again."""
    has_template = tokenizer.chat_template is not None
    markers = turn_markers(tokenizer) if markers is None else markers
    numbered = enumerate(rows)
    while some := list(islice(numbered, RENDERED_AT_ONCE)):
        texts = []
        for index, row in some:
            try:
                texts.append(_render_chat(row, tokenizer, markers) if has_template else _render_alpaca(row, tokenizer))
            except ValueError as error:
                raise ValueError(f"Sample {index} of the pool cannot be rendered. {error}") from error
        # A chat template writes its own special tokens.
        yield from encode(texts, tokenizer, markers, add_special_tokens=not has_template)


def _iterate(rows: Any) -> Iterator[Mapping[str, Any]]:
    """Rows in order; from a plain dataset many at a time, which is ten times faster."""
    if not isinstance(rows, datasets.Dataset):
        yield from (rows[index] for index in range(len(rows)))
    elif rows.format["type"] is not None:
        yield from rows
    else:
        for columns in rows.iter(batch_size=RENDERED_AT_ONCE):
            yield from _rows_of(columns)


def _rows_of(columns: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def turn_markers(tokenizer: PreTrainedTokenizerBase) -> TurnMarkers:
    """
    What opens a user's turn and what follows it, found by rendering a made-up conversation.

    Between an assistant's words and the next user's words stands the end of one turn and the beginning of another;
    the end is known from a conversation that stops there.
    """
    none = TurnMarkers(bos=tokenizer.bos_token_id)
    if tokenizer.chat_template is None:
        return none
    user, assistant, next_user = "Alpha", "Beta", "Gamma"
    turns: list[Message] = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": assistant},
        {"role": "user", "content": next_user},
    ]
    try:
        long, short, prompt = (
            _apply(tokenizer, turns),
            _apply(tokenizer, turns[:2]),
            _apply(tokenizer, turns[:1], prompting=True),
        )
    except ValueError:
        return none
    before = _ids(tokenizer, long.partition(user)[0])
    between = _ids(tokenizer, long.partition(assistant)[2].partition(next_user)[0])
    end_of_turn = _ids(tokenizer, short.partition(assistant)[2])
    # Phi-3 adds EOS to the last turn, gpt-oss ends it with another token than an earlier one.
    header = between[common_prefix(between, end_of_turn) or len(end_of_turn) :]
    if not header or before[-len(header) :] != header:
        return none
    is_blank = _blank_tokens(tokenizer)
    # A newline at the end of either may merge with the word that follows.
    suffix = _ids(tokenizer, prompt.partition(user)[2])
    return TurnMarkers(
        tuple(_without_blank_end(header, is_blank)),
        tuple(_without_blank_end(suffix, is_blank)),
        tokenizer.bos_token_id,
    )


def _render_chat(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, markers: TurnMarkers) -> RenderedText:
    messages, given = conversation(row)
    whole = _apply(tokenizer, messages)
    if given:
        if not any(message["content"].strip() for message in messages[given:]):
            return RenderedText(whole, [])
        return RenderedText(whole, [(_apply(tokenizer, messages[:given], prompting=True), whole)])
    responses: list[tuple[str, str | None]] = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant" or not message["content"].strip():
            continue
        before = _apply(tokenizer, messages[:turn], prompting=True) if turn else ""
        following = messages[turn + 1]["role"] if turn + 1 < len(messages) else None
        if following is None:
            responses.append((before, whole))
        elif following == "user" and markers.user_header:
            responses.append((before, None))
        else:
            responses.append((before, _apply(tokenizer, messages[: turn + 1])))
    return RenderedText(whole, responses)


def _render_alpaca(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> RenderedText:
    """Each response behind Alpaca's text with what was said since the last one; given turns are no response."""
    messages, given = conversation(row)
    has_own_input = row.get("prompt") is None and row.get("messages") is None
    whole, said = "", list[str]()
    responses: list[tuple[str, str | None]] = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            said.append(message["content"])
            continue
        if has_own_input:
            before = whole + _alpaca_prompt(row["instruction"], row.get("input") or "")
        else:
            before = whole + _alpaca_prompt("\n\n".join(said))
        said = []
        whole = before + message["content"] + (tokenizer.eos_token or "")
        if turn >= given and message["content"].strip():
            responses.append((before, whole))
    return RenderedText(whole, responses)


def _alpaca_prompt(instruction: str, given: str = "") -> str:
    introduction = ALPACA_INTRODUCTION.format(ALPACA_WITH_INPUT if given.strip() else "")
    shown = f"\n\n### Input:\n{given}" if given.strip() else ""
    return f"{introduction}\n\n### Instruction:\n{instruction}{shown}\n\n### Response:"


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[Message], prompting: bool = False) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompting)
    except TemplateError as error:
        raise ValueError(f"The tokenizer's chat template refuses it: {error}") from error


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _texts(
    dataset: Any, pool: Pool, tokenizer: PreTrainedTokenizerBase | None, markers: TurnMarkers
) -> list[str] | None:
    """Instructions from columns that survived tokenisation, else decoded prompts, else nothing."""
    first = dataset[0]
    if instruction_text(first) is not None:
        is_plain = isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom"
        names = [name for name in ("prompt", "messages", "instruction", "input") if name in first]
        rows = dataset.select_columns(names) if is_plain else dataset
        return [instruction_text(row) or "" for row in _iterate(rows)]
    if tokenizer is None:
        return None
    is_blank = _blank_tokens(tokenizer)
    prompts = [_users_words(pool.prompt(index), markers, is_blank) for index in range(len(pool))]
    return [text.strip() for text in tokenizer.batch_decode(prompts, skip_special_tokens=True)]


def _users_words(prompt: np.ndarray, markers: TurnMarkers, is_blank: Callable[[int], bool]) -> np.ndarray:
    """What stands between the user's header and the generation prompt, as the raw columns would have given it."""
    header, suffix = np.asarray(markers.user_header), markers.generation_prompt
    if len(header) and (start := find_tokens(prompt, header)) >= 0:
        prompt = prompt[start + len(header) :]
    trimmed = _without_blank_end(prompt, is_blank)
    ends_in_suffix = suffix and tuple(trimmed[-len(suffix) :]) == suffix
    return trimmed[: -len(suffix)] if ends_in_suffix else prompt


def _blank_tokens(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], bool]:
    """Whether a token is nothing but white space; each is decoded once."""
    return functools.cache(lambda token: not tokenizer.decode([token]).strip())


def _without_blank_end(ids: Ids, is_blank: Callable[[int], bool]) -> Ids:
    end = len(ids)
    while end and is_blank(int(ids[end - 1])):
        end -= 1
    return ids[:end]
