"""A file of another version, of another origin or with damage is refused in words that say which."""

from pathlib import Path

import pytest

from miwv_trainer.storage.provenance import check_description, check_fingerprint, describe, explain_read_errors

PATH = Path("exemplars.parquet")
HASH = "0123456789abcdef" * 4


def test_a_description_is_accepted_by_what_it_was_made_from() -> None:
    check_description(PATH, describe({"pool": HASH, "context": 512}), {"pool": HASH})


def test_the_first_difference_is_named_and_hashes_are_shortened() -> None:
    words = r"exemplars\.parquet was made with pool = '012345678901\.\.\.', but this run has pool = 'abc'\. Use a fresh"
    with pytest.raises(ValueError, match=words.replace("012345678901", HASH[:12])):
        check_fingerprint(PATH, {"pool": HASH}, {"pool": "abc"})


@pytest.mark.parametrize(("version", "shown"), [("2", "2"), ("", "''"), ("new", "'new'")])
def test_another_version_is_refused(version: str, shown: str) -> None:
    with pytest.raises(ValueError, match=f"exemplars.parquet has format version {shown}, but this miwv_trainer reads"):
        check_description(PATH, {"version": version, "fingerprint": "{}"}, {})


def test_a_file_that_cannot_be_read_is_named() -> None:
    words = r"exemplars\.parquet could not be read, it is cut or damaged \(no more bytes\)\. Delete it or move it away"
    with pytest.raises(ValueError, match=words), explain_read_errors(PATH):
        raise OSError("no more bytes")
