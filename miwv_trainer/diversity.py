"""Stub."""

from collections.abc import Iterable, Iterator

import numpy as np

from miwv_trainer.vectors import Embeddings


def without_near_duplicates(order: Iterable[int], embeddings: Embeddings, at_most: float) -> Iterator[int]:
    raise NotImplementedError


def facility_location(candidates: np.ndarray, embeddings: Embeddings) -> Iterator[int]:
    raise NotImplementedError


def maximal_marginal_relevance(
    candidates: np.ndarray, relevance: np.ndarray, embeddings: Embeddings, weight: float
) -> Iterator[int]:
    raise NotImplementedError
