"""What is taken of like samples: hand-worked, and against greedy choices written without any shortcut."""

from collections.abc import Callable, Iterator
from itertools import count, islice

import numpy as np
import pytest
import scipy.sparse

from miwv_trainer.embeddings.vectors import Embeddings
from miwv_trainer.selection import diversity
from miwv_trainer.selection.diversity import (
    order_by_facility_location,
    order_by_marginal_relevance,
    skip_near_duplicates,
)

NAN, INF = float("nan"), float("inf")
ROUNDING = 1e-5  # more than float32's on these, far less than what lies between the gains of two random candidates
# Unit vectors at these angles; cosines: 0-1 0.966, 0-2 0.5, 1-2 0.707, 0-3 0, 1-3 0.259, 2-3 0.866.
FAN = np.asarray([[np.cos(angle), np.sin(angle)] for angle in np.deg2rad([0, 15, 60, 90])], dtype=np.float32)


def vectors(samples: int, seed: int, copies: int = 0) -> np.ndarray:
    """Small integers, of different lengths, some negative, the last ones copies of the first at twice the length."""
    drawn = np.random.default_rng(seed).integers(-3, 6, size=(samples - copies, 5)).astype(np.float32)
    return np.concatenate([drawn, 2 * drawn[:copies]])


def cosines(embeddings: np.ndarray) -> np.ndarray:
    exact = embeddings.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1)
    return exact @ exact.T / np.outer(lengths, lengths).clip(1e-30)


def greedily(size: int, value: Callable[[list[int], int], float]) -> list[int]:
    """All positions, each next the first of highest value, which is computed anew for every one at every step."""
    taken: list[int] = []
    while len(taken) < size:
        values = {position: value(taken, position) for position in range(size) if position not in taken}
        best = max(values.values())
        taken.append(next(position for position, found in values.items() if found >= best - ROUNDING))
    return taken


def facility_gain(similar: np.ndarray) -> Callable[[list[int], int], float]:
    def covered(taken: list[int]) -> float:
        return sum(max([0.0, *(similar[v, s] for s in taken)]) for v in range(len(similar)))

    return lambda taken, position: covered([*taken, position]) - covered(taken)


@pytest.fixture(params=["dense", "sparse"])
def as_given(request: pytest.FixtureRequest) -> Callable[[np.ndarray], Embeddings]:
    return scipy.sparse.csr_matrix if request.param == "sparse" else np.asarray


@pytest.mark.parametrize(
    "at_most, passed_on", [(1.0, [0, 1, 2, 3]), (0.9, [0, 2, 3]), (0.8, [0, 2]), (0.6, [0, 2]), (0.4, [0, 3])]
)
def test_a_fan_without_near_duplicates(as_given, at_most: float, passed_on: list[int]) -> None:
    assert list(skip_near_duplicates(range(4), as_given(7 * FAN), at_most)) == passed_on


def test_the_order_decides_which_of_two_near_duplicates_stays(as_given) -> None:
    found = list(skip_near_duplicates(np.asarray([3, 2, 1, 0]), as_given(FAN), 0.8))
    assert found == [3, 1] and all(type(index) is int for index in found)


@pytest.mark.parametrize("ahead", [1, 7, 256])
@pytest.mark.parametrize("at_most", [0.5, 0.9, 0.99])
def test_what_is_passed_on_is_unlike_and_what_is_left_out_is_like_one_before(
    monkeypatch, as_given, at_most: float, ahead: int
) -> None:
    monkeypatch.setattr(diversity, "DRAWN_AHEAD", ahead)
    embeddings = vectors(120, seed=1, copies=20)
    order = np.random.default_rng(0).permutation(120)
    found = list(skip_near_duplicates(iter(order), as_given(embeddings), at_most))
    similar = cosines(embeddings)
    among = similar[np.ix_(found, found)] - 2 * np.eye(len(found))
    assert 5 < len(found) < 100 and among.max() <= at_most + ROUNDING
    rank = {int(index): place for place, index in enumerate(order)}
    assert [rank[index] for index in found] == sorted(rank[index] for index in found)
    for left_out in set(range(120)) - set(found):
        before = [index for index in found if rank[index] < rank[left_out]]
        assert similar[left_out, before].max() > at_most - ROUNDING


