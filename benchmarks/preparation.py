"""What a round costs besides its forwards: reading, planning and collating the pool.

    python -m benchmarks.preparation --pool POOL.jsonl.gz --tokenizer FOLDER [--tokens-per-second X ...]

A run reads its pool once. Here the reading is counted in full, as for a first round. Exemplars are drawn at random, the
sample of rank r with a frequency of 1/r, because a search would need an embedder. Planning and collating depend only on
an exemplar's length and on how many samples it serves.
"""

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import datasets
import numpy as np
from transformers import AutoTokenizer

from miwv_trainer.data.build import pool_from_rows, pool_from_tokenized
from miwv_trainer.data.files import load_rows
from miwv_trainer.data.pool import IGNORED_LABEL, Pool
from miwv_trainer.scoring.trees import Tree, make_tree_row, plan_trees

T = TypeVar("T")
TOKENS_PER_ROW = 2048
RATES = {
    900.0: "SmolLM2-135M, float32, two CPU cores",
    100_000.0: "hypothetical",
    500_000.0: "hypothetical",
}


@dataclass
class Clock:
    """Measures the seconds of each step, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, step: str, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = work()
        self.seconds[step] = time.perf_counter() - started
        return result


def main() -> None:
    given = parse_arguments()
    rows = load_rows(given.pool, given.max_samples)
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)

    clock = Clock()
    pool = clock.time("reading: columns rendered and tokenised", lambda: pool_from_rows(rows, tokenizer))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    tokenized = make_tokenized_dataset(pool)
    name = "reading: from a tokenised dataset instead"
    again = clock.time(name, lambda: pool_from_tokenized(tokenized, tokenizer, with_texts=False))
    tokenized_seconds = clock.seconds.pop(name)  # a run reads the pool in one of the two ways
    clock.time("fingerprint", lambda: again.fingerprint)
    if again.fingerprint != pool.fingerprint:
        raise RuntimeError("The tokenised dataset gives another pool than the columns it was made from.")
    clock.time("duplicate groups", lambda: pool.duplicate_groups)
    exemplars = draw_exemplars(len(pool))
    plan = clock.time("planning trees", lambda: plan_trees(pool, exemplars, TOKENS_PER_ROW, TOKENS_PER_ROW))
    clock.time("collating all rows", lambda: collate_rows(pool, plan))

    forwarded = sum(tree.count_tokens(pool) for trees in plan for tree in trees)
    print(f"{len(pool):,} samples, {len(pool.tokens):,} tokens; {forwarded:,} forwarded in {len(plan):,} rows")
    print(f"exemplars: drawn at random by 1/rank; peak memory after reading: {peak:.1f} GiB\n")
    total = sum(clock.seconds.values())
    for step, seconds in (*clock.seconds.items(), ("total", total), (name, tokenized_seconds)):
        print(f"{step:<44}{seconds:>8.2f} s")
    print()
    rates = dict.fromkeys(given.tokens_per_second, "given") if given.tokens_per_second else RATES
    for rate, origin in rates.items():
        share = total / (total + forwarded / rate)
        print(f"{share:>7.2%} of a round at {rate:>9,.0f} tokens/s ({origin})")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pool", required=True, help="a file or hub name, as for `miwv score --dataset`")
    parser.add_argument("--tokenizer", required=True, help="a folder or hub name")
    parser.add_argument("--tokens-per-second", type=float, action="append", help="forward rate; may be repeated")
    parser.add_argument("--max-samples", type=int)
    return parser.parse_args()


def make_tokenized_dataset(pool: Pool) -> datasets.Dataset:
    """The pool as a Trainer's tokenised dataset."""
    preamble = pool.preamble.tolist()
    hidden = [IGNORED_LABEL] * len(preamble)
    labels = np.where(pool.is_response, pool.tokens, IGNORED_LABEL)
    spans = [slice(*pair) for pair in zip(pool.offsets[:-1], pool.offsets[1:], strict=True)]
    columns = {
        "input_ids": [preamble + pool.tokens[span].tolist() for span in spans],
        "labels": [hidden + labels[span].tolist() for span in spans],
    }
    return datasets.Dataset.from_dict(columns)


def draw_exemplars(count: int) -> np.ndarray:
    """`(count,)` an exemplar for every sample, never the sample itself."""
    generator = np.random.default_rng(0)
    frequencies = 1 / np.arange(1, count + 1)
    drawn = generator.permutation(count)[generator.choice(count, count, p=frequencies / frequencies.sum())]
    return np.where(drawn == np.arange(count), (drawn + 1) % count, drawn)


def collate_rows(pool: Pool, plan: list[list[Tree]]) -> None:
    for trees in plan:
        make_tree_row(trees, pool)


if __name__ == "__main__":
    main()
