"""Which of like samples are taken: near-duplicates left out, facility location, maximal marginal relevance.

Each gives pool indices one by one, as many as the caller takes. Likeness is the cosine of two embeddings; a row that is
not finite, or zero, is like nothing, itself included.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import scipy.sparse

from miwv_trainer.embeddings.vectors import TIE, Embeddings, find_entry_rows, normalise_rows, prepare_products

DRAWN_AHEAD = 256
# Candidates whose similarities with each other are all held, 1 GiB of float32. Of more, as many rows as fit in that.
MOST_HELD = 16_384
# At first, and doubled up to the most: where many bounds are too high, wide products cost half as much each.
GAINS_AT_ONCE = 32
MOST_GAINS_AT_ONCE = 256


def without_near_duplicates(order: Iterable[int], embeddings: Embeddings, at_most: float) -> Iterator[int]:
    """
    The members of `order` in turn, but those whose cosine with one that was passed on before is above `at_most`.

    Args:
        order: Pool indices, the best first. Up to 256 are drawn ahead of what is passed on.
        embeddings: `(N, d)`, of any length.
        at_most: In (0, 1]. 1 leaves nothing out.

    Raises:
        ValueError: `at_most` is not in (0, 1].
    """
    if not 0 < at_most <= 1:
        raise ValueError(f"`at_most` is a cosine above 0 and at most 1, but got {at_most!r}.")
    # Rounding may bring the cosine of two copies above 1.
    return _unlike(iter(order), embeddings, at_most + TIE if at_most < 1 else np.inf)


def _unlike(order: Iterator[int], embeddings: Embeddings, limit: float) -> Iterator[int]:
    blocks: list[Embeddings] = []  # unit rows of those passed on
    while drawn := list(islice(order, DRAWN_AHEAD)):
        members = np.asarray(drawn)
        unit = _unit_rows(embeddings, members)
        is_new = np.ones(len(members), dtype=bool)
        for block in blocks:
            is_new &= (_products(unit, block) <= limit).all(axis=1)
        new = np.flatnonzero(is_new)
        is_like = _products(unit[new], unit[new]) > limit
        is_kept = np.zeros(len(new), dtype=bool)
        for row in range(len(new)):
            is_kept[row] = not (is_like[row] & is_kept).any()
        kept = new[is_kept]
        yield from members[kept].tolist()
        blocks.append(unit[kept])
        # Each row is copied as often as its block doubles, so that many rows make few products.
        while len(blocks) > 1 and blocks[-2].shape[0] <= 2 * blocks[-1].shape[0]:
            blocks[-2:] = [_stacked(blocks[-2:])]


def facility_location(candidates: np.ndarray, embeddings: Embeddings) -> Iterator[int]:
    """
    The candidates in the order of greedy maximisation of facility location.

    F(S) = sum over candidates v of max over s in S of max(cosine(v, s), 0) (Lin and Bilmes 2011; Mirzasoleiman et al.
    2013): each next candidate is the one that raises F most, ties by position. F is submodular, so what a candidate
    raises it by only falls, and an earlier value is a bound: only those whose bound reaches the best are computed anew
    (Minoux 1978). Gains within 1e-6 times the root of the number of candidates, the rounding of their sums, are ties.

    Args:
        candidates: `(k,)` distinct pool indices. The first one costs all k x k cosines.
        embeddings: `(N, d)`, of any length.
    """
    candidates = np.asarray(candidates)
    count = len(candidates)
    similarities = _Similarities(_unit_rows(embeddings, candidates))
    covered = np.zeros(count, dtype=np.float32)
    bounds = np.full(count, np.inf)
    tie = TIE * count**0.5
    for _ in range(count):
        best, at_once = 0.0, GAINS_AT_ONCE
        is_stale = bounds > tie
        while len(pending := np.flatnonzero(is_stale & (bounds >= best - tie))):
            batch = _highest(pending, bounds, at_once)
            bounds[batch] = _gains(similarities.rows(batch), covered)
            is_stale[batch] = False
            best, at_once = max(best, bounds[batch].max()), min(2 * at_once, MOST_GAINS_AT_ONCE)
        chosen = int((bounds >= best - tie).argmax())
        yield int(candidates[chosen])
        np.maximum(covered, similarities.rows(np.asarray([chosen]))[0], out=covered)
        bounds[chosen] = -np.inf


def _highest(positions: np.ndarray, bounds: np.ndarray, most: int) -> np.ndarray:
    if len(positions) <= most:
        return positions
    return positions[np.argpartition(-bounds[positions], most)[:most]]


def _gains(similarities: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """What each row of `(R, k)` similarities, which is overwritten, adds to the `(k,)` highest ones so far."""
    similarities -= covered
    return np.maximum(similarities, 0, out=similarities).sum(axis=1, dtype=np.float64)


class _Similarities:
    """Rows of the cosines of all with all. Those computed last are held; `unit` is `(k, d)`."""

    def __init__(self, unit: Embeddings) -> None:
        count = unit.shape[0]
        capacity = min(count, max(1, MOST_HELD**2 // max(1, count)))
        self._products = prepare_products(unit, np.arange(count))
        self._held = np.empty((capacity, count), dtype=np.float32)
        self._holder = np.full(capacity, -1)  # whose row lies in each place
        self._place = np.full(count, -1)
        self._next = 0

    def rows(self, wanted: np.ndarray) -> np.ndarray:
        """`(R, k)`, a copy."""
        place = self._place[wanted]
        is_held = place >= 0
        if is_held.all():
            return self._held[place]
        rows = np.empty((len(wanted), len(self._place)), dtype=np.float32)
        rows[is_held] = self._held[place[is_held]]
        rows[~is_held] = self._products(wanted[~is_held])
        self._hold(wanted[~is_held], rows[~is_held])
        return rows

    def _hold(self, computed: np.ndarray, rows: np.ndarray) -> None:
        capacity = len(self._holder)
        computed, rows = computed[:capacity], rows[:capacity]
        places = (self._next + np.arange(len(computed))) % capacity
        earlier = self._holder[places]
        self._place[earlier[earlier >= 0]] = -1
        self._held[places], self._holder[places], self._place[computed] = rows, computed, places
        self._next = (self._next + len(computed)) % capacity


def maximal_marginal_relevance(
    candidates: np.ndarray, relevance: np.ndarray, embeddings: Embeddings, weight: float
) -> Iterator[int]:
    """
    The candidates in the order of maximal marginal relevance (Carbonell and Goldstein 1998).

    Each next candidate has the highest weight * relevance - (1 - weight) * (highest cosine with one taken before, 0 for
    the first), ties by position. Relevance is brought to [0, 1] by the lowest and the highest of the candidates; where
    all are equal, all are 0.

    Args:
        candidates: `(k,)` distinct pool indices.
        relevance: `(k,)`, finite.
        embeddings: `(N, d)`, of any length.
        weight: In [0, 1]. At 1 relevance alone decides, at 0 cosines alone.

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
    return _marginally_relevant(candidates, weight * _to_unit_range(relevance), embeddings, 1 - weight)


