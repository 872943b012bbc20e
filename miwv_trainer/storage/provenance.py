"""What a stored file was made from: its format version and its fingerprint, checked whenever it is read again."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from safetensors import SafetensorError

from miwv_trainer.foreign_errors import quote_error

FORMAT_VERSION = 1
# An object as JSON holds it: its values are texts, numbers, booleans, None, and lists and objects of such values.
JsonObject = Mapping[str, Any]


def check_version(path: Path, found: object) -> None:
    """Raises `ValueError` if a file has another format version than this library writes."""
    if found != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {found!r}, but this miwv_trainer reads version {FORMAT_VERSION}. Use the "
            "version that wrote it, or a fresh output folder."
        )


def check_fingerprint(path: Path, found: JsonObject, expected: JsonObject) -> None:
    """Raises `ValueError` naming the first entry of `expected` that differs in `found`."""
    # Entries that only the file has are no reason to refuse it: a caller expects what it depends on, and no more.
    for name, value in expected.items():
        if found.get(name) != value:
            raise ValueError(
                f"{path} was made with {name} = {_shorten(found.get(name))}, but this run has {name} = "
                f"{_shorten(value)}. Use a fresh output folder, or the same values."
            )


def describe(fingerprint: JsonObject) -> dict[str, str]:
    """Version and fingerprint as texts, which Parquet and safetensors files hold beside their arrays."""
    return {"version": str(FORMAT_VERSION), "fingerprint": json.dumps(fingerprint)}


def check_description(path: Path, described: Mapping[str, str], expected: JsonObject) -> None:
    """Checks the version and the fingerprint that [`describe`] put into a file."""
    # Parquet and safetensors hold texts only, so the number comes back as one.
    version = described.get("version", "")
    check_version(path, int(version) if version.isdigit() else version)
    check_fingerprint(path, json.loads(described["fingerprint"]), expected)


@contextmanager
def explain_read_errors(path: Path) -> Iterator[None]:
    """Turns the error of a damaged file into one that names the file and says what to do."""
    try:
        yield
    except (OSError, json.JSONDecodeError, pa.ArrowInvalid, SafetensorError) as error:
        raise ValueError(
            f"{path} could not be read, it is cut or damaged ({quote_error(error)}). Delete it or move it "
            "away, and what it held is computed again; or use a fresh output folder."
        ) from error


def _shorten(value: object) -> str:
    """A value as text; a hash as its first characters."""
    shown = repr(value)
    return shown if len(shown) <= 40 or " " in shown else shown[:13] + "...'"
