"""Instructions to vectors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from miwv_trainer.data.files import is_folder
from miwv_trainer.distributed.sharding import load_models_whole
from miwv_trainer.embeddings.vectors import Embeddings

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
    with load_models_whole():
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
        reason = "is a folder without a model" if is_folder(name) else "is no folder here, and the hub did not give it"
        raise OSError(
            f"The embedder {name!r} could not be loaded: it {reason} ({type(error).__name__}: {_first_line(error)}). "
            f"Give a sentence-transformers name that is reachable or cached, a folder, or one of {ALTERNATIVES}."
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
