"""What is chosen under guards, groups, budgets and diversity: worked by hand, and what holds for any pool."""

from dataclasses import replace

import numpy as np
import pytest

from miwv_trainer.config import MIWVConfig
from miwv_trainer.selection import choose as selection
from miwv_trainer.selection.choose import Choice, choose, compute_overlap
from tests.helpers.measured import INF, NAN, drawn, measured
from tests.helpers.selecting import select_highest

#       0    1    2     3    4    5    6    7    8    9
MIWV = [0.5, 0.9, -0.2, 0.8, 0.1, NAN, 0.7, 0.9, 0.6, 0.3]
TOKENS = [40, 10, 30, 25, 5, 90, 20, 15, 35, 30]  # 300 in all
ALL = np.ones(10, dtype=bool)


def chosen(fraction: float, groups=None, embeddings=None, table=None, has=ALL, **values) -> list[int]:
    table = measured(MIWV, TOKENS) if table is None else table
    groups = None if groups is None else np.asarray(groups)
    return choose(table, has, MIWVConfig(fraction=fraction, **values), groups, embeddings).selection.tolist()


def select(miwv, count: int) -> list[int]:
    """What is chosen of samples with these values of MIWV, no guard being set."""
    table = measured(miwv, [1] * len(miwv))
    fraction = min(1.0, (count + 0.5) / len(miwv))  # the floor is taken of so many
    return choose(table, np.ones(len(miwv), dtype=bool), MIWVConfig(fraction=fraction)).selection.tolist()


def test_the_highest_scores_are_selected_in_ascending_index_order():
    miwv = [0.1, -0.5, 0.9, 0.3, 0.8]
    assert select(miwv, 3) == [2, 3, 4]
    assert select(miwv, 1) == [2]


def test_equal_scores_are_selected_by_lower_index():
    miwv = [0.5, 0.7, 0.5, 0.7, 0.5, 0.7]
    assert select(miwv, 2) == [1, 3]
    assert select(miwv, 4) == [0, 1, 3, 5]
    assert select([0.0] * 100, 7) == list(range(7))


def test_a_selection_equals_sorting_by_score_and_index():
    generator = np.random.default_rng(0)
    miwv = generator.integers(-5, 5, size=200).astype(np.float32)  # many ties
    for count in (1, 2, 50, 199, 200):
        assert select(miwv, count) == select_highest(miwv, count).tolist()


def test_a_sample_without_a_score_is_never_selected():
    miwv = [NAN, -3.0, NAN, -4.0]
    assert select(miwv, 1) == [1]
    assert select(miwv, 2) == [1, 3]


def test_fewer_scored_samples_than_asked_are_all_selected():
    assert select([NAN, 0.2, NAN, 0.1], 4) == [1, 3]
    assert select([NAN] * 3, 2) == []


@pytest.mark.parametrize(
    "fraction, expected",
    [(0.1, [1]), (0.2, [1, 7]), (0.3, [1, 3, 7]), (0.5, [1, 3, 6, 7, 8]), (1.0, [0, 1, 2, 3, 4, 6, 7, 8, 9])],
)
def test_the_highest_scores_by_hand(fraction, expected):
    assert chosen(fraction) == expected


def test_a_choice_tells_what_it_was_made_from():
    config = MIWVConfig(fraction=0.3, min_response_tokens=20)
    choice = choose(measured(MIWV, TOKENS), ALL, config)
    assert choice.selection.tolist() == [3, 6, 8]
    assert choice.ranked.tolist() == [3, 6, 8, 0, 9, 2]
    np.testing.assert_array_equal(choice.scores, np.float32(MIWV) + np.float32(2) - np.float32(2))
    assert choice.cells.tolist() == [0, -1, 0, 0, -1, -1, 0, -1, 0, 0]
    assert choice.left_out == {"min_response_tokens=20": 3}


@pytest.mark.parametrize("score", ["random", "longest", "miwv", "low_miwv"])
def test_samples_without_prompt_or_response_are_never_selected(score):
    has = np.array([False, True, True, True, False, False, True, True, True, False])  # 5 is the longest
    found = chosen(1.0, has=has, score=score)
    assert found == [1, 2, 3, 6, 7, 8]
    for fraction in (0.1, 0.3, 0.5):
        assert set(chosen(fraction, has=has, score=score)) <= {1, 2, 3, 6, 7, 8}


