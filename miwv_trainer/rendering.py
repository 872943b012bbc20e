"""Columns and a tokenizer to token ids, through the chat template.

A sample is rendered twice: its prompt with the generation prompt, and the whole conversation. The response is what
the whole holds beyond the part both share, so it includes the end of the turn; this is where TRL's prompt/completion
training puts its loss. Ids are compared, never strings: a tokenizer may merge across the boundary. Where a template
renders an earlier turn differently from the last one (Qwen3, Phi-3, gpt-oss), a sample is always rendered as the
last.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, takewhile
from typing import Any, NamedTuple

import datasets
import numpy as np
from jinja2.exceptions import TemplateError
from tqdm.auto import tqdm
from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from miwv_trainer.pool import (
    IGNORED_LABEL,
    Pool,
    TokenizedSample,
    TurnMarkers,
    build_pool,
    check_map_style,
    read_tokenized,
)

Message = Mapping[str, Any]

# Stanford Alpaca's two texts (tatsu-lab/stanford_alpaca, train.py), for tokenizers without a chat template.
ALPACA_INTRODUCTION = (
    "Below is an instruction that describes a task{}. Write a response that appropriately completes the request."
)
ALPACA_WITH_INPUT = ", paired with an input that provides further context"

COLUMNS = "`prompt` and `completion`, `messages`, or `instruction`, `output` and (optional) `input`"
RENDERED_AT_ONCE = 512


class RenderedText(NamedTuple):
    """A sample as text: the whole, and for each response the text before it and the text through its end."""

    whole: str
    responses: list[tuple[str, str]]


def pool_from_rows(rows: Any, tokenizer: PreTrainedTokenizerBase, show_progress: bool = False) -> Pool:
    """
    A pool from raw columns: `instruction/input/output`, `prompt/completion` or `messages`.

    Goes through the tokenizer's chat template; through Alpaca's text template where it has none.

    Raises:
        TypeError: `rows` is not map-style.
        ValueError: columns that are none of these; an empty or one-sample pool; no response or no prompt.
    """
    check_map_style(rows)
    all_rows = [rows[index] for index in range(len(rows))] if not isinstance(rows, datasets.Dataset) else rows
    samples = render(tqdm(all_rows, desc="Rendering the pool", disable=not show_progress), tokenizer)
    texts = [instruction_text(row) or "" for row in all_rows]
    return build_pool(samples, turn_markers(tokenizer), texts)


def pool_from_tokenized(
    dataset: Any,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin | None,
    model_config: PretrainedConfig | None = None,
) -> Pool:
    """
    A pool from a dataset that is tokenised already, as a Trainer holds it.

    Args:
        dataset: Map-style, with `input_ids` and `labels` (or `completion_mask` / `assistant_masks`).
        processing_class:
            The Trainer's tokenizer (or a processor that holds one). Tells the preamble from the prompt, and turns
            prompts back into text for text embedders.
        model_config: Names the beginning-of-sequence token where there is no tokenizer.

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
    pool = build_pool(read_tokenized(dataset), markers)
    return Pool(pool.preamble, pool.tokens, pool.is_response, pool.offsets, _texts(dataset, pool, tokenizer, markers))