def test_copies_are_left_out_below_1_and_passed_on_at_1(as_given) -> None:
    embeddings = np.random.default_rng(0).standard_normal((400, 300)).repeat(2, axis=0)
    assert list(skip_near_duplicates(range(800), as_given(embeddings), 0.999)) == list(range(0, 800, 2))
    assert list(skip_near_duplicates(range(800), as_given(embeddings), 1)) == list(range(800))


def test_no_rounding_makes_copies_more_than_alike() -> None:
    # Of length 1, but a sparse product sums 20,000 float32 terms one by one.
    embeddings = scipy.sparse.csr_matrix(np.full((2, 20_000), 20_000**-0.5, dtype=np.float32))
    assert (embeddings @ embeddings.T).max() > 1 + 1e-6
    assert list(skip_near_duplicates(range(2), embeddings, 1)) == [0, 1]


def test_only_a_chunk_is_drawn_ahead() -> None:
    drawn = []

    def order() -> Iterator[int]:
        for index in count():
            drawn.append(index)
            yield index % 4

    assert list(islice(skip_near_duplicates(order(), FAN, 1.0), 3)) == [0, 1, 2]
    assert 3 <= len(drawn) <= 300


def test_facility_location_of_a_fan(as_given) -> None:
    # Sums of each one's cosines: 2.466, 2.932, 3.073, 2.125, and 1 for the last, to which none is like: 2 is first.
    # It covers 0.5, 0.707, 1, 0.866 and 0, so the last adds 1. Then 0 adds 0.5 + 0.259, 1 adds 0.466 + 0.293, the same,
    # and 3 adds 0.134. Behind 0, 1 adds 0.034.
    fan = np.concatenate([FAN, [[0, -3]]]).astype(np.float32)
    assert list(order_by_facility_location(np.arange(5), as_given(fan))) == [2, 4, 0, 3, 1]


@pytest.mark.parametrize("most_cached", [16_384, 20, 2])
@pytest.mark.parametrize("at_once", [1, 5, 32])
@pytest.mark.parametrize("seed", range(4))
def test_lazy_facility_location_is_the_greedy_one(
    monkeypatch, as_given, seed: int, at_once: int, most_cached: int
) -> None:
    monkeypatch.setattr(diversity, "GAINS_AT_ONCE", at_once)
    monkeypatch.setattr(diversity, "MOST_CACHED", most_cached)
    embeddings = vectors(60, seed, copies=6)
    candidates = np.random.default_rng(seed).permutation(60)[:40]
    expected = candidates[greedily(40, facility_gain(cosines(embeddings[candidates])))]
    found = list(order_by_facility_location(candidates, as_given(embeddings)))
    assert found == expected.tolist() and all(type(index) is int for index in found)


def test_facility_location_computes_few_rows_anew(monkeypatch) -> None:
    computed = []
    gains = diversity._compute_gains

    def counted(similarities: np.ndarray, covered: np.ndarray) -> np.ndarray:
        computed.append(len(similarities))
        return gains(similarities, covered)

    monkeypatch.setattr(diversity, "_compute_gains", counted)
    embeddings = np.random.default_rng(0).standard_normal((600, 20)).astype(np.float32)
    list(islice(order_by_facility_location(np.arange(600), embeddings), 60))
    assert 600 <= sum(computed) < 600 * 60 / 4


def test_maximal_marginal_relevance_of_a_fan(as_given) -> None:
    # Relevance in [0, 1]: 1, 0.8, 0.5, 0. First 0. Then halves of 0.8 - 0.966, 0.5 - 0.5, 0 - 0: 2 and 3 tie.
    # Behind 0 and 2: halves of 0.8 - 0.966 = -0.166 and of 0 - 0.866.
    found = order_by_marginal_relevance(np.arange(4), np.asarray([30, 28, 25, 20]), as_given(FAN), 0.5)
    assert list(found) == [0, 2, 1, 3]


