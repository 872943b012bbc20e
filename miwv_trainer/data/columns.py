"""
The columns of a sample, read as a conversation.

A column that changes the prompt and is not read is refused by name, and so are columns that can be read in two ways: a
pool of other prompts than those that are trained would be scored in silence.
"""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from itertools import takewhile
from typing import TypeAlias

from miwv_trainer.data.conversation import MEDIA, PROMPT_COLUMNS, Conversation, Row, add_columns, has_value
from miwv_trainer.data.formats import FORMATS, HOW_TO_NAME, NAMED_FORMATS, READ_BESIDE, Format, read_task
from miwv_trainer.data.turns import Message, get_text, is_answer, read_turns

# A dataset's own names of what is read, such as `{"prompt": "question", "response": "answer"}`.
ColumnNames: TypeAlias = Mapping[str, str]
# Of the columns that are named, those that a sample may lack.
OPTIONAL = ("input", *READ_BESIDE)


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

    For showing and embedding texts, where a training has read the columns in its own way. What stands beside the
    format's own columns is left out, so that the instruction of a sample with a history is its own.
    """
    formats = FORMATS
    if columns is not None:
        try:
            row, formats = _rename(row, columns), NAMED_FORMATS
        except ValueError:
            return None
    for form in _find_formats(row, formats):
        with suppress(ValueError):
            return form.read(row)
    return None


def read_ways(row: Row, columns: ColumnNames | None = None) -> list[Conversation]:
    """
    The conversations that a row holds in columns of one format or another, those of the last format first.

    For finding a row again. Scripts make columns such as `messages` of a file's own, `instruction` say, and leave both;
    the file has its own only, and their formats come last.
    """
    formats, ways = FORMATS, list[Conversation]()
    if columns is not None:
        try:
            row, formats = _rename(row, columns), NAMED_FORMATS
        except ValueError:
            return []
    for form in reversed(_find_formats(row, formats)):
        for read in (partial(_read, form), form.read):
            with suppress(ValueError):
                ways.append(read(row))
                break
    return ways


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


def list_formats() -> str:
    """The columns of all formats in short, for a line of help; preference data are one entry."""
    names = [" + ".join(form.columns) for form in FORMATS if "rejected" not in form.columns]
    return ", ".join([*names, "or preference data (chosen + rejected)"])


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
            return _join_users_words(read_task(instruction, row.get("input"), "").messages)
    return None


def _join_users_words(messages: list[Message]) -> str:
    before_response = takewhile(lambda message: not is_answer(message), messages)
    return "\n\n".join(get_text(message) for message in before_response if message["role"] == "user").strip()
