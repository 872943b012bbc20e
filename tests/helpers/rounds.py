"""Rounds on disk without a model: made-up losses, written by the Store."""

from pathlib import Path
from typing import Any

import numpy as np

from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import StoredRound

SUMMARY = {
    "fingerprint": {"context": 512, "model": {"dtype": "float32", "config": "c0ffee"}},
    "epoch": 0,
    "tokens_forwarded": 12_345,
    "seconds": 30.0,
    "samples_per_second": 2.5,
    "tokens_per_second": 411.5,
    "layout": "tree",
    "left_out": {},
}


def made_columns(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns of a round in which nothing is selected yet."""
    generator = np.random.default_rng(seed)
    zero_shot = generator.uniform(0.5, 4, count).astype(np.float32)
    miwv = generator.normal(-0.3, 0.5, count).astype(np.float32)
    return {
        "index": np.arange(count),
        "exemplar": (np.arange(count) + 1) % count,
        "similarity": generator.uniform(0.2, 0.99, count).astype(np.float32),
        "prompt_tokens": generator.integers(3, 90, count).astype(np.int32),
        "response_tokens": generator.integers(1, 200, count).astype(np.int32),
        "zero_shot_loss": zero_shot,
        "one_shot_loss": zero_shot + miwv,
        "miwv": (zero_shot + miwv) - zero_shot,
        "selected": np.zeros(count, dtype=bool),
        "score": miwv,
        "age": np.zeros(count, dtype=np.int32),
    }


def write_round(
    output: Path, columns: dict[str, np.ndarray], selection: Any, /, number: int = 0, **config: Any
) -> StoredRound:
    """Writes `columns` with these samples selected; `config` is what they were selected by."""
    count = len(columns["index"])
    selected = np.zeros(count, dtype=bool)
    selected[np.asarray(selection)] = True
    summary = {
        **SUMMARY,
        "round": number,
        "global_step": 7 * number,
        "fraction": int(selected.sum()) / count,
        "number_selected": int(selected.sum()),
        "samples": count,
        "scored": count,
        "unscorable": int(np.isnan(columns["score"]).sum()),
        "config": {"score": "miwv", "embedder": "tfidf", **config},
    }
    return Store(output).write_round(number, {**columns, "selected": selected}, summary)


def highest(values: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")[:count]
