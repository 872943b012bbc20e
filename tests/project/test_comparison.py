"""The parts of `examples/comparison/`, each with worked examples or an independent computation."""

import argparse
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from miwv_trainer import MIWVConfig
from tests.helpers.launch import ROOT

sys.path.insert(0, str(ROOT / "examples"))

from comparison.arms import Arm, find_random, list_arms, make_config, parse_arm
from comparison.corruption import (
    Tokens,
    corrupt,
    find_common_ending,
    merge_corruptions,
    parse_corruptions,
    swap_responses,
    truncate,
)
from comparison.dealing import deal, hold, leave_launcher
from comparison.own_scores import Places
from comparison.plan import Plan, Run, describe_identity, make_controls
from comparison.results import Result, check_settings, estimate_seconds, is_made_by
from comparison.schedule import (
    BatchRule,
    count_tokens,
    fit_to_cost,
    fraction_of,
    order_samples,
    round_to_batches,
)
from comparison.scoring import count_later_rounds
from comparison.sharing import read_stored, share_rounds

# Arms


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("a: score=low_miwv", {"score": "low_miwv"}),
        ("a : loss_band=[0.1, 0.7], fraction=0.05", {"loss_band": [0.1, 0.7], "fraction": 0.05}),
        (
            "a: embedder='tfidf', allow_identical_exemplars=true",
            {"embedder": "tfidf", "allow_identical_exemplars": True},
        ),
        ("a: tokens_per_row=none", {"tokens_per_row": None}),
        ("a: embedder=sentence-transformers/all-MiniLM-L6-v2", {"embedder": "sentence-transformers/all-MiniLM-L6-v2"}),
        ("a: rescore_strategy=steps", {"rescore_strategy": "steps"}),
        ("a:", {}),
    ],
)
def test_arms_are_parsed(typed: str, expected: dict[str, Any]) -> None:
    assert parse_arm(typed) == Arm("a", expected)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("score=miwv", 'must be "name: key=value, ..."'),
        (": score=miwv", 'must be "name: key=value, ..."'),
        ("??: score=miwv", 'must be "name: key=value, ..."'),
        ("a: scor=miwv", "arm 'a': Unknown configuration key: 'scor'. Did you mean `score`?"),
        ("a: score=best", "arm 'a': `score` must be one of"),
        ("a: loss_band=[0.7, 0.1]", "arm 'a': `loss_band` must be two numbers"),
        ("a: fraction=half", "arm 'a': `fraction` must be a number above 0"),
        ("a: score", "arm 'a': 'score' is no key=value"),
        ("a: score=miwv, score=random", "arm 'a': 'score' is given twice"),
        ("a: scores_dir=there", "arm 'a': 'scores_dir' is set by the comparison itself"),
        ("a: sampler_seed=1", "arm 'a': 'sampler_seed' is set by the comparison itself"),
        ("a: score=longest, loss_band=[0, 0.5]", "arm 'a': `loss_band` is"),
        ("a: score=tests.helpers.own_scores:shortest", "arm 'a': `score` is 'tests.helpers.own_scores:shortest', but"),
        ("a: score=nowhere.npy", "arm 'a': `score` is 'nowhere.npy', but there is no such file"),
    ],
)
def test_an_arm_that_is_none_is_named(typed: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        parse_arm(typed)
    assert message in str(refused.value)


def test_what_two_options_exclude_names_the_arm() -> None:
    with pytest.raises(SystemExit, match=r'--arm "a: rescore_budget=0.5": `rescore_budget` is 0.5'):
        make_config(Arm("a", {"rescore_budget": 0.5}), {"fraction": 0.1}, 3)
    assert make_config(Arm("a", {"rescore_strategy": "steps"}), {"fraction": 0.1}, 3).rescore_steps == 3


def test_an_array_belongs_to_a_dataset_of_the_users(tmp_path: Path) -> None:
    file = tmp_path / "scores.npy"
    np.save(file, np.array([3.0, 1.0, 2.0, 0.0]))
    arm = parse_arm(f"own: score={file}")
    assert arm.settings == {"score": str(file)} and arm.find_size(0.1) == (0.1, "samples")
    taken = make_config(arm, {}, 1, Places("pool.jsonl", 4, np.array([2, 0, 0])))
    assert np.asarray(taken.score).tolist() == [2.0, 3.0, 3.0]
    with pytest.raises(SystemExit, match="own: score=.*, an array, but the pool is Python's documentation strings"):
        make_config(arm, {}, 1)
    np.save(tmp_path / "others.npy", np.arange(4.0))
    first, second = describe_identity(arm), describe_identity(parse_arm(f"own: score={tmp_path / 'others.npy'}"))
    assert first["numbers"] != second["numbers"]


def test_random_draws_the_longest_and_the_full_set_are_always_there() -> None:
    given = [
        Arm("a", {}),
        Arm("b", {"selection_budget": "tokens"}),
        Arm("c", {"fraction": 0.02}),
        Arm("d", {"fraction": 0.02}),
    ]
    names = [arm.name for arm in list_arms(given)]
    assert names == ["full set", "random", "longest", "random, equal tokens", "random, 2 %", "a", "b", "c", "d"]
    # A preset sets the budget; what is typed beside it is what counts.
    presets = [Arm("e", {"preset": "guarded"}), Arm("f", {"preset": "guarded", "selection_budget": "samples"})]
    assert [arm.name for arm in list_arms(presets)][3:] == ["random, equal tokens", "e", "f"]
    both = list_arms([Arm("g", {"fraction": 0.02, "selection_budget": "tokens"})])[3]
    assert both == Arm("random, 2 %, equal tokens", {"score": "random", "fraction": 0.02, "selection_budget": "tokens"})
    assert {"full set", "random", "longest", "MIWV", "lowest MIWV"} < {arm.name for arm in list_arms(None)}


def test_only_draws_of_the_comparisons_own_are_held_against() -> None:
    """A random draw that was typed, with a guard or of another size, is an arm that is judged like any other."""
    guarded = Arm("guarded", {"score": "random", "fraction": 0.5, "min_response_tokens": 12})
    half, same = Arm("half", {"fraction": 0.5}), Arm("mine", {"score": "random"})
    arms = list_arms([guarded, half, same])
    plan = Plan([*arms, Arm("random at 2 times the cost", {"score": "random"}, target=9)], {}, {})
    assert plan.baselines == {"full set", "random", "random, 50 %", "random at 2 times the cost"}
    found = {arm.name: find_random(arm, plan.arms).name for arm in (guarded, half, same, arms[0])}
    assert found == {"guarded": "random, 50 %", "half": "random, 50 %", "mine": "random", "full set": "random"}


def test_a_fraction_that_is_typed_at_its_default_is_the_default() -> None:
    given = [
        Arm("a", {"fraction": 0.1}),
        Arm("b", {"fraction": 0.1, "selection_budget": "tokens"}),
        Arm("c", {"selection_budget": "tokens"}),
        Arm("d", {"fraction": 1}),
    ]
    arms = list_arms(given, fraction=0.1)
    draws = ["random, equal tokens", "random, 100 %"]
    assert [arm.name for arm in arms] == ["full set", "random", "longest", *draws, "a", "b", "c", "d"]
    found = [find_random(arm, arms, fraction=0.1).name for arm in given]
    assert found == ["random", "random, equal tokens", "random, equal tokens", "random, 100 %"]


@pytest.mark.parametrize("names", [("a", "A"), ("random", "b"), ("untrained", "b")])
def test_two_arms_of_one_name_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(SystemExit, match="Give one another name"):
        list_arms([Arm(name, {}) for name in names])


def test_rounds_are_shared_by_arms_of_the_same_forwards() -> None:
    base = MIWVConfig(embedder="tfidf")
    configs = {
        "MIWV": base,
        "low": replace(base, score="low_miwv", fraction=0.2, selection_budget="tokens"),
        "influence": replace(base, score="influence", fraction=0.3),
        "influence of 4": replace(base, score="influence", exemplars_per_sample=4),
        "loss": replace(base, score="zero_shot_loss"),
        "other": replace(base, embedder="model"),
        "rescored": replace(base, rescore_strategy="epoch"),
        "rescored by tokens": replace(base, rescore_strategy="epoch", selection_budget="tokens"),
        "random": replace(base, score="random"),
        "diverse": replace(base, score="random", diversity="mmr"),
        "soft": replace(base, selection="sample", group_column="topic"),
        "quality": MIWVConfig(embedder="tfidf", score_column="quality"),
        "drawn anew": replace(base, selection="sample", resample_each_epoch=True),
    }
    found = {name: scoring.slug for name, scoring in share_rounds(configs).items()}
    assert list(found) == list(configs)
    # An arm with rounds begins with a round of its own selection; the others take any with the same losses.
    assert found["MIWV"] == found["low"] == found["soft"] == found["influence"] == found["rescored"] == "rescored"
    assert found["quality"] == "random" and found["drawn anew"] == "drawn-anew"
    alone = {
        name: found[name] for name in ("influence of 4", "loss", "other", "rescored by tokens", "random", "diverse")
    }
    assert list(alone.values()) == ["influence-of-4", "loss", "other", "rescored-by-tokens", "random", "diverse"]


def store(**configs: MIWVConfig) -> dict[str, dict[str, Any]]:
    """Rounds that are there, as their files hold them, in the order in which they were made."""
    return {slug: json.loads(json.dumps(config.to_dict())) for slug, config in configs.items()}


def test_a_round_that_was_made_with_something_else_is_not_selected_from() -> None:
    base = MIWVConfig(embedder="tfidf", score="influence")
    for one, other in [
        (replace(base, exemplars_per_sample=4), replace(base, exemplars_per_sample=2)),
        (base, replace(base, embedder="model")),
        (base, replace(base, score="zero_shot_loss")),
        (base, replace(base, layout="padded")),
        (replace(base, score="random"), replace(base, score="random", extra_losses="zero_shot")),
        (replace(base, score="random"), replace(base, score="random", diversity="mmr")),
    ]:
        assert share_rounds({"inf": one}, store(inf=one))["inf"].slug == "inf"
        # The round that is there stays: runs may rest on it.
        assert share_rounds({"inf": other}, store(inf=one))["inf"].slug == "inf-2"
        # A round of an arm of another name is taken, if it fits.
        assert share_rounds({"inf": other}, store(inf=one, elsewhere=other))["inf"].slug == "elsewhere"
    assert share_rounds({"inf": base}, {"inf": {}})["inf"].slug == "inf-2"  # all defaults


def test_a_round_that_is_there_is_kept_when_arms_are_added() -> None:
    base = MIWVConfig(embedder="tfidf")
    low, again = replace(base, score="low_miwv", fraction=0.2), replace(base, rescore_strategy="epoch")
    by_tokens = replace(again, selection_budget="tokens")
    arms = {"MIWV": base, "low": low, "again": again, "again by tokens": by_tokens}
    found = {name: one.slug for name, one in share_rounds(arms, store(miwv=base)).items()}
    # The arm that is scored again takes the round too: it would have selected the same.
    assert found == {"MIWV": "miwv", "low": "miwv", "again": "miwv", "again by tokens": "again-by-tokens"}
    # Of several that fit, an arm's own, then the oldest.
    found = {name: one.slug for name, one in share_rounds(arms, store(x=base, again=again, low=low)).items()}
    assert found == {"MIWV": "x", "low": "low", "again": "again", "again by tokens": "again-by-tokens"}


def test_the_rounds_of_a_finished_comparison_go_on_fitting() -> None:
    """docs/evidence.md was made by an earlier version, whose files say less."""
    folder = ROOT / "benchmarks" / "evidence" / "code_alpaca_2k"
    settings = json.loads((folder / "settings.json").read_text())["settings"]
    scores: dict[str, dict[str, Any]] = {
        "random": {"score": "random"},
        "longest": {"score": "longest"},
        "MIWV": {"score": "miwv"},
        "lowest MIWV": {"score": "low_miwv"},
        "MIWV again": {"rescore_strategy": "epoch"},
        "IFD": {"score": "ifd"},
        "highest loss": {"score": "zero_shot_loss"},
        "middle losses": {"score": "zero_shot_loss", "loss_band": [0.3, 0.7]},
    }
    common = {"fraction": settings["fraction"], "embedder": settings["embedder"], "refine_near_threshold": False}
    configs = {name: make_config(Arm(name, given), common, 20) for name, given in scores.items()}
    found = share_rounds(configs, read_stored(folder / "scores"))
    assert {name: one.slug for name, one in found.items()} == {
        "random": "random", "longest": "longest", "MIWV": "miwv", "lowest MIWV": "miwv", "MIWV again": "miwv",
        "IFD": "ifd", "highest loss": "highest-loss", "middle losses": "highest-loss",
    }  # fmt: skip


def test_rounds_that_are_there_come_the_oldest_first(tmp_path: Path) -> None:
    for slug, date in (("b", "2026-12-02"), ("a", "2026-12-01"), ("c", None)):
        file = tmp_path / slug / "miwv" / "round-000" / "round.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"config": {"score": slug}} | ({"date": date} if date else {})))
    assert list(read_stored(tmp_path).items()) == [(slug, {"score": slug}) for slug in "cab"]
    assert read_stored(tmp_path / "none") == {}


def test_later_rounds_are_counted() -> None:
    steps = MIWVConfig(rescore_strategy="steps", rescore_steps=4)
    assert [count_later_rounds(steps, count, 2) for count in (4, 5, 8, 9)] == [0, 1, 1, 2]
    epochs = MIWVConfig(rescore_strategy="epoch")
    assert [count_later_rounds(epochs, count, 3) for count in (3, 4, 7)] == [0, 1, 2]
    assert count_later_rounds(MIWVConfig(), 100, 3) == 0


# Schedules and cost


def test_selections_fill_whole_batches() -> None:
    assert [round_to_batches(count, 100, 8) for count in (1, 11, 13, 20.5, 99, 1000)] == [8, 8, 16, 24, 96, 96]
    for size in (7, 180, 1000):
        for count in (1, size // 3, size - 1, size):
            assert int(fraction_of(count, size) * size + 1e-9) == count


def test_an_order_holds_every_sample_equally_often_and_follows_its_seed() -> None:
    lengths = np.random.default_rng(0).integers(5, 50, 40)
    selection = np.arange(0, 32, 2)
    order = order_samples(selection, 16, 48, lengths, BatchRule(8, 1, 2))
    assert np.bincount(order, minlength=40)[selection].tolist() == [3] * 16 and len(order) == 48
    assert np.array_equal(order, order_samples(selection, 16, 48, lengths, BatchRule(8, 1, 2)))
    assert not np.array_equal(order, order_samples(selection, 16, 48, lengths, BatchRule(8, 2, 2)))
    # Of more samples than an epoch holds, each is seen as often as any other, or once more.
    counts = np.bincount(order_samples(np.arange(40), 32, 96, lengths, BatchRule(8, 1, 2)), minlength=40)
    assert counts.min() == 2 and counts.max() == 3
    # Of fewer, some are repeated to fill the batches.
    counts = np.bincount(order_samples(np.arange(5), 8, 16, lengths, BatchRule(8, 1, 2)))
    assert counts.sum() == 16 and counts.min() >= 2


def test_tokens_are_those_of_padded_forwards() -> None:
    lengths = np.array([3, 5, 2, 9])
    assert count_tokens(np.array([0, 1, 2, 3]), lengths, 2) == 2 * 5 + 2 * 9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_draws_at_equal_cost_cost_as_much_and_are_seen_as_often(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(20, 60, 200)
    draw, batch = np.random.default_rng(seed).permutation(200), BatchRule(8, seed, 2)
    for target in (8 * 3 * 60, 20_000, 60_000):
        order = fit_to_cost(draw, target, 3.0, lengths, batch)
        cost = 3 * count_tokens(order, lengths, 2)
        # One more step, of the longest samples, would cost more.
        assert target - 2 * 3 * 8 * 60 < cost <= max(target, 3 * 8 * 60)
        seen = np.bincount(order, minlength=200)
        assert set(np.flatnonzero(seen)) == set(draw[: (seen > 0).sum()])  # the first that are drawn
        assert len(order) == 8 or abs(len(order) / (seen > 0).sum() - 3.0) < 1.6
    everything = fit_to_cost(draw, 300_000, 3.0, lengths, batch)
    assert len(np.unique(everything)) == 200 and len(everything) / 200 > 9


def test_arms_of_like_cost_share_draws_that_cost_no_more() -> None:
    controls, assigned = make_controls({"b": 1090, "a": 1000, "c": 1101, "d": 5000}, base=500)
    assert [(arm.name, arm.target) for arm in controls] == [
        ("random at 2 times the cost", 1000), ("random at 2.2 times the cost", 1101),
        ("random at 10 times the cost", 5000),
    ]  # fmt: skip
    first, second, third = (arm.name for arm in controls)
    assert assigned == {"a": first, "b": first, "c": second, "d": third}
    assert make_controls({}, 1) == ([], {})


def test_arms_that_see_samples_more_often_have_draws_of_their_own() -> None:
    costs, passes = {"a": 1000, "b": 1001, "c": 1002, "d": 2000}, {"a": None, "b": 6.0, "c": None, "d": 6.0}
    controls, assigned = make_controls(costs, 500, passes)
    assert [(arm.name, arm.target, arm.passes) for arm in controls] == [
        ("random at 2 times the cost", 1000, None),
        ("random at 2 times the cost, seen 6 times", 1001, 6.0),
        ("random at 4 times the cost, seen 6 times", 2000, 6.0),
    ]
    first, second, third = (arm.name for arm in controls)
    assert assigned == {"a": first, "b": second, "c": first, "d": third}
    found = [describe_identity(arm) for arm in controls]
    assert found == [{"target": 1000}, {"target": 1001, "passes": 6.0}, {"target": 2000, "passes": 6.0}]


@pytest.mark.parametrize("seed", range(20))
def test_names_of_draws_at_equal_cost_are_distinct(seed: int) -> None:
    costs = np.exp(np.random.default_rng(seed).uniform(0, 6, 40)) * 1000
    controls, _ = make_controls({str(index): int(cost) for index, cost in enumerate(costs)}, 1000)
    assert len({arm.slug for arm in controls}) == len(controls) > 5


def test_runs_go_seed_by_seed_and_draws_at_equal_cost_come_last() -> None:
    plan = Plan([Arm("random", {}), Arm("miwv", {}), Arm("more", {}, target=9), Arm("most", {}, target=20)], {}, {})
    runs = [(run.arm.name, run.seed, run.rate) for run in plan.list_runs(2, [1e-3, 1e-4])]
    assert runs[0] == ("untrained", 0, 0.0)
    assert runs[1:] == [
        (name, seed, rate)
        for names in (["random", "miwv"], ["more", "most"])
        for seed in (0, 1)
        for rate in (1e-3, 1e-4)
        for name in names
    ]


# Corruption


def sample(prompt: list[int], response: list[int]) -> dict[str, list[int]]:
    return {"input_ids": prompt + response, "labels": [-100] * len(prompt) + response}


@pytest.fixture
def samples() -> datasets.Dataset:
    """Twenty samples with responses that all end in 7, 8, and differ before it."""
    return datasets.Dataset.from_list(
        [sample([100 + i, 50], [*range(200 + 10 * i, 210 + 10 * i), 7, 8]) for i in range(20)]
    )


def test_swapped_responses_are_those_of_others_and_all_are_there_once(samples: datasets.Dataset) -> None:
    spoiled, masks = corrupt(samples, {"swapped": 0.3})
    assert masks["swapped"].sum() == 6
    for index, (before, after) in enumerate(zip(samples, spoiled, strict=True)):
        assert before["input_ids"][:2] == after["input_ids"][:2]
        assert (before != after) == masks["swapped"][index]
        assert after["labels"] == [-100, -100, *after["input_ids"][2:]]
    assert sorted(map(tuple, samples["labels"])) == sorted(map(tuple, spoiled["labels"]))


def test_truncated_responses_are_beginnings_with_the_common_ending(samples: datasets.Dataset) -> None:
    spoiled, masks = corrupt(samples, {"truncated": 0.5})
    assert masks["truncated"].sum() == 10
    for before, after, is_cut in zip(samples["input_ids"], spoiled["input_ids"], masks["truncated"], strict=True):
        if is_cut:
            assert 3 <= len(after) - 2 <= 8 and after[-2:] == [7, 8] and after[:-2] == before[: len(after) - 2]
        else:
            assert before == after


def test_duplicates_are_copies_of_others_and_faults_do_not_overlap(samples: datasets.Dataset) -> None:
    spoiled, masks = corrupt(samples, {"swapped": 0.2, "truncated": 0.2, "duplicated": 0.2})
    assert [mask.sum() for mask in masks.values()] == [4, 4, 4] and sum(masks.values()).max() == 1
    rows = [tuple(ids) for ids in spoiled["input_ids"]]
    copied = masks["duplicated"]
    originals = {row for row, is_copy in zip(rows, copied, strict=True) if not is_copy}
    assert all(row in originals for row, is_copy in zip(rows, copied, strict=True) if is_copy) and len(originals) == 16
    again, _ = corrupt(samples, {"swapped": 0.2, "truncated": 0.2, "duplicated": 0.2})
    assert again["input_ids"] == spoiled["input_ids"]
    clean, none = corrupt(samples, {})
    assert clean["input_ids"] == samples["input_ids"] and none == {}


def test_other_columns_stay_and_go_with_copies(samples: datasets.Dataset) -> None:
    named = samples.add_column("topic", [f"topic {index}" for index in range(20)])
    spoiled, masks = corrupt(named, {"truncated": 0.2, "duplicated": 0.2})
    for index, (topic, ids) in enumerate(zip(spoiled["topic"], spoiled["input_ids"], strict=True)):
        assert topic == f"topic {ids[0] - 100}" and (ids[0] == 100 + index) != masks["duplicated"][index]


def test_parts_of_corruption_on_worked_examples() -> None:
    first, second = Tokens([1, 2, 3], [-100, 2, 3]), Tokens([4, 5, 6], [-100, -100, 6])
    assert swap_responses([first, second]) == [Tokens([1, 6], [-100, 6]), Tokens([4, 5, 2, 3], [-100, -100, 2, 3])]
    whole = Tokens([1, *range(10, 20), 9], [-100, *range(10, 20), 9])
    assert truncate(whole, 0.5, ending=1).ids == [1, *range(10, 15), 9]
    assert truncate(first, 0.1, ending=0).ids == [1, 2] and truncate(second, 0.5, ending=0) == second
    assert find_common_ending([[1, 2, 3], [4, 2, 3], [2, 3]]) == 2 and find_common_ending([[1], [2]]) == 0


def test_corruptions_are_parsed() -> None:
    assert parse_corruptions("swapped=0.3, truncated=0.1") == {"swapped": 0.3, "truncated": 0.1}
    assert merge_corruptions([{"duplicated": 0.1}, {"swapped": 0.3}]) == {"swapped": 0.3, "duplicated": 0.1}
    assert merge_corruptions(None) == {}
    for typed in ("swapped", "swapped=2", "swapped=x", "shuffled=0.1"):
        with pytest.raises(
            argparse.ArgumentTypeError, match="must be one of swapped, truncated, duplicated with a share"
        ):
            parse_corruptions(typed)
    with pytest.raises(SystemExit, match="more than the whole pool"):
        merge_corruptions([{"duplicated": 0.6}, {"swapped": 0.5}])


def test_corruptions_of_nothing_are_refused(samples: datasets.Dataset) -> None:
    with pytest.raises(SystemExit, match=r"--corrupt swapped=0.05 of 20 samples is 1: at least 2"):
        corrupt(samples, {"swapped": 0.05})
    with pytest.raises(SystemExit, match="duplicated=1 leaves no sample to make copies of"):
        corrupt(samples, {"duplicated": 1.0})


# Dealing


def test_everything_is_dealt_once_and_what_others_hold_is_waited_for(tmp_path: Path) -> None:
    runs = [Run(Arm(name, {}), 1.0, 0) for name in "abc"]
    done: set[str] = set()
    with hold(tmp_path / runs[0].slug) as is_ours:
        assert is_ours
        with hold(tmp_path / runs[0].slug, waits=False) as again:
            assert not again
        dealt = deal(runs, tmp_path, lambda run: run.arm.name in done)
        for expected in "bc":
            assert next(dealt).arm.name == expected
            done.add(expected)
    # The other holder died without a result: its run is dealt again.
    assert next(dealt).arm.name == "a"
    done.add("a")
    assert list(dealt) == [] and list(deal(runs, tmp_path, lambda run: True)) == []


def test_a_launched_process_becomes_one_that_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert leave_launcher() == (3, 4)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6" and "RANK" not in os.environ and "MASTER_PORT" not in os.environ
    assert leave_launcher() == (0, 1)


@pytest.mark.parametrize(("count", "local_rank", "expected"), [(0, 1, None), (1, 1, "0"), (2, 1, "1"), (2, 2, "0")])
def test_processes_share_devices_where_there_are_fewer(
    count: int, local_rank: int, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set first, so that what the function sets is removed after the test.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    leave_launcher()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == expected


# Results


def result(arm: str, seed: int, losses: list[float], scoring: int = 0, rate: float = 0.1) -> Result:
    identity = {"target": 9} if arm == "more" else {"arm": arm} if arm == "full set" else {"score": arm}
    return Result(arm, rate, seed, identity, 10, 100, 4, 2.0, 1000, scoring, {}, {"held-out samples": losses})


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    check_settings(tmp_path, {"fraction": 0.25, "corrupt": [{"swapped": 0.3}]}, {"pool": "a"})
    check_settings(tmp_path, {"fraction": 0.25, "corrupt": [{"swapped": 0.3}]}, {"pool": "a"})
    with pytest.raises(SystemExit, match=r"was made with --fraction 0\.25, not 0\.5: give that, or another --output"):
        check_settings(tmp_path, {"fraction": 0.5}, {"pool": "a"})
    with pytest.raises(SystemExit, match="made with other samples, though of the same name: give another --output"):
        check_settings(tmp_path, {"fraction": 0.25}, {"pool": "b"})


def test_a_name_that_was_given_to_another_configuration_is_refused() -> None:
    one = result("miwv", 0, [1.0])
    assert is_made_by(one, {"score": "miwv"}, is_derived=False) and not is_made_by(None, {}, is_derived=False)
    with pytest.raises(SystemExit, match=r"The arm 'miwv' was run as score=\"miwv\", not as score=\"random\""):
        is_made_by(one, {"score": "random"}, is_derived=False)
    # Draws at equal cost follow from the other arms. If these change, they are simply drawn again.
    assert not is_made_by(one, {"target": 5}, is_derived=True)


@pytest.mark.parametrize(
    ("settings", "is_revised"),
    [
        ({}, False),
        ({"score": "low_miwv", "selection": "sample"}, False),
        ({"rescore_strategy": "epoch", "epoch_order": "easy_to_hard"}, False),
        ({"epoch_order": "shuffled", "embedder": "tfidf", "scores_from": None}, False),
        ({"epoch_order": "easy_to_hard"}, True),
        ({"selection": "sample", "resample_each_epoch": True}, True),
        ({"selection": "sample", "rescore_strategy": "epoch"}, True),
        ({"scores_from": "elsewhere"}, True),
        ({"embedder": "model"}, True),
    ],
)
def test_results_that_were_made_otherwise_are_told_from_those_of_today(
    settings: dict[str, Any], is_revised: bool
) -> None:
    identity = describe_identity(Arm("a", settings))
    assert identity == ({**settings, "revision": 2} if is_revised else settings)
    stored = replace(result("a", 0, [1.0]), identity=settings)
    if is_revised:
        with pytest.raises(SystemExit, match="The arm 'a' was run as .*, not as .*revision=2"):
            is_made_by(stored, identity, is_derived=False)
    else:
        assert is_made_by(stored, identity, is_derived=False)


def test_a_run_is_shown_with_its_loss_over_response_tokens() -> None:
    # 3 tokens of 1 nat and one of 5; the sample of NaN does not count.
    assert result("a", 0, [1.0, math.nan, 5.0]).loss("held-out samples", np.array([3, 10, 1])) == 2.0


def test_time_left_is_that_of_the_same_arm_where_it_is_known() -> None:
    done = [replace(result("a", 0, [1.0]), seconds=10.0), replace(result("b", 0, [1.0]), seconds=30.0)]
    # An arm that has run takes as long again; one that has not, as long as its tokens: 40 s for 2,000.
    assert estimate_seconds(done, [("a", 9), ("b", 9), ("c", 500)], processes=1) == pytest.approx(10 + 30 + 10)
    assert estimate_seconds(done, [("a", 9)], processes=2) == 5.0 and estimate_seconds(done, [], 1) == 0
    assert estimate_seconds([replace(done[0], trained_tokens=0)], [("a", 9)], 1) is None