def test_the_longest_by_hand():
    assert chosen(0.4, score="longest") == [0, 2, 5, 8]  # 2 before 9, as long; 5 needs no loss


def test_nothing_to_choose_from_gives_no_selection():
    assert chosen(0.5, table=measured([NAN] * 10)) == []
    assert chosen(0.5, min_response_tokens=1000) == []


@pytest.mark.parametrize(
    "fraction, expected",
    [
        # In turn 1 (10 tokens), 7 (15), 3 (25), 6 (20), 8 (35), 0 (40), 9 (30), 4 (5), 2 (30).
        (0.03, []),  # 9 tokens: less than the first, which is selected all the same
        (0.1, [1, 7]),  # 30 tokens: 25 are taken, 3 would make 50; 4, of 5 tokens, does not fill the gap
        (0.17, [1, 3, 7]),  # 51: 50 are taken
        (0.166, [1, 7]),  # 49
        (0.35, [1, 3, 6, 7, 8]),  # 105, which is 300 * 0.35 on the digits
        (1.0, [0, 1, 2, 3, 4, 6, 7, 8, 9]),
    ],
)
def test_a_token_budget_is_taken_in_turn_until_the_next_would_exceed_it(fraction, expected):
    assert chosen(fraction, selection_budget="tokens") == (expected or [1])


@pytest.mark.parametrize("seed", range(20))
def test_a_token_budget_is_kept_and_only_the_next_sample_is_missing(seed):
    table = drawn(seed, 80)
    table = replace(table, one_shot_loss=table.one_shot_loss + np.linspace(0, 1e-4, 80, dtype=np.float32))
    config = MIWVConfig(fraction=(seed % 9 + 1) / 10, selection_budget="tokens")
    choice = choose(table, np.ones(80, dtype=bool), config)
    budget = (seed % 9 + 1) * int(table.response_tokens.sum()) // 10
    taken = len(choice.selection)
    assert sorted(choice.ranked[:taken]) == choice.selection.tolist()
    spent = int(table.response_tokens[choice.selection].sum())
    assert spent <= budget or taken == 1
    if taken < len(choice.ranked):
        assert spent + table.response_tokens[choice.ranked[taken]] > budget


def test_groups_keep_their_shares_by_hand():
    groups = [0, 0, 0, 0, 0, 0, 1, 1, 1, 2]
    # Of 5: 3 for the six, 1.5 for the three, 0.5 for the one; the remainders tie, and group 1 is first.
    assert chosen(0.5, groups) == [0, 1, 3, 6, 7]
    # Of 3: 1.8, 0.9, 0.3: two, one and none.
    assert chosen(0.3, groups) == [1, 3, 7]
    # Of 1: 0.6, 0.3, 0.1.
    assert chosen(0.1, groups) == [1]


def test_a_group_with_fewer_candidates_than_its_share_leaves_its_places_empty():
    # Without those of fewer than 20 tokens group 1 has one of its two.
    assert chosen(0.4, [0, 1, 0, 0, 1, 1, 0, 1, 1, 0], min_response_tokens=20) == [3, 6, 8]


def test_groups_divide_the_tokens_by_their_tokens():
    groups = [0, 1, 0, 1, 1, 0, 1, 1, 1, 1]  # 160 and 140 tokens
    # 150 tokens: 80 and 70. Group 0 has 0 (40), then 2 (30). Group 1 has 1 (10), 7 (15), 3 (25), 6 (20): 70 in all.
    assert chosen(0.5, groups, selection_budget="tokens") == [0, 1, 2, 3, 6, 7]
    # 75: 40 and 35. Group 0 has 0; group 1 has 1, 7, and 3 would make 50.
    assert chosen(0.25, groups, selection_budget="tokens") == [0, 1, 7]
    # 74.7, 39 (39.47 of 74) and 35 (34.53): one token short for 0.
    assert chosen(0.249, groups, selection_budget="tokens") == [1, 7]


