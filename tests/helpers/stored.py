"""A round of three samples as the store writes it."""

from pathlib import Path

import numpy as np

FINGERPRINT = {"pool": "abc", "embedder": "tfidf", "context": 512}


SUMMARY = {"fingerprint": FINGERPRINT, "number_selected": 1}


# What the README lists; columns are added at the end only.
COLUMNS = {
    "index": "int64",
    "exemplar": "int64",
    "similarity": "float",
    "prompt_tokens": "int32",
    "response_tokens": "int32",
    "zero_shot_loss": "float",
    "one_shot_loss": "float",
    "miwv": "float",
    "selected": "bool",
    "score": "float",
    "age": "int32",
    "ids_hash": "uint64",
    "text_hash": "uint64",
    "words_hash": "uint64",
    "answer_hash": "uint64",
    "response_loss": "float",
    "further_exemplars": "list<element: int64>",
    "further_similarities": "list<element: float>",
    "further_losses": "list<element: float>",
}


def columns(**changes) -> dict[str, np.ndarray]:
    """Three samples, of which the last was not scored."""
    nan = np.nan
    values = {
        "index": np.arange(3),
        "exemplar": np.array([1, 0, -1]),
        "similarity": np.array([0.5, 0.5, nan], dtype=np.float32),
        "prompt_tokens": np.array([4, 5, 6]),
        "response_tokens": np.array([7, 8, 9]),
        "zero_shot_loss": np.array([1.5, 2.5, nan], dtype=np.float32),
        "one_shot_loss": np.array([2.0, 2.25, nan], dtype=np.float32),
        "miwv": np.array([0.5, -0.25, nan], dtype=np.float32),
        "selected": np.array([True, False, False]),
        "score": np.array([0.5, -0.25, nan], dtype=np.float32),
        "age": np.array([0, 2, -1]),
        "ids_hash": np.array([1, 2**64 - 1, 3], dtype=np.uint64),
        "text_hash": np.array([4, 2**63, 0], dtype=np.uint64),
        "words_hash": np.array([5, 6, 0], dtype=np.uint64),
        "answer_hash": np.array([7, 0, 0], dtype=np.uint64),
        "response_loss": np.array([1.75, 2.5, nan], dtype=np.float32),
    }
    return {**values, **changes}


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fail_to_replace(*_: object) -> None:
    raise OSError("the disk is full")
