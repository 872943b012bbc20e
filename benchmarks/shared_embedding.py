"""What embedding and exact search cost on each rank: wall-clock and CPU seconds, and whether the vectors are the same.

    python -m benchmarks.shared_embedding --dataset t0_50k.jsonl.gz --embedder path/to/all-MiniLM-L6-v2
    torchrun --nproc_per_node 2 -m benchmarks.shared_embedding --dataset t0_50k.jsonl.gz --embedder ...

The hash that is printed is of the exemplars and of their cosines, to the bit.
"""

import argparse
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from miwv_trainer import load_rows
from miwv_trainer.data.columns import read_instruction
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.launched import join_launched, leave_launched
from miwv_trainer.embeddings.embedders import embed_texts
from miwv_trainer.embeddings.nearest import find_nearest_exemplars


def main() -> None:
    arguments = parse_arguments()
    world = join_launched()
    rows = load_rows(arguments.dataset, arguments.samples)
    texts = [read_instruction(row) or "" for row in rows]
    spent: dict[str, tuple[float, float]] = {}
    embed_texts(arguments.embedder, texts[:64], world)  # imports what an embedder needs, 10 s of a core
    with measure(spent, "embedding"):
        embeddings = embed_texts(arguments.embedder, texts, world)
    with measure(spent, "search"):
        found = find_nearest_exemplars(embeddings, make_pool(texts), context=10**6, world=world)
    digest = hashlib.sha256(b"".join(part.tobytes() for part in found)).hexdigest()[:16]
    by_rank = world.all_gather(spent)
    if world.is_main:
        print(f"{Path(arguments.dataset).name}, {len(texts):,} texts, {arguments.embedder}, exemplars {digest}\n")
        print("| part | wall-clock seconds | CPU seconds of each rank |")
        print("|---|---|---|")
        for part, (wall, _) in spent.items():
            print(f"| {part} | {wall:.1f} | {', '.join(f'{each[part][1]:.1f}' for each in by_rank)} |")
    leave_launched(world)


@contextmanager
def measure(spent: dict[str, tuple[float, float]], part: str) -> Iterator[None]:
    """Notes wall-clock and CPU seconds of the block, all threads of this process together."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    spent[part] = (time.perf_counter() - wall, time.process_time() - cpu)


def make_pool(texts: list[str]) -> Pool:
    """A pool in which samples with the same text are copies: one token of prompt for each text, one of response."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    ids = np.array([numbers[text] for text in texts], dtype=np.int32)
    return Pool(
        preamble=np.empty(0, dtype=np.int32),
        tokens=np.stack([ids, np.zeros_like(ids)], axis=1).ravel(),
        is_response=np.tile([False, True], len(texts)),
        offsets=np.arange(0, 2 * len(texts) + 1, 2),
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a file of instructions")
    parser.add_argument("--embedder", default="tfidf", help="tfidf, or a sentence-transformers name or folder")
    parser.add_argument("--samples", type=int, help="the first so many rows (default: all)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