@pytest.mark.parametrize("budget", ["samples", "tokens"])
@pytest.mark.parametrize("seed", range(25))
def test_every_group_is_within_one_of_its_share(seed, budget):
    rng = np.random.default_rng(seed)
    table, groups = drawn(seed, 150), rng.integers(0, rng.integers(1, 12), size=150)
    config = MIWVConfig(fraction=float(rng.integers(1, 60)) / 100, selection_budget=budget)
    choice = choose(table, np.ones(150, dtype=bool), config, groups)
    tokens = table.response_tokens
    costs = tokens if budget == "tokens" else np.ones(150, dtype=int)
    total = max(1, round(100 * config.fraction) * int(costs.sum()) // 100)
    for group in np.unique(groups):
        members, candidates = groups == group, choice.ranked[groups[choice.ranked] == group]
        share = costs[members].sum() / costs.sum() * total
        taken = [i for i in choice.selection if groups[i] == group]
        spent = costs[taken].sum()
        assert sorted(candidates[: len(taken)]) == taken  # the best of the group
        if budget == "samples" and len(candidates) >= share + 1:
            assert abs(spent - share) < 1
        if budget == "tokens" and len(choice.selection) > 1:
            assert spent < share + 1
            assert len(taken) == len(candidates) or spent + tokens[candidates[len(taken)]] > share - 1


def test_ranking_within_bands_of_length_by_hand():
    # By length 4, 1, 7, 6, 3 | 2, 9, 8, 0; the best of each in turn: 1 (.9) and 8 (.6), 7 and 0, ...
    assert chosen(0.2, length_bands=2) == [1, 8]
    assert chosen(0.4, length_bands=2) == [0, 1, 7, 8]
    assert chosen(0.1, length_bands=2) == [1]


CLOSE = np.cos(np.deg2rad(10))
# Angles in degrees. 1 and 7 are 5 apart, 3 and 6 as well; the others far from all.
ANGLES = np.deg2rad([300, 0, 200, 40, 240, 100, 45, 5, 90, 150])
EMBEDDINGS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)


def test_of_near_duplicates_the_one_of_higher_score_is_selected():
    # In turn 1, (7 like 1), 3, (6 like 3), 8, 0, 9.
    assert chosen(0.5, embeddings=EMBEDDINGS, max_selected_similarity=CLOSE) == [0, 1, 3, 8, 9]
    assert chosen(0.5, embeddings=EMBEDDINGS, max_selected_similarity=1.0) == [1, 3, 6, 7, 8]
    assert chosen(1.0, embeddings=EMBEDDINGS, max_selected_similarity=CLOSE) == [0, 1, 2, 3, 4, 8, 9]


def test_near_duplicates_are_told_across_groups():
    groups = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    # Two each. Group 0 has 1 and 3. In group 1, 7 is like 1 and 6 like 3: it has 8 and 9.
    assert chosen(0.4, groups) == [1, 3, 6, 7]
    assert chosen(0.4, groups, EMBEDDINGS, max_selected_similarity=CLOSE) == [1, 3, 8, 9]


def test_no_sample_is_lost_where_rounding_tells_two_of_another_group_alike(monkeypatch):
    def forgetful(order, embeddings, at_most):  # leaves the second out, once it is asked again
        found = list(order)
        yield from found[:1] + found[2:] if len(found) > 5 else found

    monkeypatch.setattr(selection, "skip_near_duplicates", forgetful)
    found = chosen(0.4, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1], EMBEDDINGS, max_selected_similarity=CLOSE)
    assert found == [1, 3, 6, 7]


@pytest.mark.parametrize("diversity", ["facility_location", "mmr"])
def test_diversity_chooses_among_the_candidates_of_highest_score_only(diversity):
    top = {1, 7, 3, 6}
    for candidates, among in ((1.0, {1, 7}), (1.5, {1, 7, 3}), (2.0, top), (2.4, top), (2.5, top | {8})):
        found = chosen(0.2, embeddings=EMBEDDINGS, diversity=diversity, diversity_candidates=candidates)
        assert len(found) == 2 and set(found) <= among
    # Of 1, 7, 3, 6 one of each pair, whatever comes first.
    found = chosen(0.2, embeddings=EMBEDDINGS, diversity=diversity, diversity_candidates=2.0, mmr_weight=0.3)
    assert len({1, 7} & set(found)) == 1 and len({3, 6} & set(found)) == 1


def test_the_number_of_candidates_is_computed_on_the_digits():
    # 1.15 * 100 is 114.99999999999999 in floating point. All but the 115th are alike, so that it is selected.
    embeddings = np.tile(np.float32([1, 0]), (200, 1))
    embeddings[114] = [0, 1]
    found = choose(
        measured(-np.arange(200) / 256),
        np.ones(200, dtype=bool),
        MIWVConfig(fraction=0.5, diversity="facility_location", diversity_candidates=1.15),
        embeddings=embeddings,
    ).selection
    assert len(found) == 100 and 114 in found


