"""Sentence encoders, from a folder or the hub. sentence-transformers is optional, and takes seconds to import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from miwv_trainer.data.files import is_folder
from miwv_trainer.foreign_errors import take_first_line

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def load_encoder(name: str, alternatives: str, smaller: str, device: str | None = None) -> SentenceTransformer:
    """
    Loads a model of sentence-transformers.

    Args:
        name: A hub name, or a folder.
        alternatives: What works without sentence-transformers, for messages.
        smaller: Smaller encoders, for messages.
        device: Where it computes; None for a GPU if there is one.

    Raises:
        ImportError: sentence-transformers is not installed.
        OSError: the model cannot be loaded.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            f"The embedder {name!r} needs sentence-transformers: `pip install 'miwv-trainer[embed]'`. Without it: "
            f"{alternatives}."
        ) from error
    try:
        return SentenceTransformer(name, device=device)
    # The hub, the network, transformers and torch each fail with exceptions of their own.
    except Exception as error:
        where = "is a folder without a model" if is_folder(name) else "is no folder here, and the hub did not give it"
        reason = f"{type(error).__name__}: {take_first_line(error)}"
        raise OSError(
            f"The embedder {name!r} could not be loaded: it {where} ({reason}). Give a sentence-transformers name that "
            f"is reachable or cached ({smaller}), a folder, or one of {alternatives}."
        ) from error
