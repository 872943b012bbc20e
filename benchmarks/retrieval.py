"""Compares exact search with FAISS: seconds, recall of the exemplar, loss of cosine, peak memory.

    python -m benchmarks.retrieval --samples 50000 --dim 384 --clustered
    python -m benchmarks.retrieval --dataset pool.jsonl.gz --vectors tfidf-svd

Without a dataset the vectors are random: clustered, or without any structure, which is the hardest case for FAISS.
"""

import argparse
import logging
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.embeddings.embedders import embed_texts
from miwv_trainer.embeddings.exact import search_exactly
from miwv_trainer.embeddings.faiss import search_with_faiss
from miwv_trainer.embeddings.rules import Rules
from miwv_trainer.embeddings.vectors import TIE, normalise_rows

SVD_DIM = 128


@dataclass(frozen=True)
class Searched:
    """`(N,)` cosines of the exemplars found, wall-clock seconds, and bytes in use at the peak above the start."""

    cosines: np.ndarray
    seconds: float
    peak_bytes: int


def main() -> None:
    arguments = parse_arguments()
    vectors, described = load_vectors(arguments)
    print(f"{described}, {len(vectors):,} x {vectors.shape[1]}\n")
    names = ("exact", "FAISS")
    measured = {name: search_in_own_process(vectors, name == "FAISS", arguments.device) for name in names}
    exact = measured["exact"].cosines
    print("| search | seconds | recall | mean loss of cosine | peak memory above the start |")
    print("|---|---|---|---|---|")
    for name, found in measured.items():
        recall, loss = (found.cosines >= exact - TIE).mean(), np.maximum(exact - found.cosines, 0).mean()
        memory = f"{found.peak_bytes / 2**20:.0f} MiB"
        print(f"| {name} | {found.seconds:.1f} | {recall:.4f} | {loss:.1e} | {memory} |")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000, help="vectors, or most prompts (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=384, help="of drawn vectors (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="of the exact search (default: %(default)s)")
    parser.add_argument("--clustered", action="store_true", help="draw vectors around centres, 50 at each on average")
    parser.add_argument("--dataset", help="a JSON Lines file with the column `prompt` or `instruction`")
    parser.add_argument(
        "--vectors",
        default="tfidf-svd",
        help="of a dataset: tfidf-svd, or a sentence-transformers name or folder (default: %(default)s)",
    )
    return parser.parse_args()


def load_vectors(arguments: argparse.Namespace) -> tuple[np.ndarray, str]:
    """`(N, d)` float32 vectors, and a description of them."""
    if arguments.dataset is None:
        kind = "clustered" if arguments.clustered else "random normal"
        return draw_vectors(arguments.samples, arguments.dim, arguments.clustered), f"{kind} vectors"
    rows = load_dataset("json", data_files=arguments.dataset, split="train")
    column = "prompt" if "prompt" in rows.column_names else "instruction"
    texts = list(rows[column][: arguments.samples])
    name = Path(arguments.dataset).name
    if arguments.vectors != "tfidf-svd":
        return np.asarray(embed_texts(arguments.vectors, texts)), f"{name}, {Path(arguments.vectors).name}"
    reduced = TruncatedSVD(SVD_DIM, random_state=0).fit_transform(
        TfidfVectorizer(dtype=np.float32).fit_transform(texts)
    )
    return np.asarray(reduced, dtype=np.float32), f"{name}, tf-idf reduced to {SVD_DIM} dimensions"


def draw_vectors(samples: int, dim: int, clustered: bool) -> np.ndarray:
    """`(samples, dim)`. Clustered vectors have cosines of about 0.8 within a cluster and 0 between clusters."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((samples, dim), dtype=np.float32)
    if not clustered:
        return vectors
    clusters = max(1, samples // 50)
    centres = generator.standard_normal((clusters, dim), dtype=np.float32)
    return centres[generator.integers(0, clusters, samples)] + np.float32(0.5) * vectors


def search_in_own_process(vectors: np.ndarray, by_faiss: bool, device: str) -> Searched:
    """Searches in a fresh process: memory that an earlier search freed would hide what this one takes."""
    with multiprocessing.get_context("spawn").Pool(1) as workers:
        return workers.apply(search, (vectors, by_faiss, device))


def search(vectors: np.ndarray, by_faiss: bool, device: str) -> Searched:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("miwv_trainer").setLevel(logging.INFO)
    count = len(vectors)
    # Distinct samples of one prompt and one response token each, so that no rule but "not itself" applies.
    pool = Pool(
        preamble=np.empty(0, dtype=np.int32),
        tokens=np.repeat(np.arange(count, dtype=np.int32), 2),
        is_response=np.tile([False, True], count),
        offsets=np.arange(0, 2 * count + 1, 2),
    )
    if torch.device(device).type == "cuda":
        torch.zeros(1, device=device)  # starts CUDA, which takes seconds and memory of its own
    before = read_memory("VmRSS")
    started = time.perf_counter()
    rules = Rules.from_pool(pool, context=4, may_be_exemplar=np.ones(count, dtype=bool), allow_identical=False)
    run_search = search_with_faiss if by_faiss else search_exactly
    world = World(0, 1, torch.device(device), quiet=True)
    _, cosines = run_search(normalise_rows(vectors), rules, torch.arange(count), world)
    seconds = time.perf_counter() - started
    on_device = torch.cuda.max_memory_allocated() if torch.device(device).type == "cuda" else 0
    return Searched(cosines.numpy(), seconds, read_memory("VmHWM") - before + on_device)


def read_memory(name: str) -> int:
    """Bytes in use by the process (Linux): `VmRSS` now, `VmHWM` at its peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
