"""The columns that instruction datasets have, to a conversation and to the instruction's text."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, TypeGuard

Message = Mapping[str, Any]
COLUMNS = "`prompt` and `completion`, `messages`, or `instruction`, `output` and (optional) `input`"


def instruction_text(row: Mapping[str, Any]) -> str | None:
    """The instruction a text embedder sees: what the user said; None where no known column holds it."""
    prompt, instruction = row.get("prompt"), row.get("instruction")
    if isinstance(prompt, str):
        return prompt.strip()
    messages = prompt if prompt is not None else row.get("messages")
    if are_messages(messages):
        before_response = takewhile(lambda message: message["role"] != "assistant", messages)
        return "\n\n".join(message["content"] for message in before_response if message["role"] == "user").strip()
    return with_input(row).strip() if isinstance(instruction, str) else None


def are_messages(messages: Any) -> TypeGuard[Sequence[Message]]:
    return isinstance(messages, list | tuple) and all(
        isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in messages
    )


def conversation(row: Mapping[str, Any]) -> tuple[list[Message], int]:
    """
    The messages of a row, and how many of them are given, as the prompt (0 where that is for the roles to say).

    Raises:
        ValueError: the row has none of the known columns, or something else than text in them.
    """
    messages, given = _messages(row)
    if not are_messages(messages):
        raise ValueError(
            "Every turn must have a `role` and a `content` that are text, but these are not all so: "
            f"{str(messages)[:200]}."
        )
    return list(messages), given


def _messages(row: Mapping[str, Any]) -> tuple[Any, int]:
    if _has(row, "prompt", "completion"):
        prompt = _as_messages(row["prompt"], "user")
        return prompt + _as_messages(row["completion"], "assistant"), len(prompt)
    if row.get("messages") is not None:
        return row["messages"], 0
    if _has(row, "instruction", "output"):
        instruction = with_input(row) if isinstance(row["instruction"], str) else row["instruction"]
        return _as_messages(instruction, "user") + _as_messages(row["output"], "assistant"), 1
    raise ValueError(f"A sample needs the columns {COLUMNS}; this one has {', '.join(row) or 'none'}.")


def _has(row: Mapping[str, Any], *names: str) -> bool:
    """Whether a row has these columns and something in one of them; a null beside it is an empty text."""
    return all(name in row for name in names) and any(row[name] is not None for name in names)


def _as_messages(content: Any, role: str) -> list[Any]:
    """A list is messages already; anything else is what one of `role` said, null being nothing."""
    if isinstance(content, list | tuple):
        return list(content)
    return [{"role": role, "content": "" if content is None else content}]


def with_input(row: Mapping[str, Any]) -> str:
    given = str(row.get("input") or "")
    return f"{row['instruction']}\n\n{given}" if given.strip() else row["instruction"]
