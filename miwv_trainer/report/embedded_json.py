"""JSON that stands in an HTML page."""

import base64
import gzip
import json


def encode_json(value: object) -> bytes:
    """A value as compact JSON in UTF-8. Raises `ValueError` on NaN and infinity, which JSON does not have."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def pack_json(encoded: bytes) -> str:
    """
    JSON compressed and in base64, to stand in a script element.

    That takes about a third of the bytes. It also consists of letters, digits and `+/=` alone, so no text of a dataset
    can end the script element or begin another.
    """
    # No time in the header: the same rounds give the same page.
    return base64.b64encode(gzip.compress(encoded, compresslevel=5, mtime=0)).decode()
