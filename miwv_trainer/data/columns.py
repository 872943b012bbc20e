"""The columns of instruction datasets, read as a conversation or as the text of the instruction."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TypedDict, TypeGuard

from miwv_trainer.data.map_style import Row

COLUMNS = "`prompt` and `completion`, `messages`, or `instruction`, `output` and (optional) `input`"


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str


def read_instruction(row: Row) -> str | None:
    """The instruction for a text embedder: the user's words before the first answer. None without such columns."""
    prompt, instruction = row.get("prompt"), row.get("instruction")
    if isinstance(prompt, str):
        return prompt.strip()
    # `datasets` fills a column that some rows of a JSON Lines file lack with nulls: null means that there is none.
    messages = prompt if prompt is not None else row.get("messages")
    if are_messages(messages):
        before_response = takewhile(lambda message: message["role"] != "assistant", messages)
        return "\n\n".join(message["content"] for message in before_response if message["role"] == "user").strip()
    return _join_input(row, instruction).strip() if isinstance(instruction, str) else None


def are_messages(messages: object) -> TypeGuard[Sequence[Message]]:
    """Whether a value is a list of turns whose role and content are text."""
    # Contents that are lists of parts (text, images) are refused: parts that are no text would be dropped in silence.
    return isinstance(messages, list | tuple) and all(
        isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in messages
    )


def read_conversation(row: Row) -> tuple[list[Message], int]:
    """
    The messages of a row, and how many of them are given as the prompt. It is 0 if their roles say what is response.

    Raises:
        ValueError: the row has none of the known columns, or something else than text in them.
    """
    messages, given = _read_messages(row)
    if not are_messages(messages):
        raise ValueError(
            "Every turn must have a `role` and a `content` that are text, but these are not all so: "
            f"{str(messages)[:200]}."
        )
    return list(messages), given


def _read_messages(row: Row) -> tuple[object, int]:
    if _has_columns(row, "prompt", "completion"):
        # A conversational prompt may hold earlier answers. They are given, as TRL's completion-only loss takes them.
        prompt = _make_messages(row["prompt"], "user")
        return prompt + _make_messages(row["completion"], "assistant"), len(prompt)
    if row.get("messages") is not None:
        return row["messages"], 0
    if _has_columns(row, "instruction", "output"):
        instruction = row["instruction"]
        whole = _join_input(row, instruction) if isinstance(instruction, str) else instruction
        return _make_messages(whole, "user") + _make_messages(row["output"], "assistant"), 1
    raise ValueError(f"A sample needs the columns {COLUMNS}; this one has {', '.join(row) or 'none'}.")


def _has_columns(row: Row, *names: str) -> bool:
    """Whether a row has these columns and a value in at least one of them; a null in the other is an empty text."""
    return all(name in row for name in names) and any(row[name] is not None for name in names)


def _make_messages(content: object, role: str) -> list[object]:
    """A list is messages already. Any other value is one turn of `role`, and null is an empty turn."""
    if isinstance(content, list | tuple):
        return list(content)
    return [{"role": role, "content": "" if content is None else content}]


def _join_input(row: Row, instruction: str) -> str:
    # A CSV file may hold numbers there, and other files null.
    own_input = str(row.get("input") or "")
    return f"{instruction}\n\n{own_input}" if own_input.strip() else instruction
