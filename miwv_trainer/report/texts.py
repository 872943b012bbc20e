"""Prompts and responses of a pool as the report shows them, read from the rows that were scored."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from miwv_trainer.data.columns import read_conversation, read_instruction


class PoolTexts(NamedTuple):
    """The texts of a pool's samples, in pool order."""

    prompts: Sequence[str]
    responses: Sequence[str]


def read_texts(rows: Iterable[Mapping[str, Any]]) -> PoolTexts:
    """What the user said and what follows, for each row; a row without known columns has empty texts."""
    prompts, responses = [], []
    for row in rows:
        prompts.append(read_instruction(row) or "")
        responses.append(_read_response(row))
    return PoolTexts(prompts, responses)


def _read_response(row: Mapping[str, Any]) -> str:
    """The turns from the first response on; with their roles where there are several."""
    try:
        messages, given = read_conversation(row)
    except ValueError:
        return ""
    # `given` is 0 for conversations in one column: there the prompt ends where the first answer begins.
    first = given or next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    if len(messages) <= first + 1:
        return "\n\n".join(message["content"] for message in messages[first:])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages[first:])