@pytest.mark.parametrize("weight", [0, 0.3, 0.7, 1])
@pytest.mark.parametrize("seed", range(3))
def test_maximal_marginal_relevance_is_what_its_formula_says(as_given, seed: int, weight: float) -> None:
    embeddings = vectors(60, seed, copies=6)
    generator = np.random.default_rng(seed)
    candidates, relevance = generator.permutation(60)[:40], generator.integers(-5, 6, size=40).astype(float)
    similar, worth = cosines(embeddings[candidates]), (relevance - relevance.min()) / np.ptp(relevance)

    def value(taken: list[int], position: int) -> float:
        return weight * worth[position] - (1 - weight) * max((similar[position, s] for s in taken), default=0.0)

    found = list(order_by_marginal_relevance(candidates, relevance, as_given(embeddings), weight))
    assert found == candidates[greedily(40, value)].tolist() and all(type(index) is int for index in found)


def test_the_extremes_of_marginal_relevance() -> None:
    relevance = np.asarray([1.0, 1 + 1e-9, 1e6, 1.0])  # apart by less than rounding once in [0, 1], yet not equal
    assert list(order_by_marginal_relevance(np.arange(4), relevance, FAN, 1)) == [2, 1, 0, 3]
    # Cosines alone: the first, the one farthest from it, then the one whose nearest is farthest.
    assert list(order_by_marginal_relevance(np.arange(4), relevance, FAN, 0)) == [0, 3, 2, 1]
    # Equal relevance is none at all.
    assert list(order_by_marginal_relevance(np.arange(4), np.full(4, 3.0), FAN, 0.5)) == [0, 3, 2, 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(10))
def test_copies_tie_by_position(as_given, seed: int, dtype: type) -> None:
    copy = np.random.default_rng(seed).standard_normal((1, 300))
    embeddings = (copy.repeat(50, axis=0) * np.arange(1, 51)[:, None]).astype(dtype)
    order = np.random.default_rng(1).permutation(50)
    assert list(order_by_facility_location(order, as_given(embeddings))) == order.tolist()
    assert list(order_by_marginal_relevance(order, np.ones(50), as_given(embeddings), 0.5)) == order.tolist()


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_rows_that_are_not_finite_are_like_nothing(as_given, bad: float) -> None:
    embeddings = np.asarray([[1, 0], [bad, 1], [2, 0], [1, bad], [0, 0], [0, 1]], dtype=np.float32)
    given = as_given(embeddings)
    assert list(skip_near_duplicates(range(6), given, 0.5)) == [0, 1, 3, 4, 5]
    # 0 covers itself and 2, 5 itself, the others nothing.
    assert list(order_by_facility_location(np.arange(6), given)) == [0, 5, 1, 2, 3, 4]
    assert list(order_by_marginal_relevance(np.arange(6), np.zeros(6), given, 0.5)) == [0, 1, 3, 4, 5, 2]
    np.testing.assert_array_equal(np.asarray(given.todense() if scipy.sparse.issparse(given) else given), embeddings)


def test_no_candidates_give_nothing(as_given) -> None:
    none = np.empty(0, dtype=np.int64)
    assert list(skip_near_duplicates(none, as_given(FAN), 0.5)) == []
    assert list(order_by_facility_location(none, as_given(FAN))) == []
    assert list(order_by_marginal_relevance(none, np.empty(0), as_given(FAN), 0.5)) == []


@pytest.mark.parametrize("at_most", [0, -0.5, 1.01, NAN])
def test_a_cosine_that_cannot_be_is_told_before_anything_is_drawn(at_most: float) -> None:
    with pytest.raises(ValueError, match=rf"`at_most` is a cosine above 0 and at most 1, but got {at_most}"):
        skip_near_duplicates(range(4), FAN, at_most)


@pytest.mark.parametrize("weight", [-0.1, 1.5, NAN])
def test_a_weight_that_cannot_be_is_told(weight: float) -> None:
    with pytest.raises(ValueError, match=rf"`weight` is a number from 0 to 1, but got {weight}"):
        order_by_marginal_relevance(np.arange(4), np.ones(4), FAN, weight)


def test_a_relevance_that_cannot_be_used_is_told() -> None:
    with pytest.raises(ValueError, match=r"`relevance` has the shape \(3,\), but there are 4 candidates"):
        order_by_marginal_relevance(np.arange(4), np.ones(3), FAN, 0.5)
    with pytest.raises(ValueError, match="`relevance` holds NaN or infinite values"):
        order_by_marginal_relevance(np.arange(4), np.asarray([1, NAN, 2, 3]), FAN, 0.5)
