"""Which exemplar each sample gets: k(i) = argmax over j != i of cosine(h_i, h_j), equation 1 of the paper."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from miwv_trainer.distributed import whole_models
from miwv_trainer.packing import NO_EXEMPLAR
from miwv_trainer.pool import Pool
from miwv_trainer.search import Rules, check_faiss, search_exactly, search_with_faiss
from miwv_trainer.vectors import Embeddings, normalised

logger = logging.getLogger(__name__)

APPROXIMATE_ABOVE = 1_000_000
SPARSE_SECONDS_PER_PAIR = 1e-8  # measured; see docs/retrieval.md
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
    device: torch.device | str = "cpu",
    approximate_above: int = APPROXIMATE_ABOVE,
) -> tuple[np.ndarray, np.ndarray]:
    """
    The nearest sample of each sample, ties by lower index.

    A sample is never its own exemplar, nor is one with the same tokens unless `allow_identical`, nor one without
    prompt or response. Of those that fit the context together with the sample, the nearest is taken; where none fits,
    the nearest of all. An embedding that is not finite has and is no exemplar.

    Args:
        embeddings: `(N, d)`, in pool order.
        context: Most tokens of an exemplar and its sample together, preamble included.
        device: Where dense embeddings are compared; sparse ones always are on the CPU.
        approximate_above: In larger pools, dense embeddings are searched with FAISS, on the CPU.

    Returns:
        `(N,)` int64 indices, -1 where there is none, and `(N,)` float32 cosines, NaN where there is none.

    Raises:
        ImportError: the pool is larger than `approximate_above`, and FAISS is not installed.
    """
    size = len(pool)
    is_large, is_dense = size > approximate_above, isinstance(embeddings, np.ndarray)
    if is_large and is_dense:
        check_faiss(size)
    elif is_large:
        logger.warning(_long_sparse_search(size))
    unit = normalised(embeddings)
    finite = _is_finite(unit)
    rules = Rules.of(pool, context, pool.has_prompt_and_response & finite, allow_identical)
    queries = torch.from_numpy(np.flatnonzero(finite))
    exemplars = np.full(size, NO_EXEMPLAR, dtype=np.int64)
    similarities = np.full(size, np.nan, dtype=np.float32)
    search = search_with_faiss if is_large and is_dense and len(rules.candidates) else search_exactly
    found = search(unit, rules, queries, torch.device(device), show_progress)
    exemplars[finite], similarities[finite] = (part.numpy() for part in found)
    return exemplars, similarities


def _long_sparse_search(size: int) -> str:
    hours = SPARSE_SECONDS_PER_PAIR * size**2 / 3600
    return (
        f"The tf-idf vectors of {size:,} samples are compared pair by pair, because FAISS takes dense ones only: about "
        f'{hours:,.1f} hours on two cores. Faster: a sentence-transformers `embedder`, `embedder="model"`, or an array '
        "of shape (N, d)."
    )


def _is_finite(unit: Embeddings) -> np.ndarray:
    """`(N,)` whether an embedding can be compared; a model may overflow on a prompt."""
    if isinstance(unit, np.ndarray):
        return np.asarray(np.isfinite(unit).all(axis=1))
    return np.ones(unit.shape[0], dtype=bool)


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
