"""
The columns of instruction datasets, read as a conversation.

What is read is what the Trainer of these columns trains on: TRL's SFTTrainer and DPOTrainer where they read them,
LLaMA-Factory elsewhere. A column that changes the prompt and is not read is refused by name, and so are columns that
can be read in two ways: a pool of other prompts than those that are trained would be scored in silence.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import takewhile
from typing import NamedTuple, TypeAlias

from miwv_trainer.data.conversation import MEDIA, PROMPT_COLUMNS, Conversation, add_columns, has_value
from miwv_trainer.data.map_style import Row
from miwv_trainer.data.token_masks import count_common_prefix
from miwv_trainer.data.turns import Message, get_text, is_answer, read_turns

# A dataset's own names of what is read, such as `{"prompt": "question", "response": "answer"}`.
ColumnNames: TypeAlias = Mapping[str, str]
HOW_TO_NAME = '`--columns prompt=...,response=...` (in Python, `columns={"prompt": ..., "response": ...}`)'

# SFTTrainer and DPOTrainer read these beside their own columns, and pass over `system`, `history` and `documents`.
READ_BY_TRL = ("tools", "chat_template_kwargs")
READ_BESIDE = ("system", "history", "documents", *READ_BY_TRL)
# Beside a column that holds a part of the prompt, these may hold the rest of it.
PARTS_OF_PROMPTS = ("instruction", "input", "context", "question", "query")
# Of the columns that are named, those that a sample may lack.
OPTIONAL = ("input", *READ_BESIDE)


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


def read_conversation(row: Row, columns: ColumnNames | None = None) -> Conversation:
    """
    The conversation that a row holds.

    Args:
        columns: The row's own names of what is read. None: the columns of a known format.

    Raises:
        ValueError: the row has the columns of no format or of several, a column that changes the prompt and is not
            read, or something else than text in one.
    """
    named = row if columns is None else _rename(row, columns)
    found = _find_formats(named, FORMATS if columns is None else NAMED_FORMATS)
    if not found:
        raise ValueError(
            f"A sample needs the columns {describe_formats()}; or others, named as in {HOW_TO_NAME}. This one has "
            f"{', '.join(row) or 'none'}."
        )
    if len(found) > 1:
        first, second = (join_names(form.columns) for form in found[:2])
        raise ValueError(
            f"A sample can be read by its columns {first}, and by {second}: say by {HOW_TO_NAME} (or messages=...) "
            "which are meant, or remove the others."
        )
    return _read(found[0], named)


def read_instruction(row: Row, columns: ColumnNames | None = None) -> str | None:
    """The instruction for a text embedder: the user's words before the first answer. None without such columns."""
    conversation = read_any(row, columns)
    return _read_prompt_alone(row) if conversation is None else _join_users_words(conversation.messages)


def read_any(row: Row, columns: ColumnNames | None = None) -> Conversation | None:
    """
    What a row says, by the first format that can be read of those that it has; None if there is none.

    For showing and embedding texts, where a training has read the columns in its own way.
    """
    readers = [form.read for form in _find_formats(row, FORMATS)]
    if columns is not None:
        readers = [partial(read_conversation, columns=columns)]
    for read in readers:
        try:
            return read(row)
        except ValueError:
            continue
    return None


def parse_names(text: str) -> dict[str, str]:
    """
    Parses `prompt=question,response=answer`.

    Raises:
        ValueError: it is no such list.
    """
    pairs = [tuple(word.strip() for word in pair.split("=", 1)) for pair in text.split(",")]
    names = {pair[0]: pair[-1] for pair in pairs if len(pair) == 2 and all(pair)}
    if len(names) < len(pairs):
        raise ValueError(f"Columns are named as in {HOW_TO_NAME}, each once, but got {text!r}.")
    check_names(names)
    return names


def check_names(columns: ColumnNames) -> None:
    """Raises `ValueError` unless `columns` names what can be named, and enough of it for a sample."""
    found = _find_formats(columns, NAMED_FORMATS)
    unread = set(columns).difference(*(form.columns + form.beside for form in found[:1]))
    if len(found) != 1 or unread:
        ways = "; ".join(", ".join(form.columns + form.beside[: -len(READ_BESIDE)]) for form in NAMED_FORMATS)
        raise ValueError(
            f"`columns` names {', '.join(columns) or 'nothing'}; allowed are the names {ways}; each with any of "
            f"{', '.join(READ_BESIDE)}."
        )


def list_text_columns() -> list[str]:
    """The columns that hold the texts of any format."""
    return sorted({column for form in FORMATS for column in (*form.columns, *form.beside)})


def describe_formats() -> str:
    """The columns of all formats, in words."""
    names = [join_names(form.columns) for form in FORMATS]
    return "; ".join(names[:-1]) + f"; or {names[-1]}"


def join_names(names: tuple[str, ...]) -> str:
    """Names as text: `a`, `b` and `c`."""
    quoted = [f"`{name}`" for name in names]
    return " and ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


