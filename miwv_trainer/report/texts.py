"""Prompts and responses of a pool as the report shows them, read from the rows that were scored."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from miwv_trainer.data.columns import ColumnNames, read_any, read_instruction
from miwv_trainer.data.sample_texts import TEXT_COLUMN
from miwv_trainer.data.turns import describe_turn, is_answer

NOT_FOUND = "(not found in the dataset)"


class PoolTexts(NamedTuple):
    """The texts of a pool's samples, in pool order."""

    prompts: list[str]
    responses: list[str]


def read_texts(rows: Iterable[Mapping[str, Any]], columns: ColumnNames | None = None) -> PoolTexts:
    """
    What the user said and what follows, for each row; a row of no known columns has its `text`, or none.

    Args:
        columns: The rows' own names of what is read, if the pool was scored by them.
    """
    prompts, responses = [], []
    for row in rows:
        prompts.append(read_instruction(row, columns) or _read_whole(row))
        responses.append(_read_response(row, columns))
    return PoolTexts(prompts, responses)


def place_texts(texts: PoolTexts, indices: Sequence[int], count: int) -> PoolTexts:
    """The texts of `count` samples, of which only those of `indices` are known."""
    placed = PoolTexts([NOT_FOUND] * count, [""] * count)
    for index, prompt, response in zip(indices, *texts, strict=True):
        placed.prompts[index], placed.responses[index] = prompt, response
    return placed


def _read_whole(row: Mapping[str, Any]) -> str:
    """A text that is prompt and response in one, as SFTTrainer takes it."""
    text = row.get(TEXT_COLUMN)
    return text if isinstance(text, str) else ""


def _read_response(row: Mapping[str, Any], columns: ColumnNames | None) -> str:
    """The turns from the first response on; with their roles where there are several."""
    conversation = read_any(row, columns)
    if conversation is None:
        return ""
    # `given` is 0 for conversations in one column: there the prompt ends where the first answer begins.
    messages = conversation.messages
    first_answer = next((turn for turn, message in enumerate(messages) if is_answer(message)), len(messages))
    turns = messages[conversation.given or first_answer :]
    if len(turns) <= 1:
        return "".join(describe_turn(message) for message in turns)
    return "\n\n".join(f"{message['role']}: {describe_turn(message)}" for message in turns)
