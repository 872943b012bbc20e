"""A sample before it is rendered: its turns, and what stands beside them in columns that many formats share."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from miwv_trainer.data.turns import Message, read_turns

# Columns of any name and type; what is read of them is checked where it is read.
Row: TypeAlias = Mapping[str, Any]

TEMPLATE_COLUMNS = ("tools", "documents", "chat_template_kwargs")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
# They change the prompt, so a format that does not read one of them refuses it.
PROMPT_COLUMNS = ("system", "system_prompt", "history", "functions", *TEMPLATE_COLUMNS, *MEDIA)


class Conversation(NamedTuple):
    """
    A sample before it is rendered.

    Args:
        messages: The turns.
        given: The number of turns that are the prompt; 0 if their roles say what is response.
        is_plain: Whether it is a text and its continuation, which no template renders.
        variables: What the chat template is given beside the turns.
        task: The instruction and the input of the last user's turn, where they are in columns of their own.
    """

    messages: list[Message]
    given: int = 0
    is_plain: bool = False
    variables: Mapping[str, Any] = {}
    task: tuple[str, str] | None = None


def add_columns(conversation: Conversation, row: Row, read: tuple[str, ...]) -> Conversation:
    """
    Adds what stands in the columns `system`, `history`, `tools`, `documents` and `chat_template_kwargs`.

    Args:
        read: The columns that are read, of these.

    Raises:
        ValueError: a column holds something else than it must, or a system turn is there twice.
    """
    earlier = _read_history(row.get("history")) if "history" in read else []
    system = row.get("system") if "system" in read else None
    if not isinstance(system, str | None):
        raise ValueError(f"The column `system` must be text, but got {str(system)[:200]}.")
    if system and system.strip():
        earlier.insert(0, {"role": "system", "content": system})
    messages = conversation.messages
    if earlier and messages and messages[0]["role"] == "system":
        raise ValueError("A sample has a system turn, and a column `system` or `history` before it: give one of them.")
    return conversation._replace(
        messages=earlier + messages,
        given=conversation.given + len(earlier) if conversation.given else 0,
        variables=_read_variables(row, read),
    )


def has_value(value: object) -> bool:
    """Whether a cell holds anything: not null, blank text, or an empty list or object, also as JSON text."""
    if isinstance(value, str):
        return value.strip() not in ("", "[]", "{}", "null")
    return bool(value) if isinstance(value, list | tuple | Mapping) else value is not None


def _read_history(value: object) -> list[Message]:
    """The turns of LLaMA-Factory's `history`: a list of pairs, the user's words and the answer."""
    pairs = value if has_value(value) else []
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"The column `history` must be a list of pairs [user, assistant], but got {str(value)[:200]}.")
    turns = []
    for words, answer in pairs:
        turns += [{"role": "user", "content": words}, {"role": "assistant", "content": answer}]
    return read_turns(turns)


def _read_variables(row: Row, read: tuple[str, ...]) -> dict[str, Any]:
    """What `apply_chat_template` is given beside the turns. LLaMA-Factory has `tools` as JSON text."""
    variables: dict[str, Any] = {}
    for name in TEMPLATE_COLUMNS:
        value = row.get(name) if name in read else None
        if isinstance(value, str):
            try:
                value = json.loads(value) if value.strip() else None
            except ValueError as error:
                raise ValueError(f"The column `{name}` is text that is no JSON ({error}).") from error
        if value is None:
            continue
        is_settings = name == "chat_template_kwargs"
        if not isinstance(value, Mapping if is_settings else list):
            kind = "an object" if is_settings else "a list"
            raise ValueError(f"The column `{name}` must be {kind}, or JSON text of one, but got {str(value)[:200]}.")
        variables |= value if is_settings else {name: value}
    return variables