def _find_formats(row: Mapping[str, object], formats: tuple[Format, ...]) -> list[Format]:
    """The formats whose columns a row has, without those whose columns are all read by another of them."""
    found = [form for form in formats if _has_columns(row, form.columns)]
    return [
        form
        for form in found
        if not any(other is not form and {*form.columns} <= {*other.columns, *other.beside} for other in found)
    ]


def _has_columns(row: Mapping[str, object], names: tuple[str, ...]) -> bool:
    """Whether a row has these columns and a value in at least one of them; a null in another is an empty text."""
    return all(name in row for name in names) and any(row[name] is not None for name in names)


def _rename(row: Row, columns: ColumnNames) -> Row:
    """The columns that are named, by the names of a format, and those that change the prompt by their own."""
    check_names(columns)
    missing = [column for name, column in columns.items() if column not in row and name not in OPTIONAL]
    if missing:
        raise ValueError(
            f"There is no column {missing[0]!r}, which `columns` names; found: {', '.join(row) or 'none'}."
        )
    own = {name: row[name] for name in PROMPT_COLUMNS if name in row and name not in columns.values()}
    return own | {name: row.get(column) for name, column in columns.items()}


def _read(form: Format, row: Row) -> Conversation:
    """Reads a row that has the columns of a format, and what stands beside them."""
    conversation = form.read(row)
    read = () if conversation.is_plain else form.beside
    for name in form.refused:
        if name not in (*form.columns, *read) and has_value(row.get(name)):
            raise ValueError(_explain_unread(name, form, conversation.is_plain))
    return add_columns(conversation, row, read)


def _explain_unread(name: str, form: Format, is_plain: bool) -> str:
    if name in MEDIA:
        return f"It has `{name}`, but a pool is scored on text alone: leave such samples out."
    if is_plain:
        return (
            f"The column `{name}` cannot be read beside texts in {join_names(form.columns)}, which no chat template "
            f"renders: give lists of messages, or make turns of the texts with {HOW_TO_NAME}."
        )
    return (
        f"The column `{name}` changes the prompt but is not read beside {join_names(form.columns)}: remove it, or name "
        f"it and all others that are meant, as in {HOW_TO_NAME}."
    )


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
    return _read_task(row["instruction"], row.get("input"), row["output"])


def _read_dolly(row: Row) -> Conversation:
    return _read_task(row["instruction"], row.get("context"), row["response"])


def _read_instances(row: Row) -> Conversation:
    """Self-instruct's tasks. A sample has one response, so a task with several instances would be several samples."""
    instances = row["instances"]
    if not isinstance(instances, list) or len(instances) != 1 or not isinstance(instances[0], Mapping):
        raise ValueError(
            "`instances` must be a list of one object with `input` and `output`, but got "
            f"{str(instances)[:200]}: make a sample of each."
        )
    return _read_task(row["instruction"], instances[0].get("input"), instances[0].get("output"))


def _read_question(row: Row) -> Conversation:
    return _read_task(row["question"], None, row["answer"])


def _read_query(row: Row) -> Conversation:
    return _read_task(row["query"], None, row["response"])


def _read_input(row: Row) -> Conversation:
    return _read_task(row["input"], None, row["output"])


def _read_alpaca_preference(row: Row) -> Conversation:
    return _read_task(row["instruction"], row.get("input"), row["chosen"])._replace(given=1)


def _read_sharegpt_preference(row: Row) -> Conversation:
    chosen = row["chosen"]
    return _continue(row["conversations"], [chosen] if isinstance(chosen, Mapping) else chosen)


def _read_named_pair(row: Row) -> Conversation:
    if isinstance(row["prompt"], list | tuple):
        return _continue(row["prompt"], row["response"])
    return _read_task(row["prompt"], row.get("input"), row["response"])


def _read_named_preference(row: Row) -> Conversation:
    return _read_preference(row)._replace(is_plain=False)


def _read_task(instruction: object, own_input: object, answer: object) -> Conversation:
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


def _read_prompt_alone(row: Row) -> str | None:
    """The instruction of a row that was prepared for training and has kept no column of the answer."""
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return prompt.strip()
    with suppress(ValueError):
        return _join_users_words(read_turns(prompt))
    instruction = row.get("instruction")
    with suppress(ValueError):
        if isinstance(instruction, str):
            return _join_users_words(_read_task(instruction, row.get("input"), "").messages)
    return None


def _join_users_words(messages: list[Message]) -> str:
    before_response = takewhile(lambda message: not is_answer(message), messages)
    return "\n\n".join(get_text(message) for message in before_response if message["role"] == "user").strip()


# In the order in which they are tried. Of several that a row has, the first gives the text that is embedded.
FORMATS = (
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
NAMED_FORMATS = (
    Format(("prompt", "response"), ("input", *READ_BESIDE), PROMPT_COLUMNS, _read_named_pair),
    Format(("messages",), READ_BESIDE, PROMPT_COLUMNS, _read_messages),
    Format(("prompt", "chosen", "rejected"), READ_BESIDE, PROMPT_COLUMNS, _read_named_preference),
    Format(("chosen", "rejected"), READ_BESIDE, PROMPT_COLUMNS, _read_named_preference),
)
