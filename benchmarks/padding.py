"""Which share of the tokens that padded rows forward is padding?

    python -m benchmarks.padding --pool ../shared/data/alpaca_gpt4_1k.jsonl.gz

The tokens are counted; nothing is forwarded.
"""

import argparse

from quickstart import find_default_model

from benchmarks.cases import read_pool
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.models import load_tokenizer
from miwv_trainer.data.pool import Pool
from miwv_trainer.embeddings.embedders import embed_texts
from miwv_trainer.embeddings.nearest import find_nearest_exemplars
from miwv_trainer.scoring.memory import TOKENS_ON_ACCELERATOR, TOKENS_ON_CPU
from miwv_trainer.scoring.rows import PaddedBatch, plan_padded


def main() -> None:
    arguments = parse_arguments()
    rows = read_pool(arguments.pool)
    if arguments.samples:
        rows = rows.select(range(min(arguments.samples, len(rows))))
    pool = pool_from_rows(rows, load_tokenizer(arguments.model or str(find_default_model())))
    print(f"\n{len(pool):,} samples, {pool.lengths.mean():.0f} tokens each on average\n")
    print("| tokens of a forward | forwards | tokens forwarded | padding |")
    print("|---:|---:|---:|---:|")
    for size, batches in plan_by_size(pool, arguments.context).items():
        tokens = sum(batch.tokens for batch in batches)
        print(f"| {size:,} | {len(batches):,} | {tokens:,} | {measure_padding(batches):.1%} |")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", help="hub name or file (default: alpaca_gpt4_1k)")
    parser.add_argument("--model", help="whose tokenizer is taken (default: the quickstart's)")
    parser.add_argument("--samples", type=int, help="first samples of the pool (default: all)")
    parser.add_argument("--context", type=int, default=8192, help="longest row in tokens (default: %(default)s)")
    return parser.parse_args()


def plan_by_size(pool: Pool, context: int) -> dict[int, list[PaddedBatch]]:
    """The forwards of a pass over the pool, exemplars by tf-idf, for the sizes that are default on a CPU and a GPU."""
    exemplars, _ = find_nearest_exemplars(embed_texts("tfidf", pool.texts), pool, context)
    return {size: plan_padded(pool, exemplars, context, size) for size in (TOKENS_ON_CPU, TOKENS_ON_ACCELERATOR)}


def measure_padding(batches: list[PaddedBatch]) -> float:
    """Share of the forwarded tokens that is padding."""
    return 1 - sum(int(batch.lengths.sum()) for batch in batches) / sum(batch.tokens for batch in batches)


if __name__ == "__main__":
    main()