def test_facility_location_and_marginal_relevance_by_hand():
    # Candidates 1 (0 degrees), 7 (5), 3 (40), 6 (45). Sums of cosines: 3.469, 3.581, 3.581, 3.469 (0-5 and 40-45
    # .996, 0-40 and 5-45 .766, 5-40 .819, 0-45 .707): 7 and 3 tie, 7 is higher. It covers .996, 1, .819, .766; 3 adds
    # .181 + .230 = .411, 6 adds .177 + .234 = .411 too (exactly: both 1.996 - .819 - .766), so 3, the higher.
    both = {"embeddings": EMBEDDINGS, "diversity_candidates": 2.0}
    assert chosen(0.2, diversity="facility_location", **both) == [3, 7]
    # Ranks 1, 2/3, 1/3, 0 in [0, 1]. First 1. At weight 0.5 half of 2/3 - .996, 1/3 - .766, 0 - .707: 7. At 0.1
    # .067 - .897, .033 - .689, 0 - .636: 6.
    assert chosen(0.2, diversity="mmr", mmr_weight=0.5, **both) == [1, 7]
    assert chosen(0.2, diversity="mmr", mmr_weight=0.1, **both) == [1, 6]


def test_an_outlier_does_not_drown_the_other_scores_of_marginal_relevance():
    ranks_alike = measured([10.0 if value == 0.9 else value for value in MIWV], TOKENS)
    both = {"embeddings": EMBEDDINGS, "diversity": "mmr", "mmr_weight": 0.6}
    assert chosen(0.3, table=ranks_alike, **both) == chosen(0.3, **both)


@pytest.mark.parametrize("values", [{"diversity": "mmr"}, {"max_selected_similarity": 0.9}])
def test_diversity_without_embeddings_is_told(values):
    with pytest.raises(ValueError, match="need the embeddings of the pool: give `embeddings`"):
        chosen(0.5, **values)


def distances(miwv, selected, cells) -> list[float]:
    scores = np.asarray(miwv, dtype=np.float32)
    return Choice(np.asarray(selected), np.asarray([]), scores, np.asarray(cells), {}).distances.tolist()


def test_distances_from_one_threshold_by_hand():
    found = distances([0.5, 1.0, -0.25, 0.75, NAN], [1, 3], [0, 0, 0, 0, -1])
    np.testing.assert_array_equal(found, [0.25, 0.25, 1.0, 0.0, NAN])


def test_distances_are_from_the_threshold_of_ones_own_cell():
    #                          cell 0: 0.5 is lowest, cell 1: 8 is lowest, cell 2 none, cell 3 all, -1 is left out
    miwv, cells = [0.5, 1.0, 0.25, 8.0, 6.0, 9.0, 3.0, 3.5, 2.0, 7.0], [0, 0, 0, 1, 1, 1, 2, 2, 3, -1]
    found = distances(miwv, [0, 1, 3, 5, 8], cells)
    np.testing.assert_array_equal(found, [0, 0.5, 0.25, 0, 2, 1, NAN, NAN, NAN, NAN])


def test_the_cells_of_groups_and_bands_by_hand():
    config = MIWVConfig(fraction=0.4, length_bands=2)
    choice = choose(measured(MIWV, TOKENS), ALL, config, np.asarray([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]))
    # By length 4, 1, 7, 6, 3 | 2, 9, 8, 0, and 5 has no score. Two each: 1 and 0 of the first group, 8 and 7.
    assert choice.cells.tolist() == [1, 0, 1, 0, 0, -1, 2, 2, 3, 3]
    assert choice.selection.tolist() == [0, 1, 7, 8]
    expected = [0, 0, 0.7, 0.1, 0.8, NAN, 0.2, 0, 0, 0.3]
    np.testing.assert_allclose(choice.distances, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(25))
def test_no_unselected_score_of_a_cell_is_above_its_selected_ones(seed):
    rng = np.random.default_rng(seed)
    table, groups = drawn(seed, 120), rng.integers(0, 4, size=120)
    config = MIWVConfig(fraction=0.3, length_bands=int(rng.integers(1, 5)), min_response_tokens=5)
    choice = choose(table, np.ones(120, dtype=bool), config, groups)
    selected = np.isin(np.arange(120), choice.selection)
    for cell in np.unique(choice.cells[choice.cells >= 0]):
        members = choice.cells == cell
        inside, outside = choice.scores[members & selected], choice.scores[members & ~selected]
        assert len(np.unique(groups[members])) == 1
        if len(inside) and len(outside):
            assert inside.min() >= outside.max()
            np.testing.assert_allclose(choice.distances[members], abs(choice.scores[members] - inside.min()))


