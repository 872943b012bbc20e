"""
What a sample says, in forms that a row of a file and a sample of a Trainer have in common, and their hashes.

A Trainer's pool is not a file: long samples were dropped, others shuffled, columns renamed, texts rendered by a
template that the file knows nothing of. So each sample gets several hashes, from the strictest to the loosest: of
everything it says, of the last question with the answers, and of the beginning of the answers. The texts are those of
the dataset's columns where they are left, else decoded tokens.
"""

import json
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import blake2b
from typing import NamedTuple

from miwv_trainer.data.alpaca import render_alpaca
from miwv_trainer.data.columns import ColumnNames, list_text_columns, read_ways
from miwv_trainer.data.conversation import Conversation
from miwv_trainer.data.map_style import Row
from miwv_trainer.data.turns import Message, describe_turn, get_text, is_answer, is_blank

UNKNOWN = 0
# A column of whole texts, as SFTTrainer takes it.
TEXT_COLUMN = "text"
# Others are not looked at: they may hold images, and a table holds keys that a line of the file lacks.
KNOWN = (*list_text_columns(), TEXT_COLUMN)
# Characters of the answers, without white space: a truncated sample has lost its end; short answers are often equal.
ANSWER_START, SHORTEST_ANSWER = 100, 16
HASH_BYTES = 8


class RowHashes(NamedTuple):
    """
    What a row is known by.

    Args:
        texts: Hashes of everything it says, in each form that a sample may have; the first is of its own columns.
        words: Hash of the last question before the answers, and of the answers; 0 where they cannot be told.
        answer: Hash of the beginning of the answers; 0 where there are none or they are short.
    """

    texts: tuple[int, ...] = ()
    words: int = UNKNOWN
    answer: int = UNKNOWN


class RowTexts(NamedTuple):
    """
    What the columns of a row say, turn by turn.

    Args:
        questions: The user's turns.
        answers: The turns that are answers, without calls of tools, whose form only a template knows.
        parts: The instruction and the input of the last question, where they are in columns of their own.
        whole: The text of the column `text`, in a row without turns.
    """

    questions: list[str]
    answers: list[str]
    parts: list[str]
    whole: str | None = None


def read_texts(row: Row, columns: ColumnNames | None = None) -> RowTexts | None:
    """
    What the columns of a row say; None where it has none that are known.

    Args:
        columns: The row's own names of what is read.
    """
    ways, text = _read_known(row, columns), row.get(TEXT_COLUMN)
    if not ways:
        return RowTexts([], [], [], whole=text) if isinstance(text, str) and text.strip() else None
    messages, responses = ways[0].messages, _find_responses(ways[0])
    questions = [get_text(message) for message in messages if message["role"] == "user"]
    return RowTexts(questions, [get_text(messages[turn]) for turn in responses], list(ways[0].task or ()))


def hash_row(row: Row, columns: ColumnNames | None = None) -> RowHashes:
    """
    The hashes of a row; none where it has no columns that are known.

    Args:
        columns: The row's own names of what is read.
    """
    ways, text = _read_known(row, columns), row.get(TEXT_COLUMN)
    texts = _hash_text_column(text) if isinstance(text, str) and text.strip() else ()
    if not ways:
        return RowHashes(texts)
    turns = (hash_text("turns", json.dumps(_list_turns(way), sort_keys=True, default=str)) for way in ways)
    rendered = (hash_whole(whole) for way in ways for whole in _render(way))
    question, answers = _split(ways[0])
    return RowHashes((*turns, *texts, *rendered), hash_words(question, answers), hash_answer(answers))


def hash_whole(text: str) -> int:
    """The hash of everything a sample says, decoded from its tokens with its special tokens."""
    return hash_text("whole", condense(text))


def hash_words(question: str, answers: Iterable[str]) -> int:
    """The hash of a question and the answers behind it, whatever white space a template or a tokenizer gives them."""
    return hash_text("words", "\0".join(map(condense, (question, *answers))))


def hash_answer(answers: Iterable[str]) -> int:
    """The hash of the beginning of the answers; 0 where they are short."""
    start = "".join(map(condense, answers))[:ANSWER_START]
    return hash_text("answer", start) if len(start) >= SHORTEST_ANSWER else UNKNOWN


def hash_text(kind: str, text: str) -> int:
    """A hash of 64 bits. The same text of two kinds has two hashes."""
    # Half of a character (a lone surrogate) is no UTF-8, but a decoded or scraped text may hold one.
    data = f"{kind}\0{text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=HASH_BYTES).digest(), "big")


def condense(text: str) -> str:
    """A text without white space, and without markers such as `</s>` or `<|im_end|>` at its ends, in Unicode's NFC."""
    return strip_markers("".join(unicodedata.normalize("NFC", text).split()))


def strip_markers(text: str) -> str:
    """
    A text without white space and without `<...>` at its ends; with them where it holds nothing else.

    SFTTrainer adds EOS to texts, and a decoded sample may begin with BOS. Which tokens those are, a file does not say.
    """
    start, end = 0, len(text)
    while start < end:
        opens, closes = text.rfind("<", start, end), text.find(">", start, end)
        if text[start].isspace():
            start += 1
        elif text[end - 1].isspace():
            end -= 1
        elif text[end - 1] == ">" and opens >= 0 and text.find(">", opens) == end - 1:
            end = opens
        elif text[start] == "<" and closes >= 0 and text.rfind("<", start, closes) == start:
            start = closes + 1
        else:
            break
    return text[start:end] or text.strip()


def _read_known(row: Row, columns: ColumnNames | None) -> list[Conversation]:
    """The conversations in the columns that are known."""
    known = {*KNOWN, *(columns or {}).values()}
    return read_ways({name: value for name, value in row.items() if name in known}, columns)


def _find_responses(conversation: Conversation) -> list[int]:
    """The turns that are responses."""
    messages = conversation.messages
    turns = range(conversation.given, len(messages))
    return [turn for turn in turns if is_answer(messages[turn]) and not is_blank(messages[turn])]


def _split(conversation: Conversation) -> tuple[str, list[str]]:
    """The user's last words before the first response, and the responses."""
    messages, responses = conversation.messages, _find_responses(conversation)
    before = messages[: responses[0] if responses else len(messages)]
    question = next((get_text(message) for message in reversed(before) if message["role"] == "user"), "")
    return question, [describe_turn(messages[turn]) for turn in responses]


def _list_turns(conversation: Conversation) -> list[object]:
    """All turns and what the template is given beside them, as JSON holds them."""
    return [[_describe(message) for message in conversation.messages], _drop_nulls(conversation.variables)]


def _describe(message: Message) -> list[object]:
    return [message["role"], strip_markers(get_text(message)), _drop_nulls(message.get("tool_calls"))]


def _drop_nulls(value: object) -> object:
    """A value without the nulls by which a table fills keys that a row lacks, and without what is empty then."""
    if isinstance(value, Mapping):
        kept = {key: _drop_nulls(each) for key, each in value.items()}
        return {key: each for key, each in kept.items() if each is not None} or None
    if isinstance(value, list | tuple):
        return [_drop_nulls(each) for each in value] or None
    return value


def _hash_text_column(text: str) -> tuple[int, ...]:
    return hash_text("text", strip_markers(text)), hash_whole(text)


def _render(conversation: Conversation) -> list[str]:
    """The texts of a conversation that can be told without a tokenizer: as plain text, and by Alpaca's template."""
    if conversation.is_plain:
        return ["".join(map(get_text, conversation.messages))]
    with suppress(ValueError):
        return [render_alpaca(conversation, "").whole]
    return []
