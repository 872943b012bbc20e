"""
The turns of a conversation, from the shapes in which datasets hold them to the one that chat templates take.

Whatever a turn holds and the chat template would not render is refused by name: a conversation that loses an image or a
function call in silence is another sample than the one that is trained.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

# `role` and `content` (text), or `tool_calls` without content. Other keys stand as they came: some templates read them.
Message: TypeAlias = dict[str, Any]

# A turn in which the assistant calls a function, as JSON text. Only the template knows how a call is rendered.
FUNCTION_CALL = "function_call"
# What `from` says in ShareGPT's files and LLaMA-Factory's, and the role that chat templates know.
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": FUNCTION_CALL,
}


def read_turns(value: object) -> list[Message]:
    """
    Reads a list of turns with `role` and `content`, or with `from` and `value`.

    Content in parts becomes one text. A null content is an empty text if the assistant speaks, and missing if it calls
    a tool, as transformers has it.

    Raises:
        ValueError: a turn of another shape, or with a part that is not text.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(_explain_turns(value))
    return [_read_turn(number, turn) for number, turn in enumerate(value)]


def is_answer(message: Message) -> bool:
    """Whether the assistant speaks, or calls a function."""
    return message["role"] in ("assistant", FUNCTION_CALL)


def get_text(message: Message) -> str:
    """The content of a turn; empty if it only calls a tool."""
    return message.get("content", "")


def describe_turn(message: Message) -> str:
    """What a turn says, and the calls of tools as JSON."""
    calls = message.get("tool_calls")
    return "\n".join(filter(None, [get_text(message), json.dumps(calls, ensure_ascii=False) if calls else ""]))


def is_blank(message: Message) -> bool:
    """Whether a turn says nothing and calls no tool."""
    return not get_text(message).strip() and not message.get("tool_calls")


def _read_turn(number: int, turn: object) -> Message:
    if not isinstance(turn, Mapping):
        raise ValueError(_explain_turns(turn))
    given = {key: value for key, value in turn.items() if value is not None}
    if "role" not in given and "from" in given:
        if given["from"] not in ROLES:
            raise ValueError(f"Turn {number} is from {given['from']!r}; known are {', '.join(ROLES)}.")
        given = {"role": ROLES[given["from"]], "content": given.get("value")}
    if not isinstance(given.get("role"), str):
        raise ValueError(_explain_turns(turn))
    if "function_call" in given:
        raise ValueError(f"Turn {number} has a `function_call`, which no chat template reads: give `tool_calls`.")
    content = given.get("content")
    if isinstance(content, list | tuple):
        content = "".join(_read_part(number, part) for part in content)
    if content is None and given.get("tool_calls"):
        return {key: value for key, value in given.items() if key != "content"}
    if content is None and given["role"] == "assistant" and ("content" in turn or "value" in turn):
        content = ""
    if not isinstance(content, str):
        raise ValueError(_explain_turns(turn))
    return {**given, "content": content}


def _read_part(number: int, part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        raise ValueError(
            f"Turn {number} holds a part of type {kind!r}, but only `text` parts are read: a pool is scored on text. "
            "Leave such samples out."
        )
    return text


def _explain_turns(found: object) -> str:
    return (
        "Every turn must have a `role` and a `content` that are text (or `from` and `value`), but this is not so: "
        f"{str(found)[:200]}."
    )
