"""
The formats of instruction datasets: which columns they have, and how a conversation is read from them.

What is read is what the Trainer of these columns trains on: TRL's SFTTrainer and DPOTrainer where they read them,
LLaMA-Factory elsewhere. docs/formats.md has a line of each.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from miwv_trainer.data.common_prefix import count_common_prefix
from miwv_trainer.data.conversation import PROMPT_COLUMNS, Conversation, Row
from miwv_trainer.data.turns import Message, read_turns

HOW_TO_NAME = '`--columns prompt=...,response=...` (in Python, `columns={"prompt": ..., "response": ...}`)'

# SFTTrainer and DPOTrainer read these beside their own columns, and pass over `system`, `history` and `documents`.
READ_BY_TRL = ("tools", "chat_template_kwargs")
READ_BESIDE = ("system", "history", "documents", *READ_BY_TRL)
# Beside a column that holds a part of the prompt, these may hold the rest of it.
PARTS_OF_PROMPTS = ("instruction", "input", "context", "question", "query")


class Format(NamedTuple):
    """
    Columns that datasets have.

    Args:
        columns: Those that a row must have, one of them with a value.
        beside: Further columns that are read.
        refused: Columns that are refused where they have a value, except those that are read.
        read: Makes a conversation of `columns`, and of the others of `beside` that are no format's own.
        example: A row, as JSON.
    """

    columns: tuple[str, ...]
    beside: tuple[str, ...]
    refused: tuple[str, ...]
    read: Callable[[Row], Conversation]
    example: str = ""


def _read_pair(row: Row) -> Conversation:
    """TRL's prompt and completion: two texts, of which the second goes on where the first ends, or messages."""
    is_plain = all(value is None or isinstance(value, str) for value in (row["prompt"], row["completion"]))
    return _continue(row["prompt"], row["completion"])._replace(is_plain=is_plain)


def _read_messages(row: Row) -> Conversation:
    return Conversation(read_turns(row["messages"]))


def _read_conversations(row: Row) -> Conversation:
    return Conversation(read_turns(row["conversations"]))


def _read_preference(row: Row) -> Conversation:
    """TRL's preference data: the prompt is given, or what both answers begin with; the chosen one is the response."""
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list) and not isinstance(prompt, list):
        turns = read_turns(chosen)
        given = min(count_common_prefix(turns, read_turns(rejected)), len(turns) - 1)
        # UltraFeedback repeats the beginning of both conversations as the text of `prompt`; TRL passes over it.
        if given > 0:
            return Conversation(turns, given)
    elif prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        shared = chosen[: count_common_prefix(chosen, rejected)].removesuffix(" ")
        prompt, chosen = shared if shared.strip() else None, chosen[len(shared) :]
    if prompt is None:
        raise ValueError(
            f"`chosen` and `rejected` do not begin alike, so there is no prompt: name it, as in {HOW_TO_NAME}."
        )
    return _read_pair({"prompt": prompt, "completion": chosen})


def _read_alpaca(row: Row) -> Conversation:
    return read_task(row["instruction"], row.get("input"), row["output"])


def _read_dolly(row: Row) -> Conversation:
    return read_task(row["instruction"], row.get("context"), row["response"])


def _read_instances(row: Row) -> Conversation:
    """Self-instruct's tasks. A sample has one response, so a task with several instances would be several samples."""
    instances = row["instances"]
    if not isinstance(instances, list) or len(instances) != 1 or not isinstance(instances[0], Mapping):
        raise ValueError(
            "`instances` must be a list of one object with `input` and `output`, but got "
            f"{str(instances)[:200]}: make a sample of each."
        )
    return read_task(row["instruction"], instances[0].get("input"), instances[0].get("output"))


def _read_question(row: Row) -> Conversation:
    return read_task(row["question"], None, row["answer"])


def _read_query(row: Row) -> Conversation:
    return read_task(row["query"], None, row["response"])


def _read_input(row: Row) -> Conversation:
    return read_task(row["input"], None, row["output"])


def _read_alpaca_preference(row: Row) -> Conversation:
    return read_task(row["instruction"], row.get("input"), row["chosen"])._replace(given=1)


def _read_sharegpt_preference(row: Row) -> Conversation:
    chosen = row["chosen"]
    return _continue(row["conversations"], [chosen] if isinstance(chosen, Mapping) else chosen)


def _read_named_pair(row: Row) -> Conversation:
    if isinstance(row["prompt"], list | tuple):
        return _continue(row["prompt"], row["response"])
    return read_task(row["prompt"], row.get("input"), row["response"])


def _read_named_preference(row: Row) -> Conversation:
    return _read_preference(row)._replace(is_plain=False)