def tokenize(dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """
    Adds `input_ids`, `attention_mask` and `labels` (-100 outside the response) to a dataset of raw columns.

    The other columns stay, so that a text embedder finds the instruction.
    """

    def add_ids(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        samples = list(render(rows, tokenizer))
        return {
            "input_ids": [ids.tolist() for ids, _ in samples],
            "attention_mask": [[1] * len(ids) for ids, _ in samples],
            "labels": [np.where(mask, ids, IGNORED_LABEL).tolist() for ids, mask in samples],
        }

    return dataset.map(add_ids, batched=True, batch_size=RENDERED_AT_ONCE, desc="Tokenizing")


def render(rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Iterator[TokenizedSample]:
    """Token ids and response mask of each row, in order."""
    has_template = tokenizer.chat_template is not None
    remaining = iter(rows)
    while some := list(islice(remaining, RENDERED_AT_ONCE)):
        texts = [_render_chat(row, tokenizer) if has_template else _render_alpaca(row, tokenizer) for row in some]
        # A chat template writes its own special tokens.
        yield from _tokenize(texts, tokenizer, add_special_tokens=not has_template)


def instruction_text(row: Mapping[str, Any]) -> str | None:
    """The instruction a text embedder sees: what the user said; None where no known column is left."""
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return prompt
    messages = prompt if prompt is not None else row.get("messages")
    if messages is not None:
        before_response = takewhile(lambda message: message["role"] != "assistant", messages)
        return "\n\n".join(message["content"] for message in before_response if message["role"] == "user")
    if row.get("instruction") is not None:
        return _with_input(row)
    return None


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
    turns = [
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
    except TemplateError:
        return none
    before = _ids(tokenizer, long.partition(user)[0])
    between = _ids(tokenizer, long.partition(assistant)[2].partition(next_user)[0])
    end_of_turn = _ids(tokenizer, short.partition(assistant)[2])
    # Phi-3 adds EOS to the last turn, gpt-oss ends it with another token than an earlier one.
    header = between[_common_prefix(between, end_of_turn) or len(end_of_turn) :]
    if not header or before[-len(header) :] != header:
        return none
    while header and not tokenizer.decode(header[-1:]).strip():
        header.pop()  # a newline here may merge with the user's first word
    suffix = _ids(tokenizer, prompt.partition(user)[2])
    return TurnMarkers(tuple(header), tuple(suffix), tokenizer.bos_token_id)


def conversation(row: Mapping[str, Any]) -> list[Message]:
    """
    The messages of a row.

    Raises:
        ValueError: the row has none of the known columns, or they hold no response.
    """
    if row.get("prompt") is not None and row.get("completion") is not None:
        return _as_messages(row["prompt"], "user") + _as_messages(row["completion"], "assistant")
    if row.get("messages") is not None:
        return list(row["messages"])
    if row.get("instruction") is not None and row.get("output") is not None:
        return _as_messages(_with_input(row), "user") + _as_messages(row["output"], "assistant")
    raise ValueError(
        f"A sample needs the columns {COLUMNS}, none of them null; this one has {', '.join(row) or 'none'}."
    )


def _as_messages(content: str | Sequence[Message], role: str) -> list[Message]:
    return [{"role": role, "content": content}] if isinstance(content, str) else list(content)


def _with_input(row: Mapping[str, Any]) -> str:
    given = row.get("input") or ""
    return f"{row['instruction']}\n\n{given}" if given.strip() else row["instruction"]


def _render_chat(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> RenderedText:
    messages = conversation(row)
    whole = _apply(tokenizer, messages)
    responses = []
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _apply(tokenizer, messages[:turn], prompting=True) if turn else ""
            is_last = turn == len(messages) - 1
            responses.append((before, whole if is_last else _apply(tokenizer, messages[: turn + 1])))
    return RenderedText(whole, responses)


def _render_alpaca(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> RenderedText:
    whole, responses = "", []
    has_input = row.get("instruction") is not None and bool((row.get("input") or "").strip())
    for message in conversation({**row, "input": None}):
        if message["role"] != "assistant":
            given = f"\n\n### Input:\n{row['input']}" if has_input else ""
            introduction = ALPACA_INTRODUCTION.format(ALPACA_WITH_INPUT if has_input else "")
            whole += f"{introduction}\n\n### Instruction:\n{message['content']}{given}\n\n### Response:"
        else:
            before, whole = whole, whole + message["content"] + (tokenizer.eos_token or "")
            responses.append((before, whole))
    return RenderedText(whole, responses)


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[Message], prompting: bool = False) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompting)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _tokenize(
    texts: list[RenderedText], tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool
) -> Iterator[TokenizedSample]:
    """All pieces of many samples in one call, which a fast tokenizer spreads over its threads."""
    pieces = dict.fromkeys(p for text in texts for p in (text.whole, *(q for pair in text.responses for q in pair)))
    encoded = tokenizer(list(pieces), add_special_tokens=add_special_tokens)["input_ids"]
    ids = dict(zip(pieces, encoded, strict=True))
    for text in texts:
        whole = ids[text.whole]
        is_response = np.zeros(len(whole), dtype=bool)
        for before, through in text.responses:
            is_response[_common_prefix(ids[before], whole) : _common_prefix(ids[through], whole)] = True
        yield TokenizedSample(np.asarray(whole, dtype=np.int64), is_response)


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    for position, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return position
    return min(len(left), len(right))


def _texts(
    dataset: Any, pool: Pool, tokenizer: PreTrainedTokenizerBase | None, markers: TurnMarkers
) -> list[str] | None:
    """Instructions from columns that survived tokenisation, else decoded prompts, else nothing."""
    first = dataset[0]
    if instruction_text(first) is not None:
        names = [name for name in ("prompt", "messages", "instruction", "input") if name in first]
        rows = dataset.select_columns(names) if isinstance(dataset, datasets.Dataset) else dataset
        return [instruction_text(rows[index]) or "" for index in range(len(rows))]
    if tokenizer is None:
        return None
    prompts = [_without_markers(pool.prompt(index).tolist(), markers) for index in range(len(pool))]
    return [text.strip() for text in tokenizer.batch_decode(prompts, skip_special_tokens=True)]


def _without_markers(prompt: list[int], markers: TurnMarkers) -> list[int]:
    """The user's own words, so that a decoded prompt is the text that the raw columns would have given."""
    header, suffix = list(markers.user_header), list(markers.generation_prompt)
    if header and prompt[: len(header)] == header:
        prompt = prompt[len(header) :]
    if suffix and prompt[-len(suffix) :] == suffix:
        prompt = prompt[: -len(suffix)]
    return prompt
