"""The embedders: from the instructions of a pool to one vector per sample.

`EMBEDDERS` holds one record for each embedder that has a name of its own. Any other name is one of
sentence-transformers, and an array is taken as it is. A record says what the rest of the package must know of an
embedder, so that no other file compares its name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import scipy.sparse
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from miwv_trainer.checks import is_nearly
from miwv_trainer.config import describe_embedder
from miwv_trainer.data.files import is_folder
from miwv_trainer.distributed.world import World
from miwv_trainer.embeddings.sentences import encode_sentences
from miwv_trainer.embeddings.vectors import Embeddings
from miwv_trainer.embeddings.words import iterate_terms, needs_character_terms
from miwv_trainer.foreign_errors import quote_error

logger = logging.getLogger(__name__)

# `(N, d)`, as the user gives it.
GivenArray: TypeAlias = np.ndarray | torch.Tensor
# From N texts to `(N, d)` embeddings, on all ranks together; ranks but 0 may get None.
TextEncoder: TypeAlias = Callable[[Sequence[str], World], Embeddings | None]
ALTERNATIVES = (
    '`embedder="tfidf"` (no download), `embedder="model"` (the model being trained), or an array of shape (N, d)'
)
# Offered by name if an encoder cannot be loaded: the default has 1.3 GB and reads English. docs/retrieval.md has more.
SMALLER_ENCODERS = (
    "smaller ones are 'BAAI/bge-small-en-v1.5' (English, 0.13 GB) and "
    "'sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2' (50 languages, 0.5 GB)"
)


@dataclass(frozen=True, eq=False)
class Embedder:
    """
    Where the embeddings of a pool come from. At most one of the three sources is set.

    Args:
        name: The value of `MIWVConfig.embedder`, or a description of the array.
        encode: Computes embeddings from the instructions as text.
        array: `(N, d)` embeddings that the user gave.
        is_model_in_training:
            Whether the embeddings are hidden states of the model in training. They change as it learns, so they cannot
            be computed again after round 0.
    """

    name: str
    encode: TextEncoder | None = None
    array: GivenArray | None = None
    is_model_in_training: bool = False

    @property
    def reads_text(self) -> bool:
        return self.encode is not None


def embed_texts(embedder: str, texts: Sequence[str] | None, world: World | None = None) -> Embeddings | None:
    """
    Returns `(N, d)` embeddings of N instructions on rank 0, and None or the same on other ranks.

    Args:
        embedder: `"tfidf"`, or a sentence-transformers name or folder, which embeds a share of the texts on each rank.
        texts: The instructions, the same on all ranks. None where the pool has none.
        world: The ranks, which call this together; by default this process alone.

    Raises:
        ValueError: the embedder reads no text, there are no texts, or they hold no word.
        ImportError: sentence-transformers is not installed.
        OSError: the embedder cannot be loaded.
    """
    encode = get_embedder(embedder).encode
    if encode is None:
        raise ValueError(
            f"The embedder {embedder!r} does not embed texts. Give 'tfidf', or a sentence-transformers name or folder."
        )
    if texts is None:
        raise ValueError(
            f"The embedder {embedder!r} needs the instructions as text, but the pool has no text column and the "
            "Trainer no tokenizer to decode the prompts. Pass `processing_class=tokenizer` to the Trainer, or use "
            '`embedder="model"` or an array of shape (N, d).'
        )
    return encode(texts, world or World(0, 1, torch.device("cpu"), quiet=True))


def validate_embeddings(array: GivenArray, pool_size: int) -> np.ndarray:
    """
    Returns an array that the user gave as `(N, d)` float32.

    Raises:
        ValueError: the array has another number of rows than the pool has samples, or holds NaN or infinity.
    """
    values = array.detach().cpu().float().numpy() if isinstance(array, torch.Tensor) else array
    embeddings = np.asarray(values, np.float32)
    if len(embeddings) != pool_size:
        raise ValueError(
            f"The embedding array has {len(embeddings)} lines, but the pool has {pool_size} samples: give one line per "
            "sample, in pool order (TRL may have dropped or shuffled samples while preparing the dataset)."
        )
    if not np.isfinite(embeddings).all():
        raise ValueError("The embedding array holds NaN or infinite values.")
    return embeddings


def _compute_tfidf(texts: Sequence[str], world: World) -> scipy.sparse.csr_matrix | None:
    """The terms that are counted depend on all texts, so that rank 0 does it alone: 4 s for 55,185 of them."""
    with world.run_together("embedding the instructions"):
        return _weigh_terms(texts) if world.is_main else None


def _weigh_terms(texts: Sequence[str]) -> scipy.sparse.csr_matrix:
    vectorizer = TfidfVectorizer(dtype=np.float32)
    if needs_character_terms(texts):
        logger.info("tf-idf takes pairs of characters as terms where the instructions have no spaces between words.")
        vectorizer = TfidfVectorizer(dtype=np.float32, analyzer=iterate_terms)
    try:
        return vectorizer.fit_transform(texts)
    except ValueError as error:
        raise ValueError(
            f'`embedder="tfidf"` found no word of two or more letters in the instructions ({quote_error(error)}). Use '
            '`embedder="model"` or an array of shape (N, d).'
        ) from error


EMBEDDERS: Mapping[str, Embedder] = {
    "tfidf": Embedder("tfidf", encode=_compute_tfidf),
    "model": Embedder("model", is_model_in_training=True),
}


def get_embedder(embedder: str | GivenArray) -> Embedder:
    """
    Returns the record of a value of `MIWVConfig.embedder`.

    Raises:
        ValueError: a mistyped name.
    """
    if not isinstance(embedder, str):
        return Embedder(describe_embedder(embedder), array=embedder)
    if embedder in EMBEDDERS:
        return EMBEDDERS[embedder]
    check_encoder_name(embedder)
    return Embedder(embedder, encode=partial(encode_sentences, embedder, ALTERNATIVES, SMALLER_ENCODERS))


def check_encoder_name(name: str) -> None:
    """
    Raises `ValueError` if a name of sentence-transformers is nearly a built-in one, or that of an array's file.

    The hub knows neither, and without a network it takes more than a minute to say so.
    """
    if name.endswith(".npy"):
        raise ValueError(
            f"Unknown embedder: {name!r} is the name of a file. Give the array itself, `embedder=numpy.load({name!r})`."
        )
    meant = next((each for each in EMBEDDERS if is_nearly(name, each)), None)
    if meant is not None and "/" not in name and not is_folder(name):
        raise ValueError(
            f"Unknown embedder: {name!r} is no folder here. Did you mean {meant!r}? A model of the hub that has so "
            f"near a name is given with its owner, 'OWNER/{name}'."
        )