def read_task(instruction: object, own_input: object, answer: object) -> Conversation:
    """
    One turn of the user and one answer.

    Nothing is given as the prompt, so that the answers of a `history` are responses too, as LLaMA-Factory trains them.
    """
    words, added = _read_text(instruction), _read_text(own_input)
    if not isinstance(added, str):
        raise ValueError(f"The input of an instruction must be text, but got {str(added)[:200]}.")
    if not isinstance(words, str):
        return _continue(words, answer)
    prompt = "\n\n".join(part for part in (words, added) if part.strip())
    return Conversation(_make_turns(prompt, "user") + _make_turns(answer, "assistant"), task=(words, added))


def _read_text(value: object) -> object:
    """An empty text for null and for NaN, which pandas writes for it; anything else as it is."""
    return "" if value is None or value != value else value


def _continue(prompt: object, response: object) -> Conversation:
    """A prompt and what is response in all its turns."""
    turns = _make_turns(prompt, "user")
    return Conversation(turns + _make_turns(response, "assistant"), given=len(turns))


def _make_turns(content: object, role: str) -> list[Message]:
    """A list is turns already. Any other value is one turn of `role`, and null is an empty turn."""
    if isinstance(content, list | tuple):
        return read_turns(content)
    return read_turns([{"role": role, "content": "" if content is None else content}])


# In the order in which they are tried. Of several that a row has, the first gives the text that is embedded.
FORMATS: tuple[Format, ...] = (
    Format(
        ("prompt", "completion"), READ_BY_TRL, PROMPT_COLUMNS, _read_pair,
        '{"prompt": "The sky is", "completion": " blue."}',
    ),
    Format(
        ("messages",), READ_BY_TRL, PROMPT_COLUMNS, _read_messages,
        '{"messages": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]}',
    ),
    Format(
        ("conversations",), READ_BESIDE, PROMPT_COLUMNS, _read_conversations,
        '{"conversations": [{"from": "human", "value": "Name a colour."}, {"from": "gpt", "value": "Blue."}]}',
    ),
    Format(
        ("prompt", "chosen", "rejected"), READ_BY_TRL, PROMPT_COLUMNS, _read_preference,
        '{"prompt": "The sky is", "chosen": " blue.", "rejected": " a lie."}',
    ),
    Format(
        ("chosen", "rejected"), READ_BY_TRL, PROMPT_COLUMNS + PARTS_OF_PROMPTS, _read_preference,
        '{"chosen": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}], '
        '"rejected": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Chair."}]}',
    ),
    Format(
        ("conversations", "chosen", "rejected"), READ_BESIDE, PROMPT_COLUMNS, _read_sharegpt_preference,
        '{"conversations": [{"from": "human", "value": "Name a colour."}], '
        '"chosen": {"from": "gpt", "value": "Blue."}, "rejected": {"from": "gpt", "value": "Chair."}}',
    ),
    Format(
        ("instruction", "chosen", "rejected"), ("input", *READ_BESIDE), PROMPT_COLUMNS + PARTS_OF_PROMPTS,
        _read_alpaca_preference,
        '{"instruction": "Name a colour.", "chosen": "Blue.", "rejected": "Chair."}',
    ),
    Format(
        ("instruction", "output"), ("input", *READ_BESIDE), PROMPT_COLUMNS + PARTS_OF_PROMPTS, _read_alpaca,
        '{"instruction": "Translate.", "input": "bleu", "output": "Blue."}',
    ),
    Format(
        ("instruction", "response"), ("context", *READ_BESIDE), PROMPT_COLUMNS + PARTS_OF_PROMPTS, _read_dolly,
        '{"instruction": "Which colour?", "context": "The sky is blue.", "response": "Blue.", "category": "closed_qa"}',
    ),
    Format(
        ("instruction", "instances"), READ_BESIDE, PROMPT_COLUMNS + PARTS_OF_PROMPTS, _read_instances,
        '{"instruction": "Translate.", "instances": [{"input": "bleu", "output": "Blue."}]}',
    ),
    Format(
        ("question", "answer"), READ_BESIDE, PROMPT_COLUMNS + PARTS_OF_PROMPTS, _read_question,
        '{"question": "Which colour has the sky?", "answer": "Blue."}',
    ),
    Format(
        ("query", "response"), READ_BESIDE, PROMPT_COLUMNS + PARTS_OF_PROMPTS, _read_query,
        '{"query": "Which colour has the sky?", "response": "Blue."}',
    ),
    Format(
        ("input", "output"), READ_BESIDE, PROMPT_COLUMNS + PARTS_OF_PROMPTS, _read_input,
        '{"input": "Name a colour.", "output": "Blue."}',
    ),
)  # fmt: skip
# What `columns` can name: the texts are turns of a conversation, also where TRL would take them as plain text.
NAMED_FORMATS: tuple[Format, ...] = (
    Format(("prompt", "response"), ("input", *READ_BESIDE), PROMPT_COLUMNS, _read_named_pair),
    Format(("messages",), READ_BESIDE, PROMPT_COLUMNS, _read_messages),
    Format(("prompt", "chosen", "rejected"), READ_BESIDE, PROMPT_COLUMNS, _read_named_preference),
    Format(("chosen", "rejected"), READ_BESIDE, PROMPT_COLUMNS, _read_named_preference),
)
