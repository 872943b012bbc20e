"""What `examples/comparison/` says of the results of runs: words, verdict, tables, page."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.launch import ROOT

sys.path.insert(0, str(ROOT / "examples"))

from comparison.arms import Arm
from comparison.judgement import Judged, Losses, Pair, is_drawn, judge
from comparison.page import Section, build_page, format_section
from comparison.plan import Plan
from comparison.results import Result
from comparison.statistics import Difference, Variance, compute_difference, pool_variances
from comparison.tables import format_difference, format_markdown, format_text, make_sample_table, make_table
from comparison.wording import (
    describe_correction,
    describe_shares,
    join,
    share,
    write_power,
    write_statements,
    write_verdict,
)

NAME = "held-out samples"
PLAN = Plan(
    [Arm("full set", None), Arm("random", {}), Arm("miwv", {}), Arm("more", {}, 9)],
    {"miwv": "random", "full set": "random"},
    {"miwv": "more"},
)


def make_result(arm: str, seed: int, losses: list[float], scoring: int = 0, rate: float = 0.1) -> Result:
    return Result(arm, rate, seed, {}, 10, 100, 4, 2.0, 1000, scoring, {}, {NAME: losses})


def all_results(miwv: float, more: float, scoring: int = 57_000, seeds: int = 3) -> list[Result]:
    """Losses of four samples of which the second cannot be evaluated; all arms have the same noise."""
    found = [make_result("untrained", 0, [9.0, math.nan, 9, 9], rate=0.0)]
    for seed in range(seeds):
        noise = 0.01 * seed
        for arm, loss in (("full set", 2.0), ("random", 3.0), ("miwv", miwv), ("more", more)):
            losses = [loss + noise, math.nan, loss - noise / 2, loss]
            found.append(make_result(arm, seed, losses, scoring if arm == "miwv" else 0))
    return found


def losses_of(results: list[Result], weights: tuple[int, ...] = (10, 10, 10, 10)) -> Losses:
    return Losses(results, NAME, np.array(weights))


def judged_of(results: list[Result], weights: tuple[int, ...] = (10, 10, 10, 10), plan: Plan = PLAN) -> list[Judged]:
    return judge(losses_of(results, weights), plan, [0.1])


def find(judged: list[Judged], arm: str) -> Judged:
    return next(one for one in judged if one.arm == arm)


def test_arms_are_judged_lowest_first_and_against_what_the_plan_says() -> None:
    judged = judged_of(all_results(2.5, 2.2))
    assert [one.arm for one in judged] == ["full set", "more", "miwv", "random"]
    miwv = judged[2]
    assert miwv.same_size is not None and miwv.same_cost is not None and miwv.full is not None
    pairs = [miwv.same_size, miwv.same_cost, miwv.full]
    assert [pair.tokens.mean for pair in pairs] == pytest.approx([-0.5, 0.3, 0.5])
    assert [pair.word for pair in pairs] == ["lower", "higher", "higher"]
    assert [pair.tokens.tried for pair in pairs] == [2, 1, 3]  # full set and miwv; miwv; all but the full set
    assert miwv.size_ratio == 20 and miwv.compute == 60_000
    assert judged[3].same_size is None and judged[0].full is None
    assert [one.arm for one in judged if one.is_baseline] == ["full set", "more", "random"]


def test_losses_are_weighted_by_response_tokens_and_by_samples() -> None:
    """A response of 90 tokens gets worse by 1 nat, two of 5 tokens get better by 2."""
    found = [make_result("untrained", 0, [5.0, 5, 5], rate=0.0)]
    for seed in range(3):
        noise = 0.01 * seed
        found += [
            make_result("random", seed, [4.0 + noise] * 3),
            make_result("miwv", seed, [5.0 + noise, 2 + noise, 2 + noise], scoring=9000),
        ]
    judged = judged_of(found, (90, 5, 5))
    miwv = find(judged, "miwv")
    assert miwv.same_size is not None and miwv.losses[0] == pytest.approx(4.7) and miwv.sample_losses[0] == 3.0
    assert miwv.same_size.tokens.mean == pytest.approx(0.7) and miwv.same_size.samples.mean == pytest.approx(-1.0)
    assert losses_of(found, (90, 5, 5)).untrained == pytest.approx((5.0, 5.0))


def make_pair(tokens: float, samples: float) -> Pair:
    """Of t-values: 10 of them are shown, 0.1 is not."""
    by_tokens, by_samples = (
        Difference(value, 3, (Variance(1.0, 8.0),), adjusted=0.001 if abs(value) > 1 else 0.9)
        for value in (tokens, samples)
    )
    return Pair(by_tokens, by_samples)


@pytest.mark.parametrize(
    ("tokens", "samples", "word", "description"),
    [
        (-10, -10, "lower", "lower"),
        (10, 10, "higher", "higher"),
        (0.1, -0.1, "not shown", "not shown"),
        (-10, 0.1, "not shown", "lower by response tokens only"),
        (0.1, 10, "not shown", "higher by samples only"),
        (-10, 10, "not shown", "lower by response tokens and higher by samples"),
    ],
)
def test_a_difference_is_shown_where_both_weightings_agree(
    tokens: float, samples: float, word: str, description: str
) -> None:
    pair = make_pair(tokens, samples)
    assert (pair.word, pair.description) == (word, description)


# Seeds


def test_seeds_are_paired_by_their_number() -> None:
    """Seed 1 of the arm is missing; seed 2 of the random draws is 3 nats lower."""
    found = [make_result("untrained", 0, [9.0] * 4, rate=0.0)]
    found += [make_result("random", seed, [loss] * 4) for seed, loss in ((0, 5.0), (1, 5.0), (2, 2.0))]
    found += [make_result("miwv", seed, [loss] * 4, scoring=9000) for seed, loss in ((2, 1.0), (0, 4.0))]
    pair = find(judged_of(found), "miwv").same_size
    assert pair is not None and pair.tokens.mean == pytest.approx(-1.0) and pair.tokens.seeds == 2
    # Tuned: seed 1 has no run at the second rate, which is worse.
    worse = [replace(one, rate=0.2, losses={NAME: [9.0] * 4}) for one in found[1:] if one.seed != 1]
    both = [*found, *worse]
    pair = find(judge(losses_of(both), PLAN, [0.1, 0.2]), "miwv").same_size
    assert pair is not None and pair.tokens.mean == pytest.approx(-1.0) and pair.tokens.seeds == 2


def test_arms_without_a_common_seed_are_not_compared() -> None:
    found = [make_result("untrained", 0, [9.0] * 4, rate=0.0)]
    found += [make_result("random", seed, [5.0] * 4) for seed in (0, 1)]
    found += [make_result("miwv", seed, [5.0] * 4) for seed in (2, 3)]
    assert find(judged_of(found), "miwv").same_size is None


def test_spreads_are_pooled_over_draws_and_over_other_arms() -> None:
    """As computed here: draws of all sizes and a full set seen in part are one kind, fixed selections the other."""
    generator = np.random.default_rng(0)
    found = [make_result("untrained", 0, [9.0] * 4, rate=0.0)]
    spreads = {"full set": 1.0, "random": 2.0, "more": 1.5, "drawn": 1.2, "miwv": 0.01, "longest": 0.02}
    arms: dict[str, list[Result]] = {}
    for arm, spread in spreads.items():
        losses = spread * generator.normal(size=(3, 1)) + generator.normal(0, 0.3, (3, 4))
        arms[arm] = [make_result(arm, seed, of_seed) for seed, of_seed in enumerate(losses.tolist())]
    arms["full set"] = [replace(result, seen=0.4) for result in arms["full set"]]
    found += [result for results in arms.values() for result in results]
    more = [Arm("drawn", {"selection": "sample"}), Arm("longest", {"score": "longest"})]
    plan = Plan([*PLAN.arms, *more], {name: "random" for name in arms if name != "random"}, {})
    array = {arm: np.array([result.losses[NAME] for result in results]) for arm, results in arms.items()}

    def pool(*names: str) -> dict[str, Variance]:
        runs = [dict(enumerate(array[name].mean(axis=1).tolist())) for name in names]
        return dict(zip(names, pool_variances(runs), strict=True))

    drawn, fixed = pool("full set", "random", "more", "drawn"), pool("miwv", "longest")
    for name in ("miwv", "drawn"):
        variances = (drawn | fixed)[name], drawn["random"]
        expected = compute_difference(array[name], array["random"], np.ones(4), variances)
        pair = find(judged_of(found, plan=plan), name).same_size
        assert pair is not None and pair.tokens.half == pytest.approx(expected.half)


def test_arms_that_draw_for_each_seed_are_known(tmp_path: Path) -> None:
    np.save(tmp_path / "scores.npy", np.arange(4.0))
    drawn = [Arm("random", {"score": "random"}), Arm("a", {"selection": "sample"}), Arm("b", {"score": "random"})]
    assert all(map(is_drawn, [*drawn, Arm("more", {"score": "random"}, target=9)]))
    fixed = [
        Arm("full set", None),
        Arm("c", {}),
        Arm("d", {"rescore_strategy": "steps"}),
        Arm("e", {"score": "longest"}),
        Arm("f", {"score": "tests.helpers.own_scores:shortest_first"}),
        Arm("g", {"score": str(tmp_path / "scores.npy")}),
    ]
    assert not any(map(is_drawn, fixed))


def test_an_arm_of_which_each_seed_trains_another_part_is_known() -> None:
    """More samples are selected than all steps train: those that were trained have other numbers of tokens."""
    found = all_results(2.5, 2.2)
    parts = [replace(result, tokens=100 + result.seed) if result.arm == "miwv" else result for result in found]
    arm = next(arm for arm in PLAN.arms if arm.name == "miwv")
    for results, draws_anew in ((found, False), (parts, True)):
        taken = losses_of(results).take(arm, [0.1])
        assert taken is not None and taken.draws_anew is draws_anew


# Losses that are not finite


def test_a_run_that_has_diverged_is_left_out_and_named() -> None:
    found = [
        replace(result, losses={NAME: [math.nan] * 4}) if (result.arm, result.seed) == ("miwv", 1) else result
        for result in all_results(2.5, 2.2)
    ]
    losses = losses_of(found)
    judged = judge(losses, PLAN, [0.1])
    assert [one.arm for one in judged] == ["full set", "more", "random"]
    without = [one for one in judged_of([one for one in found if one.arm != "miwv"]) if one.arm == "full set"][0]
    assert judged[0].same_size == without.same_size and judged[0].same_size is not None
    section = Section("On them", judged, losses, [0.1])
    page = "\n".join(format_section(section))
    assert section.diverged == ["miwv"] and page.count("| miwv |") == 2
    assert all("| diverged |" in line for line in page.splitlines() if line.startswith("| miwv |"))
    assert "- Diverged: miwv at 0.1 with seed 1. More than 10% of the losses" in page
    assert "- Left out for all arms: 1 of 4 samples, which have no finite loss in some run." in page


def test_a_rate_at_which_an_arm_diverged_is_not_tuned() -> None:
    found = all_results(2.5, 2.2)
    wild = [
        replace(one, rate=0.2, losses={NAME: [math.inf, math.nan, 0.1, 0.1] if one.arm == "miwv" else one.losses[NAME]})
        for one in found[1:]
    ]
    losses = losses_of([*found, *wild])
    judged = judge(losses, PLAN, [0.1, 0.2])
    assert find(judged, "miwv").rates == (0.1,) and find(judged, "miwv").loss == pytest.approx(2.5 + 0.005 / 3)
    assert Section("", judged, losses, [0.1, 0.2]).diverged == []
    assert Section("", judge(losses, PLAN, [0.2]), losses, [0.2]).diverged == ["miwv"]


def test_a_sample_that_is_not_finite_in_some_run_is_left_out_for_all() -> None:
    found = [make_result("untrained", 0, [9.0] * 20, rate=0.0)]
    found += [make_result("random", seed, [5.0] * 20) for seed in range(2)]
    found += [make_result("miwv", seed, [math.inf, *[4.0] * 19]) for seed in range(2)]
    losses = Losses(found, NAME, np.ones(20))
    assert losses.diverged == [] and losses.left_out == 1 and losses.is_judged.tolist() == [False, *[True] * 19]


def test_samples_of_which_none_can_be_judged_are_refused() -> None:
    untrained = make_result("untrained", 0, [math.nan] * 2, rate=0.0)
    with pytest.raises(SystemExit, match="No sample of held-out samples has a finite loss in all runs. Give other"):
        Losses([untrained, make_result("miwv", 0, [1.0, 1.0])], NAME, np.ones(2))


def test_a_page_of_runs_that_have_all_diverged_says_so() -> None:
    found = [make_result("untrained", 0, [9.0] * 4, rate=0.0), make_result("random", 0, [math.nan] * 4)]
    losses = losses_of(found)
    facts = {"steps": "4", "batch": "2", "seeds": "1", "rates": "0.1"}
    page = build_page([Section("On them", judge(losses, PLAN, [0.1]), losses, [0.1])], facts)
    assert "**No arm can be judged: all have diverged or have no runs.**" in page and "| random | diverged |" in page


# Verdicts


NONE = "No scored arm is shown to be better than random draws of as many samples, which cost a twentieth of the compute"
NEITHER = "no scored arm is shown to be better than random draws at the same total cost"
BETTER = "miwv: lower held-out loss than random draws of as many samples"
CHEAPER = "miwv: lower held-out loss than random draws at the same total cost"
BEATEN = "random draws at the same total cost are shown to be better than miwv"


@pytest.mark.parametrize(
    ("miwv", "more", "seeds", "verdict"),
    [
        (3.0, 3.0, 3, f"{NONE}; {NEITHER}."),
        (3.0, 2.9, 3, f"{NONE}; {BEATEN}."),
        (3.2, 2.9, 3, f"{NONE}, and miwv is shown to be worse; {BEATEN}."),
        (2.5, 2.5, 3, f"{BETTER}; {NEITHER}."),
        (2.5, 2.2, 3, f"{BETTER}; {BEATEN}."),
        (2.5, 2.7, 3, f"{BETTER}; {CHEAPER}."),
        (3.0, 3.2, 3, f"{NONE}; {CHEAPER}."),
        (2.5, 2.7, 1, "One seed shows nothing: give --seeds 2 or more."),
    ],
)
def test_the_verdict_says_who_wins_at_equal_selection_and_at_equal_cost(
    miwv: float, more: float, seeds: int, verdict: str
) -> None:
    assert write_verdict(judged_of(all_results(miwv, more, seeds=seeds))) == verdict


def make_judged(arm: str, size: Pair | None, cost: Pair | None) -> Judged:
    runs = [make_result(arm, seed, [1.0], scoring=9000) for seed in range(3)]
    return Judged(arm, np.ones(3), np.ones(3), size, cost, None, 20.0, 1.0, (0.1,), runs)


LOWER, HIGHER, EQUAL, BY_TOKENS = make_pair(-10, -10), make_pair(10, 10), make_pair(0.1, 0.1), make_pair(-10, 0.1)


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        (
            {"a": (EQUAL, HIGHER), "b": (EQUAL, HIGHER)},
            f"{NONE}; random draws at the same total cost are shown to be better than every scored arm.",
        ),
        (
            {"a": (HIGHER, EQUAL), "b": (HIGHER, None)},
            f"{NONE}, and each of them is shown to be worse; {NEITHER}.",
        ),
        (
            {"a": (LOWER, EQUAL), "b": (HIGHER, HIGHER), "c": (HIGHER, LOWER)},
            "a: lower held-out loss than random draws of as many samples, which are shown to be better than b and c; "
            "c: lower held-out loss than random draws at the same total cost, which are shown to be better than b.",
        ),
        (
            {"a": (BY_TOKENS, None), "b": (HIGHER, None), "c": (HIGHER, None)},
            f"{NONE} (lower by response tokens only: a), and b and c are shown to be worse.",
        ),
        (
            {"a": (LOWER, BY_TOKENS), "b": (BY_TOKENS, EQUAL)},
            "a: lower held-out loss than random draws of as many samples (lower by response tokens only: b); "
            f"{NEITHER} (lower by response tokens only: a).",
        ),
        (
            {"a": (None, LOWER)},
            "No scored arm has random draws of as many samples to be held against; "
            "a: lower held-out loss than random draws at the same total cost.",
        ),
    ],
)
def test_verdicts_name_losers_and_arms_that_are_lower_by_one_weighting(
    pairs: dict[str, tuple[Pair | None, Pair | None]], verdict: str
) -> None:
    assert write_verdict([make_judged(arm, *found) for arm, found in pairs.items()]) == verdict


def test_without_a_scored_arm_there_is_no_cost_to_weigh() -> None:
    """The same losses of an arm that forwards nothing: a column of the dataset, or the longest responses."""
    verdicts = [write_verdict(judged_of(all_results(loss, 3, scoring=0))) for loss in (3.0, 2.5)]
    assert verdicts == [
        "No arm is shown to have a lower held-out loss than random draws of as many samples.",
        "miwv: lower held-out loss than random draws of as many samples.",
    ]
    both = [*all_results(3.0, 3.0), *(make_result("longest", seed, [2.0, math.nan, 2.0, 2.0]) for seed in range(3))]
    plan = Plan([*PLAN.arms, Arm("longest", {})], {**PLAN.same_size, "longest": "random"}, PLAN.same_cost)
    free = "longest, without scoring, trained a lower loss than random draws of as many samples"
    assert write_verdict(judged_of(both, plan=plan)) == f"{NONE}; {NEITHER}; {free}."
    unscored = replace(make_judged("longest", BY_TOKENS, None), results=[make_result("longest", 0, [1.0])])
    partly = write_verdict([make_judged("miwv", EQUAL, EQUAL), unscored])
    free = "without scoring, no arm is shown to be better than random draws of as many samples"
    assert partly == f"{NONE}; {NEITHER}; {free} (lower by response tokens only: longest)."


def test_shares_in_words() -> None:
    found = [share(ratio) for ratio in (1.3, 2.2, 3.4, 19.9, 7.0)]
    assert found == [f"{words} of the compute" for words in ("77%", "half", "a third", "a twentieth", "1/7")]


def test_statements_name_who_wins_at_what() -> None:
    lines = write_statements(judged_of(all_results(2.5, 2.2)))
    assert lines[0] == "The lowest mean loss is that of full set (2.0017 by response tokens)."
    assert lines[1] == "At equal selection, against random draws of the same size, lower: full set and miwv."
    assert lines[2].endswith("with scoring included, higher: miwv.")
    assert lines[3] == "Against the full set, higher: more, miwv and random."
    partly = write_statements([make_judged("a", BY_TOKENS, None), make_judged("b", EQUAL, None)])[1]
    assert partly.endswith("of the same size, lower by response tokens only: a; not shown: b.")


def test_the_page_says_how_many_differences_were_tried() -> None:
    judged = judged_of(all_results(2.5, 2.2))
    counts = "Differences that were tried: 2 at equal selection, 1 at equal cost and 3 against the full set. "
    assert describe_correction(judged).startswith(counts) and "(Holm)" in describe_correction(judged)
    assert describe_correction(judged_of(all_results(2.5, 2.2, seeds=1))).startswith(
        "Differences that were tried: none."
    )


def test_the_power_line_has_the_parts_of_seeds_and_of_samples() -> None:
    judged = judged_of(all_results(2.5, 2.2))
    power, pair = write_power(judged), find(judged, "miwv").same_cost
    assert pair is not None
    one = pair.tokens
    parts = f"{one.smallest:.4f} nats [{one.reliably_shown:.4f}; seeds alone {one.half_of_seeds:.4f}, samples alone"
    assert f"and {parts} {one.half_of_samples:.4f}] at equal cost" in power and one.half_of_seeds > 0
    assert "one seed has no interval" in write_power(judged_of(all_results(2.5, 2.2, seeds=1)))


# Tables


def test_tables_leave_out_columns_in_which_there_is_nothing() -> None:
    judged = judged_of(all_results(2.5, 2.2))
    head, *rows = make_table(judged)
    assert "ROUGE-L" not in head and "learning rate" not in head and "against random, equal cost" in head
    assert all(len(row) == len(head) for row in rows)
    row = dict(zip(head, rows[2], strict=True))
    assert row["selection"] == "miwv" and row["total compute"] == "60 (×20)"
    assert row["against random, equal cost"].endswith("higher; costs ×20.00")
    pair = judged[2].same_size
    assert pair is not None
    assert row["against random, equal selection"] == f"-0.5000 ± {pair.tokens.half:.4f} lower"
    markdown = format_markdown(make_table(judged)).splitlines()
    assert markdown[1].startswith("| --- | ---: |") and len({line.count("|") for line in markdown}) == 1
    assert "-0.5000 / -0.5000 lower" in format_text(judged) and "nan" not in format_text(judged)
    assert format_difference(Difference(0.1, 1, ())) == "+0.1000 not shown"


def test_the_table_by_samples_has_its_own_losses_and_order() -> None:
    found = [make_result("untrained", 0, [5.0, 5, 5, 5], rate=0.0)]
    for seed in range(3):
        found += [make_result("random", seed, [4.0] * 4), make_result("miwv", seed, [5.0, 2, 2, 2])]
    judged = judged_of(found, (97, 1, 1, 1))
    assert [row[0] for row in make_table(judged)[1:]] == ["random", "miwv"]
    assert make_sample_table(judged)[1][:2] == ["miwv", "2.7500 ± 0.0000"]


def test_a_name_with_a_comma_is_told_from_two_names() -> None:
    assert join(["random", "random, equal tokens", "a"]) == 'random, "random, equal tokens" and a'
    assert [join([]), join(["a"]), join(["a", "b"])] == ["", "a", "a and b"]


def test_the_cost_of_draws_is_told_of_all_arms() -> None:
    assert describe_shares([4.2, 4.0, 3.2]) == "a quarter to a third of the compute"
    assert describe_shares([20.1, 19.8]) == "a twentieth of the compute"
    assert describe_shares([2.1, 1.25]) == "half to 80% of the compute"
