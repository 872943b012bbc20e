"""Diverse samples: near-duplicates are skipped, or candidates taken by facility location or marginal relevance.

Each method yields pool indices one at a time, so that the caller stops when its budget is full. Similarity is the
cosine of two embeddings. A row of zeros, or one that contains NaN or infinity, has the similarity 0 to every row,
itself included.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import scipy.sparse

from miwv_trainer.embeddings.vectors import TIE, Embeddings, find_entry_rows, normalise_rows, prepare_products

# Samples that are compared with the kept ones in one product. One at a time, products would be too small to be fast.
DRAWN_AHEAD = 256
# Up to so many candidates, all similarities between them are kept in memory: 1 GiB of float32. Of more candidates, as
# many rows are kept as fit into that.
MOST_CACHED = 16_384
# Gains are computed for so many candidates in one product, doubled up to the most while their bounds are too high. A
# wide product costs half as much per row, but computes gains that may not be needed.
GAINS_AT_ONCE = 32
MOST_GAINS_AT_ONCE = 256


def skip_near_duplicates(order: Iterable[int], embeddings: Embeddings, at_most: float) -> Iterator[int]:
    """
    Yields the members of `order`, except those whose cosine with a member yielded before is above `at_most`.

    Args:
        order: Pool indices, best first. Up to 256 more are drawn than are yielded.
        embeddings: `(N, d)`, of any length.
        at_most: In (0, 1]. With 1, every member is yielded.

    Raises:
        ValueError: `at_most` is not in (0, 1].
    """
    if not 0 < at_most <= 1:
        raise ValueError(f"`at_most` is a cosine above 0 and at most 1, but got {at_most!r}.")
    # Rounding may bring the cosine of two copies above 1.
    limit = at_most + TIE if at_most < 1 else np.inf
    return _skip_similar(iter(order), embeddings, limit)


def _skip_similar(order: Iterator[int], embeddings: Embeddings, limit: float) -> Iterator[int]:
    blocks: list[Embeddings] = []  # rows of length 1 of the members yielded so far
    while drawn := list(islice(order, DRAWN_AHEAD)):
        members = np.asarray(drawn)
        unit = _get_unit_rows(embeddings, members)
        is_new = np.ones(len(members), dtype=bool)
        for block in blocks:
            is_new &= (_multiply(unit, block) <= limit).all(axis=1)
        new = np.flatnonzero(is_new)
        is_similar = _multiply(unit[new], unit[new]) > limit
        is_kept = np.zeros(len(new), dtype=bool)
        for row in range(len(new)):
            is_kept[row] = not (is_similar[row] & is_kept).any()
        kept = new[is_kept]
        yield from members[kept].tolist()
        blocks.append(unit[kept])
        # Blocks of similar size are joined, so that there are about log2(kept / 256) products a draw. Joining all
        # blocks at every draw would copy all kept rows each time.
        while len(blocks) > 1 and blocks[-2].shape[0] <= 2 * blocks[-1].shape[0]:
            blocks[-2:] = [_stack(blocks[-2:])]


def order_by_facility_location(candidates: np.ndarray, embeddings: Embeddings) -> Iterator[int]:
    """
    Yields the candidates in the order of greedy maximisation of facility location.

    F(S) = sum over candidates v of max over s in S of max(cosine(v, s), 0) (Lin and Bilmes 2011; Mirzasoleiman et al.
    2013). The next candidate is the one with the largest gain in F, ties by position. Gains are ties within 1e-6 times
    the larger of F and the root of the number of candidates, the rounding of their sums.

    Args:
        candidates: `(k,)` distinct pool indices. The first one costs all k x k cosines.
        embeddings: `(N, d)`, of any length.
    """
    candidates = np.asarray(candidates)
    count = len(candidates)
    similarities = _SimilarityCache(_get_unit_rows(embeddings, candidates))
    covered = np.zeros(count, dtype=np.float32)
    # F is submodular: gains only fall as S grows, so that an earlier gain is an upper bound (Minoux 1978). Only those
    # whose bound reaches the best gain are computed again, which spares most of the k x k similarities of each step.
    bounds = np.full(count, np.inf)
    for _ in range(count):
        best, at_once, reached = 0.0, GAINS_AT_ONCE, float(covered.sum(dtype=np.float64))
        tie = TIE * max(count**0.5, reached)
        is_stale = bounds > tie
        while len(pending := np.flatnonzero(is_stale & (bounds >= best - tie))):
            batch = _pick_highest(pending, bounds, at_once)
            bounds[batch] = _compute_gains(similarities.get_rows(batch), covered)
            is_stale[batch] = False
            best, at_once = max(best, bounds[batch].max()), min(2 * at_once, MOST_GAINS_AT_ONCE)
            # A row whose length was rounded up has all its cosines too large, so that the errors of a sum add up rather
            # than cancel: on one machine the gains of 50 copies lay 1.5e-5 apart, twice the first tolerance.
            tie = TIE * max(count**0.5, reached + best)
        chosen = int((bounds >= best - tie).argmax())
        yield int(candidates[chosen])
        np.maximum(covered, similarities.get_rows(np.asarray([chosen]))[0], out=covered)
        bounds[chosen] = -np.inf


def _pick_highest(positions: np.ndarray, bounds: np.ndarray, most: int) -> np.ndarray:
    """Returns up to `most` of the positions, those with the highest bounds."""
    if len(positions) <= most:
        return positions
    return positions[np.argpartition(-bounds[positions], most)[:most]]


def _compute_gains(similarities: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """
    Returns `(R,)` by how much each of R candidates would raise F.

    Args:
        similarities: `(R, k)` of these to all candidates. Overwritten.
        covered: `(k,)` highest similarity of each candidate to those taken so far.
    """
    similarities -= covered
    return np.maximum(similarities, 0, out=similarities).sum(axis=1, dtype=np.float64)


class _SimilarityCache:
    """
    Rows of the `(k, k)` cosines between candidates, computed when asked for.

    The rows computed last are kept, within the memory of `MOST_CACHED`.

    Args:
        unit: `(k, d)` rows of length 1.
    """

    def __init__(self, unit: Embeddings) -> None:
        count = unit.shape[0]
        capacity = min(count, max(1, MOST_CACHED**2 // max(1, count)))
        self._multiply = prepare_products(unit, np.arange(count))
        self._cached = np.empty((capacity, count), dtype=np.float32)
        self._candidate_in = np.full(capacity, -1)  # by place in the cache
        self._place_of = np.full(count, -1)  # by candidate
        self._next_place = 0

    def get_rows(self, wanted: np.ndarray) -> np.ndarray:
        """Returns `(R, k)` cosines of R candidates, a copy."""
        place = self._place_of[wanted]
        is_cached = place >= 0
        if is_cached.all():
            return self._cached[place]
        rows = np.empty((len(wanted), len(self._place_of)), dtype=np.float32)
        rows[is_cached] = self._cached[place[is_cached]]
        rows[~is_cached] = self._multiply(wanted[~is_cached])
        self._store(wanted[~is_cached], rows[~is_cached])
        return rows

    def _store(self, computed: np.ndarray, rows: np.ndarray) -> None:
        """Overwrites the rows that were computed first."""
        capacity = len(self._candidate_in)
        computed, rows = computed[:capacity], rows[:capacity]
        places = (self._next_place + np.arange(len(computed))) % capacity
        overwritten = self._candidate_in[places]
        self._place_of[overwritten[overwritten >= 0]] = -1
        self._cached[places], self._candidate_in[places], self._place_of[computed] = rows, computed, places
        self._next_place = (self._next_place + len(computed)) % capacity


def order_by_marginal_relevance(
    candidates: np.ndarray, relevance: np.ndarray, embeddings: Embeddings, weight: float
) -> Iterator[int]:
    """
    Yields the candidates in the order of maximal marginal relevance (Carbonell and Goldstein 1998).

    The next candidate has the highest weight * relevance - (1 - weight) * (highest cosine with one taken before), ties
    by position. The first one has no cosine to subtract. Relevance is scaled to [0, 1] over the candidates. Where all
    are equally relevant, relevance is 0.

    Args:
        candidates: `(k,)` distinct pool indices.
        relevance: `(k,)`, finite.
        embeddings: `(N, d)`, of any length.
        weight: In [0, 1]. With 1, relevance alone decides. With 0, cosines alone do.

    Raises:
        ValueError: `weight` is not in [0, 1], or `relevance` is not finite or not one number for each candidate.
    """
    candidates, relevance = np.asarray(candidates), np.asarray(relevance, dtype=np.float64)
    if not 0 <= weight <= 1:
        raise ValueError(f"`weight` is a number from 0 to 1, but got {weight!r}.")
    if relevance.shape != candidates.shape:
        raise ValueError(
            f"`relevance` has the shape {relevance.shape}, but there are {len(candidates)} candidates: give one number "
            "for each of them."
        )
    if not np.isfinite(relevance).all():
        raise ValueError("`relevance` holds NaN or infinite values: leave those candidates out.")
    return _order_by_relevance(candidates, weight * _scale_to_unit_range(relevance), embeddings, 1 - weight)


def _order_by_relevance(
    candidates: np.ndarray, weighted_relevance: np.ndarray, embeddings: Embeddings, penalty: float
) -> Iterator[int]:
    count = len(candidates)
    multiply = prepare_products(_get_unit_rows(embeddings, candidates), np.arange(count))
    highest_cosine = np.full(count, -np.inf, dtype=np.float32)
    scores = weighted_relevance.copy()
    is_left = np.ones(count, dtype=bool)
    for _ in range(count):
        scores[~is_left] = -np.inf
        chosen = int((scores >= scores.max() - penalty * TIE).argmax())
        yield int(candidates[chosen])
        is_left[chosen] = False
        np.maximum(highest_cosine, multiply(np.asarray([chosen]))[0], out=highest_cosine)
        scores = weighted_relevance - penalty * highest_cosine


def _scale_to_unit_range(values: np.ndarray) -> np.ndarray:
    if len(values) == 0 or values.min() == values.max():
        return np.zeros(len(values))
    return (values - values.min()) / (values.max() - values.min())


def _get_unit_rows(embeddings: Embeddings, indices: np.ndarray) -> Embeddings:
    """Returns float32 rows of length 1. Those that contain NaN or infinity become zeros, so that no product is NaN."""
    rows = embeddings[indices].astype(np.float32)
    if isinstance(rows, np.ndarray):
        rows[~np.isfinite(rows).all(axis=1)] = 0
    else:
        row = find_entry_rows(rows)
        rows.data[np.isin(row, row[~np.isfinite(rows.data)])] = 0
    return normalise_rows(rows)


def _multiply(left: Embeddings, right: Embeddings) -> np.ndarray:
    """Returns the `(L, R)` products of all rows with all rows."""
    products = left @ right.T
    return products if isinstance(products, np.ndarray) else products.toarray()


def _stack(blocks: list[Embeddings]) -> Embeddings:
    if isinstance(blocks[0], np.ndarray):
        return np.concatenate(blocks)
    return scipy.sparse.vstack(blocks, format="csr")
