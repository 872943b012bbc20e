"""
JSON, JSON Lines and CSV files to rows, with Python's own readers.

A table's reader infers types: it makes timestamps of texts, floats of long numbers and nulls of missing keys. Python's
readers take the rows as they are written, 55,000 of them (60 MB) in two seconds.
"""

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

# A line's number, from 1, and its bytes.
Line: TypeAlias = tuple[int, bytes]
# How JSON writes half of a pair of UTF-16 code units. Python reads it, but no tokenizer and no file takes it.
ESCAPED_SURROGATE = b"\\ud"
LONGEST_CELL = 2**31 - 1  # characters; the default of 131,072 is less than some answers


def read_json(path: Path) -> list[bytes]:
    """
    The rows of a file, as JSON text.

    A file that begins with `[` is one array of objects; any other has an object a line. Lines keep their end. A
    byte-order mark and blank lines are left out; of a key that an object has twice, the last value counts.

    Raises:
        ValueError: the file cannot be unpacked, is not UTF-8, or holds something else; the message names the line.
    """
    lines = _read_lines(path)
    number, first = next(((number, line) for number, line in lines if line.strip()), (0, b""))
    if first.lstrip().startswith(b"["):
        rest = b"".join(line for _, line in lines)
        return _read_array(path, b"\n" * (number - 1) + first + rest)
    rows = []
    while first:
        if first.strip():
            _check_object(path, number, first)
            rows.append(first)
        number, first = next(lines, (0, b""))
    return rows


def read_csv(path: Path) -> list[bytes]:
    """
    The rows of a file whose first line names the columns, as JSON text. Every cell is the text that stands there.

    Raises:
        ValueError: the file cannot be unpacked or is not UTF-8, or a line has another number of cells than the first.
    """
    rows: list[bytes] = []
    with _allow_long_cells():
        reader = csv.reader((line.decode() for _, line in _read_lines(path)), strict=True)
        try:
            names = next(reader, [])
            if len(set(names)) < len(names):
                raise ValueError("a column is named twice")
            for cells in filter(None, reader):
                if len(cells) != len(names):
                    raise ValueError(f"it has {len(cells)} cells, but the first line names {len(names)} columns")
                rows.append(_write(dict(zip(names, cells, strict=True))))
        except csv.Error as error:
            raise ValueError(f"{path} could not be read as csv: line {reader.line_num}: {error}.") from error
        except ValueError as error:
            if str(path) in str(error):
                raise
            raise ValueError(f"{path} could not be read as csv: line {reader.line_num}: {error}.") from error
    return rows


def _read_lines(path: Path) -> Iterator[Line]:
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                line.decode("utf-8")
                yield number, line
    except UnicodeDecodeError as error:
        raise ValueError(f"Line {number} of {path} is not UTF-8 ({error}): save the file in UTF-8.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} could not be read: {error}") from error


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _read_array(path: Path, content: bytes) -> list[bytes]:
    try:
        rows = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} could not be read as json: it begins as an array, but {error}.") from error
    texts = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path} could not be read as json: element {number} of its array is no object.")
        texts.append(_check_text(path, f"element {number}", row))
    return texts


def _check_object(path: Path, number: int, line: bytes) -> None:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} could not be read as json: line {number} is no JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path} could not be read as json: line {number} is no JSON object")
    if ESCAPED_SURROGATE in line.lower():
        _check_text(path, f"line {number}", row)


def _check_text(path: Path, place: str, row: dict[str, object]) -> bytes:
    try:
        return _write(row)
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(
            f"{path} could not be read: {place} holds half of a character (the lone surrogate {half!r}), which no "
            "tokenizer takes: correct it."
        ) from error


def _write(row: dict[str, object]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


@contextmanager
def _allow_long_cells() -> Iterator[None]:
    """The limit of the `csv` module is one for the process, so it is put back."""
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
