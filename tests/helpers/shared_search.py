"""Embedding and search as several ranks share them; run by tests/launched/messages.py, and by a test in one process."""

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
from sentence_transformers import SentenceTransformer

from miwv_trainer import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.embeddings import exact
from miwv_trainer.embeddings.embedders import embed_texts
from miwv_trainer.embeddings.rules import Rules
from miwv_trainer.rounds.exemplars import find_exemplars
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.storage.store import Store
from tests.helpers.tiny import instruction_rows, tiny_dataset, tiny_model, tiny_tokenizer

COUNT = 170  # six batches of texts, of which the last is not full
AT_ONCE = 7  # queries in a chunk


def tied_pool() -> Pool:
    """Every instruction three times, with other responses, so that two samples are equally near to each."""
    rows = [
        {**row, "instruction": f"Explain the number {place % (COUNT // 3)}", "input": ""}
        for place, row in enumerate(instruction_rows(COUNT))
    ]
    return pool_from_rows(datasets.Dataset.from_list(rows), tiny_tokenizer())


def distinct_pool() -> Pool:
    return pool_from_rows(tiny_dataset(COUNT), tiny_tokenizer())


def found_by(world: World, pool: Pool, embedder: str, output: Path) -> dict[str, Any]:
    """The exemplars that the ranks find, and on rank 0 what the vectors are that it has stored, to the bit."""
    store = Store(output)
    with patch.object(exact, "COSINES_AT_ONCE", AT_ONCE * len(pool)):
        scorer = prepare_scorer(
            tiny_model(), pool, MIWVConfig(embedder=embedder, score="influence", exemplars_per_sample=2), world
        )
        found = find_exemplars(scorer, store, reuse=False)
    vectors = None
    if world.is_main:
        stored = Store(output).read_embeddings({})
        vectors = hashlib.sha256((stored if isinstance(stored, np.ndarray) else stored.data).tobytes()).hexdigest()
    return {
        "exemplars": found.ranked.tolist(),
        "similarities": hashlib.sha256(found.ranked_similarities.tobytes()).hexdigest(),
        "vectors": vectors,
    }


def failures(world: World, encoder: str, output: Path) -> dict[str, Any]:
    """What each rank raises when the last one fails, and how many batches it has encoded by then."""
    pool, is_last = distinct_pool(), world.rank == world.size - 1
    texts = pool.texts or []
    encoded = 0
    encode = SentenceTransformer.encode

    def count(*args: Any, **options: Any) -> Any:
        nonlocal encoded
        encoded += 1
        if is_last:
            raise OSError("no tea")
        return encode(*args, **options)

    def fail(*args: Any) -> None:
        raise OSError("no tea")

    results: dict[str, Any] = {
        "loading": raised(lambda: embed_texts("nobody/nothing" if is_last else encoder, texts, world)),
        "texts": raised(lambda: found_by(world, retold(pool, is_last), encoder, output / "texts")),
    }
    with patch.object(SentenceTransformer, "encode", count):
        results["encoding"] = raised(lambda: embed_texts(encoder, texts, world))
    results["encoded"] = encoded
    with patch.object(Rules, "pick_nearest", fail) if is_last else nullcontext():
        results["searching"] = raised(lambda: found_by(world, pool, "tfidf", output / "searching"))
    return results


def retold(pool: Pool, is_last: bool) -> Pool:
    """As where a column of text was mapped at random, and not the token ids."""
    texts = list(pool.texts or [])
    return replace(pool, texts=[*texts[:-1], texts[-1] + "!"] if is_last else texts)


def raised(run: Callable[[], object]) -> str:
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"
