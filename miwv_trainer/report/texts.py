"""Prompts and responses of a pool as the report shows them, read from the rows that were scored."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from miwv_trainer.data.columns import ColumnNames, read_any, read_instruction
from miwv_trainer.data.turns import describe_turn, is_answer


class PoolTexts(NamedTuple):
    """The texts of a pool's samples, in pool order."""

    prompts: Sequence[str]
    responses: Sequence[str]


def read_texts(rows: Iterable[Mapping[str, Any]], columns: ColumnNames | None = None) -> PoolTexts:
    """
    What the user said and what follows, for each row; a row without known columns has empty texts.

    Args:
        columns: The rows' own names of what is read, if the pool was scored by them.
    """
    prompts, responses = [], []
    for row in rows:
        prompts.append(read_instruction(row, columns) or "")
        responses.append(_read_response(row, columns))
    return PoolTexts(prompts, responses)


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