@pytest.mark.parametrize("seed", range(50))
def test_by_default_the_selection_is_that_of_the_highest_miwv(seed):
    table, fraction = drawn(seed, 100), (seed + 1) / 50
    found = choose(table, np.ones(100, dtype=bool), MIWVConfig(fraction=fraction)).selection
    assert found.tolist() == select_highest(table.one_shot_loss - table.zero_shot_loss, 2 * (seed + 1)).tolist()


GUARDS = [
    {"min_response_tokens": 15},
    {"min_similarity": 0.4},
    {"quantile_band": [0.1, 0.8]},
    {"max_selected_similarity": 0.9},
    {"min_response_tokens": 9, "min_similarity": 0.2, "quantile_band": [0.0, 0.9], "max_selected_similarity": 0.95},
]


@pytest.mark.parametrize("beside", [{}, {"length_bands": 3}, {"selection_budget": "tokens"}, {"diversity": "mmr"}])
@pytest.mark.parametrize("guard", GUARDS)
def test_no_guard_lets_a_sample_through_that_it_forbids(guard, beside):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        table, has = drawn(seed, 90), rng.random(90) < 0.9
        embeddings = rng.normal(size=(90, 3)).astype(np.float32)
        config = MIWVConfig(fraction=0.4, **guard, **beside)
        choice = choose(table, has, config, rng.integers(0, 3, size=90), embeddings)
        found = choice.selection
        assert len(found) and (np.diff(found) > 0).all()
        assert has[found].all() and np.isfinite(choice.scores[found]).all()
        assert (table.response_tokens[found] >= guard.get("min_response_tokens", 0)).all()
        assert (table.similarity[found] >= guard.get("min_similarity", -INF)).all()
        unit = embeddings[found] / np.linalg.norm(embeddings[found], axis=1, keepdims=True)
        among = unit @ unit.T - 2 * np.eye(len(found))
        assert among.max() <= guard.get("max_selected_similarity", INF) + 1e-5
        low, high = guard.get("quantile_band", (0, 1))
        passed = has & np.isfinite(choice.scores) & (table.response_tokens >= guard.get("min_response_tokens", 0))
        passed &= table.similarity >= guard.get("min_similarity", -INF)
        low, high = np.quantile(choice.scores[passed], [low, high])
        assert ((choice.scores[found] >= low - 1e-6) & (choice.scores[found] <= high + 1e-6)).all()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"score": "low_miwv"},
        {"score": "residual_miwv"},
        {"selection_budget": "tokens", "min_response_tokens": 5},
        {"quantile_band": [0.1, 0.9], "min_similarity": 0.2},
        {"length_bands": 4, "max_selected_similarity": 0.9},
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_another_order_of_the_pool_is_another_order_of_the_same_choice(seed, values):
    rng = np.random.default_rng(seed)
    miwv, lengths = rng.permutation(70) / 64, rng.permutation(70) + 1  # no ties
    similarity, groups, embeddings = rng.random(70), rng.integers(0, 3, size=70), rng.normal(size=(70, 3))
    has, config = rng.random(70) < 0.9, MIWVConfig(fraction=0.3, **values)
    found = choose(measured(miwv, lengths, similarity), has, config, groups, embeddings)
    order = rng.permutation(70)
    table = measured(miwv[order], lengths[order], similarity[order])
    moved = choose(table, has[order], config, groups[order], embeddings[order])
    assert sorted(order[moved.selection]) == found.selection.tolist()
    assert order[moved.ranked].tolist() == found.ranked.tolist()
    assert moved.left_out == found.left_out


def test_overlap_is_the_share_of_the_first_selection_that_the_second_holds():
    assert compute_overlap(np.array([1, 2, 3, 4]), np.array([4, 3, 8, 9, 10])) == 0.5
    assert compute_overlap(np.array([1, 2]), np.array([1, 2])) == 1.0
    assert compute_overlap(np.array([1, 2]), np.array([3])) == 0.0
