"""Draws by rank, against probabilities that are worked out by hand and by enumeration."""

from itertools import permutations
from math import exp, prod
from typing import Any

import numpy as np
import pytest

from miwv_trainer import MIWVConfig
from miwv_trainer.selection.choose import choose
from miwv_trainer.selection.ranking import draw_by_rank
from tests.helpers.measured import drawn, measured

DRAWS = 4_000


def count_drawn(ranked: list[int], scale: float, taken: int) -> np.ndarray:
    """`(len(ranked),)` in how many draws each rank is among the first `taken`."""
    counts = np.zeros(len(ranked))
    for seed in range(DRAWS):
        order = draw_by_rank(np.asarray(ranked), scale, 9, (seed, 0))
        assert sorted(order.tolist()) == sorted(ranked)
        counts += np.isin(ranked, order[:taken])
    return counts


def enumerate_probabilities(count: int, scale: float, taken: int) -> np.ndarray:
    """Of being among the first `taken` that are drawn one after the other, over all orders."""
    weights = [exp(-rank / scale) for rank in range(count)]
    found = np.zeros(count)
    for order in permutations(range(count), taken):
        left = [sum(weights) - sum(weights[i] for i in order[:place]) for place in range(taken)]
        found[list(order)] += prod(weights[i] / rest for i, rest in zip(order, left, strict=True))
    return found


def test_the_first_is_drawn_by_weights_that_fall_with_the_rank() -> None:
    # exp(0), exp(-1/2) and exp(-1) are 1, 0.6065 and 0.3679, together 1.9744.
    expected = np.array([0.5065, 0.3072, 0.1863])
    counts = count_drawn([4, 7, 2], 2.0, 1)
    np.testing.assert_allclose(counts / DRAWS, expected, atol=4 * (0.25 / DRAWS) ** 0.5)
    np.testing.assert_allclose(enumerate_probabilities(3, 2.0, 1), expected, atol=1e-4)


@pytest.mark.parametrize("taken", [2, 3])
def test_several_are_drawn_without_replacement(taken: int) -> None:
    expected = enumerate_probabilities(5, 1.5, taken)
    assert expected.sum() == pytest.approx(taken)
    counts = count_drawn([8, 0, 3, 5, 1], 1.5, taken)
    np.testing.assert_allclose(counts / DRAWS, expected, atol=4 * (0.25 / DRAWS) ** 0.5)


def chosen(table: Any, **values: Any) -> list[int]:
    config = MIWVConfig(**{"fraction": 0.2, "selection": "sample", **values})
    return choose(table, np.ones(len(table.response_tokens), dtype=bool), config).selection.tolist()


def test_a_selection_is_drawn_by_seed_and_round_and_has_the_size_of_the_top() -> None:
    table = drawn(3, 200)
    top = chosen(table, selection="top")
    selections = [chosen(measured(table.miwv, draw=draw)) for draw in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert selections[0] == selections[1]
    assert len({tuple(selection) for selection in selections}) == 3
    assert {len(selection) for selection in selections} == {len(top)} == {40}


def test_the_temperature_goes_from_the_top_to_draws_at_random() -> None:
    table = measured(np.arange(200) / 64)
    ranks = {}
    for temperature in (0.01, 0.5, 1.0, 1e6):
        found = [
            199 - np.asarray(chosen(measured(table.miwv, draw=(seed, 0)), temperature=temperature))
            for seed in range(50)
        ]
        ranks[temperature] = np.mean(found)
    assert ranks[0.01] == pytest.approx(19.5, abs=0.05)  # the 40 highest, but for a swap at the end
    assert 25 < ranks[0.5] < ranks[1.0] < 80
    assert ranks[1e6] == pytest.approx(99.5, abs=4 * 57.7 / 2000**0.5)


def test_the_distance_in_ranks_is_a_multiple_of_the_selection() -> None:
    """Of ten ranked samples and a fraction of 0.2, the probability falls by exp(1 / temperature) over two ranks."""
    counts = np.zeros(10)
    for seed in range(DRAWS):
        table = measured(np.arange(10)[::-1], draw=(seed, 0))
        counts += np.isin(np.arange(10), chosen(table, fraction=0.2, temperature=3.0))
    np.testing.assert_allclose(
        counts / DRAWS, enumerate_probabilities(10, 3.0 * 0.2 * 10, 2), atol=4 * (0.25 / DRAWS) ** 0.5
    )


def test_guards_groups_and_budgets_hold_for_draws() -> None:
    table = drawn(5, 120)
    tokens = table.response_tokens
    is_complete, groups = np.ones(120, dtype=bool), np.arange(120) % 3
    for seed in range(20):
        table = measured(table.miwv, tokens, table.similarity, draw=(seed, 0))
        config = MIWVConfig(fraction=0.1, selection="sample", min_response_tokens=20, quantile_band=[0, 0.9])
        choice = choose(table, is_complete, config, groups)
        assert np.bincount(groups[choice.selection]).tolist() == [4, 4, 4]
        assert (tokens[choice.selection] >= 20).all() and set(choice.selection) <= set(choice.ranked)
        by_tokens = MIWVConfig(fraction=0.1, selection="sample", selection_budget="tokens", temperature=4.0)
        assert 0 < tokens[choose(table, is_complete, by_tokens).selection].sum() <= int(0.1 * tokens.sum())
        assert choice.is_drawn and np.isnan(choice.distances).all()


def test_a_sample_that_a_guard_leaves_out_changes_no_other_draw() -> None:
    table = measured(np.zeros(30), draw=(2, 0))
    order = draw_by_rank(np.arange(30), 1e9, 30, table.draw)
    without = draw_by_rank(np.delete(np.arange(30), 11), 1e9, 30, table.draw)
    assert without.tolist() == [index for index in order if index != 11]


def test_draws_by_rank_and_random_scores_are_drawn_apart() -> None:
    """Else a draw by rank of random scores would be drawn from the numbers that ranked them."""
    numbers = np.random.default_rng((4, 0)).random(1000)
    order = draw_by_rank(np.arange(1000), 1e9, 1000, (4, 0))
    assert abs(np.corrcoef(np.argsort(order), numbers)[0, 1]) < 0.15


def test_nothing_is_drawn_of_nothing() -> None:
    table = measured(np.full(5, np.nan))
    assert chosen(table) == []
