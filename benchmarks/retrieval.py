"""Exact search and FAISS compared: seconds, recall of the exemplar, loss of cosine, peak memory.

    python -m benchmarks.retrieval --samples 50000 --dim 384 --clustered
    python -m benchmarks.retrieval --dataset pool.jsonl.gz --vectors tfidf-svd

Without a dataset the vectors are drawn: clustered ones, or with no structure at all, which is the hardest case.
"""

import argparse
import logging
import multiprocessing
import time
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from miwv_trainer.data.pool import Pool
from miwv_trainer.embeddings.embedders import embed_texts
from miwv_trainer.embeddings.exact import search_exactly
from miwv_trainer.embeddings.faiss import search_with_faiss
from miwv_trainer.embeddings.rules import Rules
from miwv_trainer.embeddings.vectors import TIE, normalise_rows

SVD_DIM = 128


def main() -> None:
    arguments = parse_arguments()
    vectors, described = load_vectors(arguments)
    print(f"{described}, {len(vectors):,} x {vectors.shape[1]}\n")
    measured = {name: in_own_process(vectors, name == "FAISS", arguments.device) for name in ("exact", "FAISS")}
    exact = measured["exact"][1]
    print("| search | seconds | recall | mean loss of cosine | peak memory above the start |")
    print("|---|---|---|---|---|")
    for name, (_, cosines, seconds, peak) in measured.items():
        recall, loss = (cosines >= exact - TIE).mean(), np.maximum(exact - cosines, 0).mean()
        print(f"| {name} | {seconds:.1f} | {recall:.4f} | {loss:.1e} | {peak / 2**20:.0f} MiB |")


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
    """`(N, d)` float32 vectors and what they are."""
    if arguments.dataset is None:
        kind = "clustered" if arguments.clustered else "random normal"
        return drawn(arguments.samples, arguments.dim, arguments.clustered), f"{kind} vectors"
    rows = load_dataset("json", data_files=arguments.dataset, split="train")
    column = "prompt" if "prompt" in rows.column_names else "instruction"
    texts = list(rows[column][: arguments.samples])
    name = Path(arguments.dataset).name
    if arguments.vectors != "tfidf-svd":
        return embed_texts(arguments.vectors, texts), f"{name}, {Path(arguments.vectors).name}"
    reduced = TruncatedSVD(SVD_DIM, random_state=0).fit_transform(
        TfidfVectorizer(dtype=np.float32).fit_transform(texts)
    )
    return np.asarray(reduced, dtype=np.float32), f"{name}, tf-idf reduced to {SVD_DIM} dimensions"


def drawn(samples: int, dim: int, clustered: bool) -> np.ndarray:
    """`(samples, dim)`; clustered ones have cosines of about 0.8 within a cluster and 0 between."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((samples, dim), dtype=np.float32)
    if not clustered:
        return vectors
    clusters = max(1, samples // 50)
    centres = generator.standard_normal((clusters, dim), dtype=np.float32)
    return centres[generator.integers(0, clusters, samples)] + np.float32(0.5) * vectors


def in_own_process(vectors: np.ndarray, by_faiss: bool, device: str) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Exemplars, cosines, seconds, and bytes by which the peak memory of a fresh process exceeds its start."""
    with multiprocessing.get_context("spawn").Pool(1) as workers:
        return workers.apply(search, (vectors, by_faiss, device))


def search(vectors: np.ndarray, by_faiss: bool, device: str) -> tuple[np.ndarray, np.ndarray, float, int]:
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
        torch.zeros(1, device=device)  # CUDA starts before the clock does
    before = memory("VmRSS")
    started = time.perf_counter()
    rules = Rules.from_pool(pool, context=4, may_be_exemplar=np.ones(count, dtype=bool), allow_identical=False)
    run_search = search_with_faiss if by_faiss else search_exactly
    exemplars, cosines = run_search(normalise_rows(vectors), rules, torch.arange(count), torch.device(device))
    seconds = time.perf_counter() - started
    on_device = torch.cuda.max_memory_allocated() if torch.device(device).type == "cuda" else 0
    return exemplars.numpy(), cosines.numpy(), seconds, memory("VmHWM") - before + on_device


def memory(name: str) -> int:
    """Bytes: `VmRSS` is what the process holds now, `VmHWM` the most it held (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
