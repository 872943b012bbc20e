"""Which exemplar each sample gets: k(i) = argmax over j != i of cosine(h_i, h_j), equation 1 of the paper.

The search is exact and goes in chunks of queries against the whole pool; an N x N matrix is never held (52,002
samples would take 10.8 GB).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from tqdm.auto import tqdm

from miwv_trainer.distributed import whole_models
from miwv_trainer.packing import NO_EXEMPLAR
from miwv_trainer.pool import Pool
from miwv_trainer.store import Embeddings

SIMILARITIES_AT_ONCE = 2**25  # 128 MiB of float32
# Below this, a difference of two cosines in float32 is rounding, which differs between machines.
TIE = 1e-6
ALTERNATIVES = (
    '`embedder="tfidf"` (no download), `embedder="model"` (the model being trained), or an array of shape (N, d)'
)


def embed_texts(embedder: str, texts: Sequence[str] | None, show_progress: bool = False) -> Embeddings:
    """
    `(N, d)` embeddings of N instructions.

    Args:
        embedder: `"tfidf"`, or a sentence-transformers name or folder.
        texts: The instructions.

    Raises:
        ValueError: there are no texts, or they hold no word.
        ImportError: sentence-transformers is not installed.
        OSError: the embedder cannot be loaded.
    """
    if texts is None:
        raise ValueError(
            f"The embedder {embedder!r} needs the instructions as text, but the pool has no text column and the "
            "Trainer no tokenizer to decode the prompts. Pass `processing_class=tokenizer` to the Trainer, or use "
            '`embedder="model"` or an array of shape (N, d).'
        )
    if embedder == "tfidf":
        return _tfidf(texts)
    with whole_models():
        encoder = _sentence_encoder(embedder)
        embeddings = encoder.encode(list(texts), show_progress_bar=show_progress, convert_to_numpy=True)
    return np.asarray(embeddings, dtype=np.float32)


def given_embeddings(array: Any, pool_size: int) -> np.ndarray:
    """
    Checks an embedding array (numpy or torch) and returns it as float32.

    Raises:
        ValueError: it has another number of lines than the pool, or holds NaN or infinity.
    """
    embeddings = np.asarray(array.detach().cpu().float() if isinstance(array, torch.Tensor) else array, np.float32)
    if len(embeddings) != pool_size:
        raise ValueError(
            f"The embedding array has {len(embeddings)} lines, but the pool has {pool_size} samples: give one line per "
            "sample, in pool order (TRL may have dropped or shuffled samples while preparing the dataset)."
        )
    if not np.isfinite(embeddings).all():
        raise ValueError("The embedding array holds NaN or infinite values.")
    return embeddings


def nearest_exemplars(
    embeddings: Embeddings,
    pool: Pool,
    context: int,
    allow_identical: bool = False,
    show_progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """
    The nearest sample of each sample, ties by lower index.

    A sample is never its own exemplar, nor is one with the same tokens unless `allow_identical`, nor one without
    prompt or response. Of those that fit the context together with the sample, the nearest is taken; where none fits,
    the nearest of all.

    Returns:
        `(N,)` int64 indices, -1 where there is none, and `(N,)` float32 cosines, NaN where there is none.
    """
    unit = _normalise(embeddings)
    # A transposed sparse matrix would be converted anew for every chunk.
    transposed = unit.T if isinstance(unit, np.ndarray) else unit.T.tocsr()
    size = len(pool)
    exemplars = np.full(size, NO_EXEMPLAR, dtype=np.int64)
    similarities = np.full(size, np.nan, dtype=np.float32)
    chunk = max(1, SIMILARITIES_AT_ONCE // size)
    unfit = np.flatnonzero(~(pool.has_prompt_and_response & _is_finite(unit)))
    copies = _copies(pool) if not allow_identical else {}
    starts = tqdm(range(0, size, chunk), desc="Finding exemplars", disable=not show_progress)
    for start in starts:
        queries = np.arange(start, min(start + chunk, size))
        cosines = _cosines(unit[queries], transposed)
        cosines[:, unfit] = -np.inf
        cosines[np.isnan(cosines).any(axis=1)] = -np.inf
        cosines[np.arange(len(queries)), queries] = -np.inf
        for row in np.flatnonzero([query in copies for query in queries.tolist()]):
            cosines[row, copies[int(queries[row])]] = -np.inf
        _prefer_fitting(cosines, queries, pool, context)
        _take_best(cosines, queries, exemplars, similarities)
    return exemplars, similarities


def _take_best(cosines: np.ndarray, queries: np.ndarray, exemplars: np.ndarray, similarities: np.ndarray) -> None:
    best = cosines.max(axis=1)
    found = np.isfinite(best)
    first_of_ties = (cosines >= best[:, None] - TIE).argmax(axis=1)
    exemplars[queries[found]] = first_of_ties[found]
    similarities[queries[found]] = cosines[found, first_of_ties[found]]


def _prefer_fitting(cosines: np.ndarray, queries: np.ndarray, pool: Pool, context: int) -> None:
    """Rules out exemplars that are too long for a query, unless that rules out all."""
    room = context - len(pool.preamble) - pool.lengths[queries]
    for row in np.flatnonzero(room < pool.lengths.max()):
        fitting = np.where(pool.lengths <= room[row], cosines[row], -np.inf)
        if np.isfinite(fitting).any():
            cosines[row] = fitting


def _copies(pool: Pool) -> dict[int, np.ndarray]:
    """For every sample that is not unique, the samples with the same tokens."""
    groups = pool.duplicate_groups
    order = np.argsort(groups, kind="stable")
    edges = np.flatnonzero(np.diff(groups[order])) + 1
    same = [members for members in np.split(order, edges) if len(members) > 1]
    return {int(member): members for members in same for member in members}


def _is_finite(unit: Embeddings) -> np.ndarray:
    """`(N,)` whether an embedding can be compared; a model may overflow on a prompt."""
    if isinstance(unit, np.ndarray):
        return np.asarray(np.isfinite(unit).all(axis=1))
    return np.ones(unit.shape[0], dtype=bool)


def _cosines(queries: Embeddings, transposed: Embeddings) -> np.ndarray:
    """`(queries, N)` products of unit vectors."""
    products = queries @ transposed
    return products if isinstance(products, np.ndarray) else products.toarray()


def _normalise(embeddings: Embeddings) -> Embeddings:
    if not isinstance(embeddings, np.ndarray):
        return embeddings  # TfidfVectorizer's lines have length 1
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.maximum(norms, np.finfo(np.float32).tiny)


def _tfidf(texts: Sequence[str]) -> scipy.sparse.csr_matrix:
    try:
        return TfidfVectorizer(dtype=np.float32).fit_transform(texts)
    except ValueError as error:
        raise ValueError(
            f'`embedder="tfidf"` found no word of two or more letters in the instructions ({error}). Use '
            '`embedder="model"` or an array of shape (N, d).'
        ) from error


def _sentence_encoder(name: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            f"The embedder {name!r} needs sentence-transformers: `pip install 'miwv-trainer[embed]'`. Without it: "
            f"{ALTERNATIVES}."
        ) from error
    try:
        return SentenceTransformer(name)
    except Exception as error:
        is_folder = Path(name).is_dir()
        reason = "is a folder without a model" if is_folder else "is no folder here, and the hub did not give it"
        raise OSError(
            f"The embedder {name!r} could not be loaded: it {reason} ({type(error).__name__}: {_first_line(error)}). "
            f"Give a sentence-transformers name that is reachable or cached, a folder, or one of {ALTERNATIVES}."
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
