"""What it costs to select diverse samples: seconds of each method, on tf-idf and on dense embeddings of one pool.

    python -m benchmarks.diversity --pool POOL.jsonl.gz [--take 2759] [--candidates 11036] [--only sparse|dense]

A seeded random ranking replaces the one by MIWV. The seconds include everything after embedding: taking rows, scaling
them to length 1, comparing and choosing. Without `--only`, both kinds of embeddings are measured.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.cases import DEFAULT_POOL
from miwv_trainer.data.files import load_rows
from miwv_trainer.embeddings.embedders import embed_texts
from miwv_trainer.embeddings.vectors import Embeddings, normalise_rows, prepare_products
from miwv_trainer.selection.diversity import (
    order_by_facility_location,
    order_by_marginal_relevance,
    skip_near_duplicates,
)

POOL = DEFAULT_POOL.with_name("t0_50k.jsonl.gz")
DIM = 384
LIMIT = 0.8
WEIGHT = 0.5
KINDS = {"sparse": "tf-idf", "dense": f"dense, {DIM}-d"}


def main() -> None:
    given = parse_arguments()
    rows = load_rows(given.pool)
    column = "prompt" if "prompt" in rows.column_names else "instruction"
    tfidf = embed_texts("tfidf", [row[column] for row in rows])
    ranking = np.random.default_rng(0).permutation(len(rows))
    candidates = ranking[: given.candidates or 4 * given.take]
    print(f"{Path(given.pool).name}, {len(rows):,} samples; {given.take:,} taken of {len(candidates):,}\n")
    print("| embeddings | method | seconds | taken | nearest other taken, mean cosine |")
    print("|---|---|---:|---:|---:|")
    for kind in [given.only] if given.only else KINDS:
        embeddings = tfidf if kind == "sparse" else project(tfidf)
        for method, order in start_methods(candidates, embeddings).items():
            started = time.perf_counter()
            taken = list(islice(order, given.take))
            seconds = time.perf_counter() - started
            similarity = measure_similarity(taken, embeddings)
            print(f"| {KINDS[kind]} | {method} | {seconds:.1f} | {len(taken):,} | {similarity:.3f} |")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", default=str(POOL), help=f"file (default: {POOL.name} in ../shared/data)")
    parser.add_argument("--take", type=int, default=2759, help="samples to select (default: %(default)s)")
    parser.add_argument("--candidates", type=int, help="samples to select from (default: four times --take)")
    parser.add_argument("--only", choices=KINDS)
    return parser.parse_args()


def start_methods(candidates: np.ndarray, embeddings: Embeddings) -> dict[str, Iterator[int]]:
    """Each method's name, and an iterator of the candidates in the order in which it selects them."""
    relevance = -np.arange(len(candidates), dtype=np.float64)
    return {
        "the ranking as it is": iter(candidates.tolist()),
        f"without near-duplicates, at most {LIMIT}": skip_near_duplicates(candidates, embeddings, LIMIT),
        f"maximal marginal relevance, weight {WEIGHT}": order_by_marginal_relevance(
            candidates, relevance, embeddings, WEIGHT
        ),
        "facility location": order_by_facility_location(candidates, embeddings),
    }


def project(tfidf: Embeddings) -> np.ndarray:
    """`(N, 384)` by a seeded random projection, which changes cosines little."""
    directions = np.random.default_rng(0).standard_normal((tfidf.shape[1], DIM), dtype=np.float32)
    return np.asarray(tfidf @ directions, dtype=np.float32)


def measure_similarity(taken: list[int], embeddings: Embeddings) -> float:
    """Mean over the selected samples of the highest cosine with another selected sample."""
    unit = normalise_rows(embeddings[np.asarray(taken)])
    positions = np.arange(len(taken))
    cosines = prepare_products(unit, positions)(positions)
    np.fill_diagonal(cosines, -1)
    return float(cosines.max(axis=1).mean())


if __name__ == "__main__":
    main()