def _marginally_relevant(
    candidates: np.ndarray, worth: np.ndarray, embeddings: Embeddings, penalty: float
) -> Iterator[int]:
    count = len(candidates)
    products = prepare_products(_unit_rows(embeddings, candidates), np.arange(count))
    likeness = np.full(count, -np.inf, dtype=np.float32)
    scores = worth.copy()
    is_left = np.ones(count, dtype=bool)
    for _ in range(count):
        scores[~is_left] = -np.inf
        chosen = int((scores >= scores.max() - penalty * TIE).argmax())
        yield int(candidates[chosen])
        is_left[chosen] = False
        np.maximum(likeness, products(np.asarray([chosen]))[0], out=likeness)
        scores = worth - penalty * likeness


def _to_unit_range(values: np.ndarray) -> np.ndarray:
    if len(values) == 0 or values.min() == values.max():
        return np.zeros(len(values))
    return (values - values.min()) / (values.max() - values.min())


def _unit_rows(embeddings: Embeddings, indices: np.ndarray) -> Embeddings:
    """The float32 rows of some samples at length 1, those that are not finite as zeros."""
    rows = embeddings[indices].astype(np.float32)
    if isinstance(rows, np.ndarray):
        rows[~np.isfinite(rows).all(axis=1)] = 0
    else:
        row = find_entry_rows(rows)
        rows.data[np.isin(row, row[~np.isfinite(rows.data)])] = 0
    return normalise_rows(rows)


def _products(left: Embeddings, right: Embeddings) -> np.ndarray:
    found = left @ right.T
    return found if isinstance(found, np.ndarray) else found.toarray()


def _stacked(blocks: list[Embeddings]) -> Embeddings:
    if isinstance(blocks[0], np.ndarray):
        return np.concatenate(blocks)
    return scipy.sparse.vstack(blocks, format="csr")
