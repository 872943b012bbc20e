"""`examples/compare.py` as a whole: what it trains, that processes share its runs, and that a killed one goes on."""

import argparse
import copy
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miwv_trainer import (
    attach,
    load_rows,
    pool_from_rows,
    pool_from_tokenized,
    read_rounds,
    score_and_select,
    to_dataset,
    tokenize,
)
from tests.helpers.launch import ROOT, torchrun
from tests.helpers.tiny import instruction_rows, save_tiny

EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))

import compare  # noqa: E402
from adapter import make_adapter_trainer  # noqa: E402
from comparison.arms import Arm, list_arms, parse_arm  # noqa: E402
from comparison.options import make_parser  # noqa: E402
from comparison.plan import Orders, Run, describe_identity, find_passes, make_plan  # noqa: E402
from comparison.results import read_result, write_result  # noqa: E402
from comparison.samples import load_samples, split_dataset  # noqa: E402
from comparison.schedule import count_tokens  # noqa: E402
from comparison.scoring import Scores, is_rescored  # noqa: E402
from comparison.setting import Setting, choose_micro_batch, prepare  # noqa: E402
from comparison.training import make_run, make_trainer, train_rescored  # noqa: E402

ALWAYS = ["full set", "random", "longest"]
SAMPLES, HELD_OUT, BATCH = 40, 8, 4
FORWARDED = 2  # samples of a forward on a CPU


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("model"))
    for name, count, seed in (("pool", SAMPLES, 0), ("other", 12, 5)):
        rows = instruction_rows(count, seed)
        lines = [json.dumps({**row, "quality": index, "topic": index % 2}) + "\n" for index, row in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def options(folder: Path) -> list[str]:
    options = (
        f"--model {folder} --dataset {folder / 'pool.jsonl'} --fraction 0.25 --held-out {HELD_OUT} --longest 0 "
        f"--max-samples 0 --seeds 2 --epochs 2 --batch-size {BATCH} --evaluate {folder / 'other.jsonl'}"
    )
    return options.split()


@pytest.fixture(scope="module")
def setting(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Setting:
    output = tmp_path_factory.mktemp("compared")
    arms = ["--arm", "MIWV: score=miwv", "--arm", "again: rescore_strategy=epoch", "--corrupt", "swapped=0.25"]
    return prepare(make_parser(None).parse_args([*options, *arms, "--output", str(output)]))


@pytest.fixture(scope="module")
def scores(setting: Setting) -> Scores:
    scores = Scores(setting)
    scores.score()
    return scores


def arm_of(setting: Setting, name: str) -> Arm:
    return next(arm for arm in setting.arms if arm.name == name)


def test_arms_of_the_same_forwards_share_a_round(setting: Setting, scores: Scores) -> None:
    assert {name: scoring.slug for name, scoring in scores.scorings.items()} == {
        "random": "random", "longest": "longest", "MIWV": "again", "again": "again",
    }  # fmt: skip
    assert scores.count_tokens(arm_of(setting, "random")) == scores.count_tokens(arm_of(setting, "longest")) == 0
    # In trees each sample is forwarded twice: behind the preamble as a trunk, and without it as a branch.
    twice = 2 * setting.samples.pool.lengths.sum()
    assert twice < scores.count_tokens(arm_of(setting, "MIWV")) < 1.5 * twice


def test_a_round_of_another_configuration_is_scored_again_and_one_that_fits_is_kept(
    setting: Setting, tmp_path: Path
) -> None:
    """A comparison that was stopped after scoring, and goes on with other arms."""
    arguments = argparse.Namespace(**{**vars(setting.arguments), "output": str(tmp_path)})

    def score(**arms: dict[str, Any]) -> Scores:
        listed = [Arm(name, settings) for name, settings in arms.items()]
        scores = Scores(replace(setting, arms=listed, arguments=arguments))
        scores.score()
        return scores

    four, two = ({"score": "influence", "exemplars_per_sample": count} for count in (4, 2))
    for settings in (four, two):
        scores = score(inf=settings)
        assert scores.read(scores.arms[0]).summary["config"]["exemplars_per_sample"] == settings["exemplars_per_sample"]
    file = tmp_path / "scores" / "again" / "miwv" / "round-000" / "round.json"
    assert score(again={}).scorings["again"].slug == "again"
    before = file.read_bytes()
    scores = score(again={}, MIWV={}, rescored={"rescore_strategy": "epoch"})
    assert {one.slug for one in scores.scorings.values()} == {"again"} and file.read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "scores").iterdir() if path.is_dir()) == ["again", "inf", "inf-2"]


def test_the_known_part_is_learnt_only_when_the_options_are_those_of_the_folder(
    options: list[str], tmp_path: Path, typed: Callable[[list[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*options, "--known", "0.5", "--arm", "a: score=longest, fraction=0.5", "--output", str(tmp_path)]

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("comparison.setting.train_known", die)
        typed(given)
    with pytest.raises(SystemExit, match="was made with --known 0.5, not 0.25: give that, or another --output"):
        typed([*given, "--known", "0.25"])
    assert not (tmp_path / "known-model" / "done").exists()


def test_an_arm_selects_by_columns_of_the_dataset(
    setting: Setting, scores: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A score of one's own, and groups: the pool that is scored is token ids, and its rows have the columns."""
    for name, settings in {"own": {"score_column": "quality"}, "groups": {"group_column": "topic"}}.items():
        monkeypatch.setitem(scores.scorings, name, scores.scorings["random" if name == "own" else "again"])
        selection = scores.select(Arm(name, settings), seed=0)
        rows = setting.samples.rows
        if name == "own":
            assert sorted(np.asarray(rows["quality"])[selection]) == sorted(rows["quality"])[-8:]
        else:
            share = 8 * np.mean(rows["topic"])
            assert len(selection) == 8 and abs(np.asarray(rows["topic"])[selection].sum() - share) < 1
    with pytest.raises(SystemExit, match="The arm 'none': .*qualty"):
        monkeypatch.setitem(scores.scorings, "none", scores.scorings["random"])
        scores.select(Arm("none", {"score_column": "qualty"}), seed=0)
    with pytest.raises(SystemExit, match="The arm 'spread': There are no embeddings in"):
        monkeypatch.setitem(scores.scorings, "spread", scores.scorings["random"])  # a round that embeds nothing
        scores.select(Arm("spread", {"score": "random", "max_selected_similarity": 0.9}), seed=0)


def test_an_arm_selects_by_a_function_of_the_users(setting: Setting, scores: Scores) -> None:
    """By the losses of the round that MIWV has, which is scored once for both, also where it is scored again."""
    typed = "own: score=tests.helpers.own_scores:middle_miwv, extra_losses=both"
    arms = [parse_arm(typed), parse_arm(f"{typed}, rescore_strategy=epoch".replace("own", "own again", 1))]
    arms.append(parse_arm("shortest: score=tests.helpers.own_scores:shortest_first"))
    own = Scores(replace(setting, arms=[*setting.arms, *arms]))
    assert own.scorings["own"].slug == own.scorings["MIWV"].slug
    assert own.scorings["shortest"].slug == own.scorings["random"].slug
    own.score()
    stored = own.read(arm_of(setting, "MIWV"))
    miwv, tokens = stored.column("miwv"), stored.column("response_tokens")
    middle = np.where(tokens % 2 == 1, np.inf, np.abs(miwv - np.nanmedian(miwv)))
    expected = np.sort(np.argsort(middle, kind="stable")[:8])
    assert np.array_equal(own.select(arms[0], 0), expected)
    assert np.array_equal(own.select(arms[2], 0), np.sort(np.argsort(tokens, kind="stable")[:8]))
    trained = train_rescored(setting, own, Run(arms[1], 1e-3, 0))
    trained.model.unload()
    assert np.array_equal(trained.selection, expected)
    assert describe_identity(arms[0]) == arms[0].settings


@pytest.mark.parametrize("name", ["pool.jsonl", "table"])
def test_an_array_has_a_number_for_each_row_of_the_dataset(
    folder: Path, options: list[str], setting: Setting, tmp_path: Path, name: str
) -> None:
    """As a column of the same numbers: in a pool that is shuffled, cut, without long samples, and has copies."""
    rows = load_rows(str(folder / "pool.jsonl"))
    data = folder / name
    if name == "table":
        data = tmp_path / name
        to_dataset(rows).save_to_disk(data)
    lengths = pool_from_rows(rows, setting.tokenizer).lengths
    longest = sorted(lengths)[-4]
    numbers = np.random.default_rng(0).permutation(SAMPLES).astype(float)
    numbers[5] = np.nan
    np.save(tmp_path / "scores.npy", numbers)
    cut = f"--dataset {data} --longest {longest} --max-samples 36 --corrupt duplicated=0.25 --output {tmp_path}"
    given = [*options, *cut.split(), "--arm", f"own: score={tmp_path / 'scores.npy'}"]
    setting = prepare(make_parser(None).parse_args(given))
    scores = Scores(setting)
    scores.score()
    arm = arm_of(setting, "own")
    places = np.asarray(setting.samples.rows["quality"])  # the column holds the number of the row
    assert len(places) == 28 > len(np.unique(places)) and lengths[places].max() <= longest
    of_rows = numbers[places]
    best = np.argsort(np.where(np.isnan(of_rows), np.inf, -of_rows), kind="stable")
    assert np.array_equal(scores.select(arm, 0), np.sort(best[: len(scores.select(arm, 0))]))
    again = replace(arm, settings={**(arm.settings or {}), "rescore_strategy": "epoch"})
    trained = train_rescored(setting, scores, Run(again, 1e-3, 0))
    trained.model.unload()
    assert np.array_equal(trained.selection, scores.select(arm, 0))
    assert "numbers" in describe_identity(arm)


@pytest.mark.parametrize("name", ["pool.jsonl", "table"])
def test_the_pool_is_the_one_that_the_datasets_own_shuffle_makes(
    folder: Path, options: list[str], setting: Setting, tmp_path: Path, name: str
) -> None:
    """Results of earlier versions are of that pool."""
    rows: Any = load_rows(str(folder / "pool.jsonl"))
    if name == "table":
        rows = to_dataset(rows)
        rows.save_to_disk(tmp_path / name)
    path = tmp_path / name if name == "table" else folder / name
    arguments = make_parser(None).parse_args([*options, "--dataset", str(path), "--max-samples", "30"])
    found, expected = split_dataset(arguments, setting.tokenizer), rows.shuffle(seed=0).select(range(30))
    assert [row["quality"] for row in found.held_out] == [row["quality"] for row in expected][:HELD_OUT]
    assert [row["quality"] for row in found.pool] == [row["quality"] for row in expected][HELD_OUT:]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--arm", "own: score={here}/short.npy"],
            "own.*is '.*short.npy', an array of shape .3,., but .* has 40 rows: ",
        ),
        (["--dataset", "nothere.jsonl"], "^--dataset nothere.jsonl: There is no file 'nothere.jsonl'[^\n]*$"),
        (["--evaluate", "nothere.jsonl"], "^--evaluate nothere.jsonl: There is no file 'nothere.jsonl'[^\n]*$"),
        (["--model", "{here}/none"], "^--model .*none: No model could be loaded from .*none'[^\n]*$"),
        (["--columns", "prompt=q,response=a"], "^--dataset .*pool.jsonl: [^\n]*'q'[^\n]*$"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(
    options: list[str], tmp_path: Path, given: list[str], message: str
) -> None:
    np.save(tmp_path / "short.npy", np.arange(3.0))
    words = [word.format(here=tmp_path) for word in given]
    with pytest.raises(SystemExit, match=message):
        prepare(make_parser(None).parse_args([*options, *words, "--output", str(tmp_path)]))


def test_the_other_datasets_are_read_by_the_same_names_where_they_have_them(
    folder: Path, options: list[str], setting: Setting, tmp_path: Path
) -> None:
    for name in ("pool", "other"):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        texts = [json.dumps({"q": row["instruction"], "a": row["output"]}) + "\n" for row in rows]
        (tmp_path / f"{name}-of-others.jsonl").write_text("".join(texts))
    same, usual = str(tmp_path / "other-of-others.jsonl"), str(folder / "other.jsonl")
    given = [
        "--dataset",
        str(tmp_path / "pool-of-others.jsonl"),
        "--columns",
        "prompt=q,response=a",
        "--evaluate",
        same,
    ]
    _, evaluated = load_samples(make_parser(None).parse_args([*options, *given]), setting.tokenizer)
    assert list(evaluated) == ["held-out samples", "other.jsonl", "other-of-others.jsonl"]
    for file, columns in ((same, {"prompt": "q", "response": "a"}), (usual, None)):
        rows = tokenize(load_rows(file).shuffle(seed=0).select(range(HELD_OUT)), setting.tokenizer, columns)
        expected = pool_from_tokenized(rows, setting.tokenizer)
        assert evaluated[Path(file).name].pool.fingerprint == expected.fingerprint


def test_what_is_trained_is_what_was_planned(setting: Setting, scores: Scores) -> None:
    """Full batches, the planned tokens, and the losses of every sample: an arm, its control, and an arm with rounds."""
    plan, orders = make_plan(setting, scores), Orders(setting, scores)
    control = next(arm for arm in plan.arms if arm.name == plan.same_cost["MIWV"])
    runs = {arm.name: Run(arm, 1e-3, 1) for arm in (arm_of(setting, "MIWV"), control, arm_of(setting, "again"))}
    results = {name: make_run(setting, scores, run) for name, run in runs.items()}
    for name in ("MIWV", control.name):
        order = orders.order(runs[name].arm, 1)
        assert results[name].steps * BATCH == len(order)
        assert results[name].trained_tokens == count_tokens(order, setting.samples.lengths, FORWARDED)
        assert results[name].samples == len(np.unique(order))
    one, equal, again = results["MIWV"], results[control.name], results["again"]
    assert one.steps == again.steps == 4 and equal.steps > 4 and is_rescored(setting.make_config(runs["again"].arm))
    # Two batches of four are the 25 % of 32 samples, seen twice.
    assert one.samples == 8 and one.seen == 2.0
    assert one.scoring_tokens == scores.count_tokens(runs["MIWV"].arm)
    assert again.scoring_tokens == 2 * one.scoring_tokens and equal.scoring_tokens == 0
    # The control costs what scoring and training cost, or a batch less.
    longest_batch = 3 * BATCH * setting.samples.lengths.max()
    assert control.target is not None and control.target - longest_batch < equal.compute <= control.target
    assert {name: len(losses) for name, losses in one.losses.items()} == {
        "held-out samples": HELD_OUT,
        "other.jsonl": 8,
    }
    assert np.isfinite([*one.losses.values()]).all() and one.losses != equal.losses
    assert 0 <= one.shares["swapped"] <= 1


def test_an_arm_with_rounds_reads_its_first_round_and_trains_in_the_same_order_until_the_second(
    setting: Setting, scores: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(Arm("late", {"rescore_strategy": "steps", "rescore_steps": 100}), 1e-3, 0)
    monkeypatch.setitem(scores.scorings, "late", scores.scorings["again"])
    late, once = make_run(setting, scores, run), make_run(setting, scores, Run(arm_of(setting, "MIWV"), 1e-3, 0))
    assert late.losses == once.losses and late.trained_tokens == once.trained_tokens
    first = setting.output / "scores" / "again" / "miwv" / "round-000" / "scores.parquet"
    copied = setting.output / "trained" / run.slug / "miwv" / "round-000" / "scores.parquet"
    assert first.read_bytes() == copied.read_bytes()
    assert not list(copied.parents[1].glob("previous-*"))


@pytest.mark.parametrize(
    ("settings", "columns"),
    [
        ({}, ["miwv"]),
        ({"score": "low_miwv"}, ["miwv"]),
        ({"score": "longest"}, ["response_tokens"]),
        ({"score": "influence", "fraction": 0.25}, ["miwv"]),
        ({"score_column": "quality"}, ["quality"]),
        ({"score_column": "quality", "preset": "guarded", "extra_losses": "zero_shot"}, ["quality"]),
    ],
)
@pytest.mark.parametrize("epoch_order", ["easy_to_hard", "hard_to_easy"])
def test_an_arm_with_an_order_by_difficulty_is_trained_in_that_order(
    setting: Setting, scores: Scores, settings: dict[str, Any], columns: list[str], epoch_order: str
) -> None:
    """Two batches make an epoch: the four easiest samples and the four hardest."""
    arm = Arm("sorted", {**settings, "epoch_order": epoch_order})
    own = Scores(replace(setting, arms=[arm]))
    own.score()
    selection, order = own.select(arm, 1), Orders(setting, own).order(arm, 1)
    rows = setting.samples.rows
    known = rows[columns[0]] if columns[0] in rows.column_names else own.read(arm).column(columns[0])
    hardness = np.asarray(known, dtype=float)
    for epoch in np.split(order, len(order) // 8):
        assert len(np.unique(epoch)) == 8 and np.isin(epoch, selection).all()
        first, second = hardness[epoch[:BATCH]], hardness[epoch[BATCH:]]
        easy, hard = (first, second) if epoch_order == "easy_to_hard" else (second, first)
        assert easy.max() <= hard.min()


def test_an_order_by_difficulty_is_that_of_a_trainer(
    setting: Setting, scores: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = Arm("sorted", {"epoch_order": "hard_to_easy"})
    monkeypatch.setitem(scores.scorings, "sorted", scores.scorings["MIWV"])
    trainer = make_trainer(setting, Run(arm, 1e-3, 1), np.arange(len(setting.samples.pool)), 1)
    source = str(scores.find_folder(arm))
    callback = attach(trainer, replace(setting.make_config(arm), scores_from=source))
    trainer.train()
    trainer.model.unload()
    expected = np.concatenate([callback.sampler.order(epoch) for epoch in (0, 1)])
    assert np.array_equal(Orders(setting, scores).order(arm, 1), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"selection": "sample", "temperature": 4.0, "resample_each_epoch": True},
        {"selection": "sample", "temperature": 4.0, "rescore_strategy": "epoch"},
        {"score_column": "quality", "selection": "sample", "temperature": 4.0, "resample_each_epoch": True},
        {"score": "random", "rescore_strategy": "epoch"},
    ],
    ids=lambda settings: ", ".join(settings),
)
def test_each_seed_draws_a_first_selection_of_its_own(setting: Setting, settings: dict[str, Any]) -> None:
    """The pool is scored once for all seeds, and what a seed draws is what its order was planned with."""
    arm = Arm(f"drawn by {' and '.join(settings)}", settings)
    scores = Scores(replace(setting, arms=[arm]))
    scores.score()
    found = []
    for seed in (0, 1):
        trained = train_rescored(setting, scores, Run(arm, 1e-3, seed))
        trained.model.unload()
        assert np.array_equal(trained.selection, scores.select(arm, seed))
        rounds = 2 if settings.get("rescore_strategy") == "epoch" else 1
        assert trained.scoring_tokens == rounds * scores.count_tokens(arm)
        found.append(trained.selection)
    assert not np.array_equal(*found)


def test_arms_of_another_fraction_are_held_against_draws_that_are_seen_as_often(
    setting: Setting, scores: Scores
) -> None:
    """16 samples are trained of a pool of 32: 4 of them 4 times, 8 twice, 16 once, or 16 of 24."""
    arms = [Arm("MIWV", {}), *(Arm(f"{share:g}", {"fraction": share}) for share in (0.125, 0.5, 0.75))]
    own = replace(setting, arms=list_arms(arms, 0.25))
    its_scores = Scores(own)
    its_scores.score()
    plan, orders = make_plan(own, its_scores), Orders(own, its_scores)
    controls = {arm.name: arm for arm in plan.arms}
    used = {name: controls[plan.same_cost[name]] for name in ("MIWV", "0.125", "0.5", "0.75")}
    assert [arm.passes for arm in used.values()] == [None, 4, 1, 1]
    assert len({arm.slug for arm in plan.arms}) == len(plan.arms)
    assert used["0.125"].name.endswith(" times the cost, seen 4 times")
    assert used["0.5"].name.endswith(" times the cost, seen once")
    # Where all steps see the usual selection once, an arm of a larger fraction sees its samples as often.
    assert find_passes(replace(own, steps=2), arms[2]) is None
    assert find_passes(own, Arm("full set", None)) is None
    few = orders.order(used["0.125"], 0)
    selected = len(np.unique(few))
    # Whole batches of 4 are drawn, of which each sample is seen 4 times, or as often as the last batches allow.
    assert 3 < len(few) / selected <= 5 and len(few) / len(np.unique(orders.order(used["MIWV"], 0))) < 3
    assert {orders.order(used["0.5"], 0).size} == {len(np.unique(orders.order(used["0.5"], 0)))}
    most = make_run(own, its_scores, Run(Arm("0.75", {"fraction": 0.75}), 1e-3, 0))
    assert len(its_scores.select(Arm("0.75", {"fraction": 0.75}), 0)) == 24
    assert most.samples == 16 and most.seen == 1.0
    trained = np.unique(orders.order(Arm("0.75", {"fraction": 0.75}), 0))
    assert most.tokens == setting.samples.pool.response_tokens[trained].sum()


def test_what_the_scores_of_another_run_have_cost_is_counted(setting: Setting, scores: Scores, tmp_path: Path) -> None:
    """Once where the losses are read from a run that has read them itself; and later rounds are forwarded here."""
    miwv, first = arm_of(setting, "MIWV"), tmp_path / "first"
    score_and_select(setting.model, setting.samples.pool, setting.make_config(miwv), first)
    again = replace(setting.make_config(miwv), scores_from=str(first))
    assert score_and_select(setting.model, setting.samples.pool, again, tmp_path / "second").summary[
        "tokens_forwarded"
    ] == 0  # fmt: skip
    arms = [
        Arm("taken", {"scores_from": str(tmp_path / "second")}),
        Arm("taken and rescored", {"scores_from": str(tmp_path / "second"), "rescore_strategy": "epoch"}),
    ]
    own = replace(setting, arms=list_arms(arms, 0.25))
    its_scores = Scores(own)
    its_scores.score()
    cost = scores.count_tokens(miwv)
    assert [its_scores.count_tokens(arm) for arm in arms] == [cost, cost]
    assert make_plan(own, its_scores).same_cost.keys() == {"taken", "taken and rescored"}
    trained = [make_run(own, its_scores, Run(arm, 1e-3, 0)) for arm in arms]
    assert [one.scoring_tokens for one in trained] == [cost, 2 * cost]
    predicted = [its_scores.predict_compute(arm, 1000) for arm in arms]
    assert predicted == [cost + 3000, 2 * cost + 3000]
    shutil.rmtree(first)
    with pytest.raises(SystemExit, match="The cost of the scores of the arm 'taken' cannot be counted: There are no"):
        its_scores.count_tokens(arms[0])


def test_prompts_that_the_model_itself_embeds_are_counted(setting: Setting, scores: Scores) -> None:
    arms = [
        Arm("by the model", {"embedder": "model"}),
        Arm("distant", {"score": "random", "embedder": "model", "max_selected_similarity": 0.99}),
        Arm("plain", {"score": "random", "embedder": "model"}),
        Arm("by the model, rescored", {"embedder": "model", "rescore_strategy": "epoch"}),
    ]
    own = replace(setting, arms=list_arms(arms, 0.25))
    its_scores = Scores(own)
    its_scores.score()
    pool = setting.samples.pool
    prompts = sum(len(pool.preamble) + len(pool.prompt(index)) for index in range(len(pool)))
    model, distant, plain, rescored = (its_scores.count_cost(arm) for arm in arms)
    assert model == rescored == (model.scored, prompts) and model.scored > 0
    assert distant == (0, prompts) and plain == (0, 0)
    # Exemplars are found once. Trees of other exemplars have about as many tokens.
    trained = make_run(own, its_scores, Run(arms[3], 1e-3, 0))
    assert trained.scoring_tokens == 2 * model.scored + prompts
    assert its_scores.predict_compute(arms[3], 1000) == 2 * model.scored + prompts + 3000


def test_an_arm_with_groups_and_rounds_begins_with_what_it_selects(setting: Setting) -> None:
    arm = Arm("groups and rounds", {"group_column": "topic", "rescore_strategy": "epoch"})
    scores = Scores(replace(setting, arms=[arm]))
    scores.score()
    trained = train_rescored(setting, scores, Run(arm, 1e-3, 0))
    trained.model.unload()
    assert np.array_equal(trained.selection, scores.select(arm, 0))
    first = read_rounds(setting.output / "trained" / Run(arm, 1e-3, 0).slug)[0]
    assert first.summary["tokens_forwarded"] == 0  # the losses are those of the arm's round


def test_a_batch_in_several_forwards_makes_the_same_step(setting: Setting, scores: Scores) -> None:
    """Each response token counts alike, in whatever forward it stands; a mean over forwards would be another loss."""
    assert setting.arguments.micro_batch_size == FORWARDED < BATCH
    whole = argparse.Namespace(**{**vars(setting.arguments), "micro_batch_size": BATCH})
    exact = replace(setting, model=copy.deepcopy(setting.model).float())  # bfloat16 rounds by more than 0.01
    run = Run(arm_of(setting, "longest"), 1e-3, 1)
    parts, one = make_run(exact, scores, run), make_run(replace(exact, arguments=whole), scores, run)
    other = make_run(exact, scores, Run(run.arm, 1e-3, 0))
    assert parts.steps == one.steps and parts.samples == one.samples and parts.trained_tokens < one.trained_tokens
    (ours, theirs, others) = (np.asarray(each.losses["held-out samples"]) for each in (parts, one, other))
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(ours - others).max()


@pytest.mark.parametrize(("batch", "device", "size"), [(8, "cpu", 2), (5, "cpu", 1), (8, "cuda", 8)])
def test_a_forward_takes_two_samples_on_a_cpu_and_the_batch_elsewhere(batch: int, device: str, size: int) -> None:
    assert choose_micro_batch(batch, None, torch.device(device)) == size
    assert choose_micro_batch(batch, batch, torch.device(device)) == batch


def test_forwards_that_do_not_fill_a_batch_are_refused() -> None:
    with pytest.raises(SystemExit, match="micro-batch-size 3 does not divide --batch-size 8. Give a divisor, or"):
        choose_micro_batch(8, 3, torch.device("cpu"))


def test_every_batch_that_enters_the_model_is_full(setting: Setting, scores: Scores, tmp_path: Path) -> None:
    """Counted where the batches go into the model, for a selection of ten and batches of eight."""
    order = np.resize(np.arange(10), 40)
    trainer = make_adapter_trainer(
        setting.model, setting.tokenizer, setting.samples.rows.select(order), tmp_path, 0,
        max_steps=5, per_device_train_batch_size=8, train_sampling_strategy="sequential",
    )  # fmt: skip
    seen: list[Any] = []
    trainer.model.register_forward_pre_hook(
        lambda model, args, given: seen.append(given["input_ids"].tolist()), with_kwargs=True
    )
    trainer.train()
    trainer.model.unload()
    assert [len(batch) for batch in seen] == [8] * 5
    rows = setting.samples.rows[:10]["input_ids"]
    flat = [tuple(ids) for batch in seen for ids in batch]
    assert all(ids[: len(rows[index])] == tuple(rows[index]) for ids, index in zip(flat, order, strict=True))


@pytest.mark.parametrize("option", ["--seeds", "--batch-size", "--micro-batch-size", "--rescores"])
def test_numbers_that_make_no_comparison_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser(None).parse_args([option, "0"])
    assert f"argument {option}: must be a whole number from 1 on, but got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--known", "1"], "must be a number above 0 and below 1, but got 1"),
        (["--known", "half"], "must be a number above 0 and below 1, but got half"),
        (["--learning-rates", "5e-4", "fast"], "must be a learning rate such as 5e-4, but got fast"),
        (["--learning-rates", "1e-3", "1e-3"], "--learning-rates: 0.001 is given twice; give each learning rate once"),
        (["--learning-rates", "1e-3", "2e-3", "1.0000001e-3"], "0.001 is given twice; give each learning rate once"),
        (["--fraction", "5"], "fraction"),
        (["--fraction", "all"], "must be a number such as 0.1, but got all"),
        (["--epochs", "0"], "must be a number above 0, but got 0"),
        (["--epochs", "inf"], "must be a number above 0, but got inf"),
        (["--held-out", "1"], "must be a whole number from 2 on, but got 1"),
        (["--arm", "score=miwv"], r'must be "name: key=value, ..."'),
        (["--corrupt", "swaped=0.3"], "must be one of swapped, truncated, duplicated with a share of the pool"),
    ],
)
def test_options_say_what_is_allowed(typed: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser(None).parse_args(typed)
    assert message in capsys.readouterr().err


def test_an_arm_whose_scores_are_of_another_pool_is_named(setting: Setting, scores: Scores, tmp_path: Path) -> None:
    other = pool_from_rows(instruction_rows(20, 9), setting.tokenizer)
    score_and_select(setting.model, other, setting.make_config(arm_of(setting, "MIWV")), tmp_path / "other")
    arms = [Arm("taken", {"scores_from": str(tmp_path / "other")})]
    arguments = argparse.Namespace(**{**vars(setting.arguments), "output": str(tmp_path / "compared")})
    with pytest.raises(SystemExit, match="cannot be scored for the arm 'taken': `scores_from` names scores of another"):
        Scores(replace(setting, arms=arms, arguments=arguments)).score()


def test_too_few_samples_are_refused(options: list[str], setting: Setting) -> None:
    arguments = make_parser(None).parse_args([*options, "--longest", "1"])
    with pytest.raises(SystemExit, match="has 0 samples of at most 1 tokens, of which --max-samples all are taken: 8"):
        split_dataset(arguments, setting.tokenizer)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    def run(options: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["compare.py", *options])
        compare.main()

    return run


def test_the_command_on_the_page_is_parsed_to_the_same_options(options: list[str]) -> None:
    given = [*options, "--arm", "a: score=longest, loss_band=[0.0, 1.0]", "--corrupt", "swapped=0.3", "--refine"]
    arguments = make_parser(None).parse_args([*given, "--learning-rates", "1e-3", "1e-4", "--known", "0.5"])
    words = re.findall(r'"[^"]*"|\S+', compare.describe_command(arguments))[2:]
    again = make_parser(None).parse_args([word.strip('"') for word in words])
    assert again == arguments


def test_a_page_of_the_runs_so_far_makes_no_further_ones_and_says_what_is_missing(
    options: list[str], tmp_path: Path, typed: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*options, "--arm", "MIWV: score=miwv", "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match=f"{tmp_path} has too few runs for a page. Leave --page-only out."):
        typed([*given, "--page-only"])
    assert not (tmp_path / "scores").exists()
    setting = prepare(make_parser(None).parse_args(given))
    scores = Scores(setting)
    scores.score()
    plan = make_plan(setting, scores)
    runs = plan.list_runs(2, setting.arguments.learning_rates)
    for run in [run for run in runs if run.arm.target is None and (run.seed == 0 or run.arm.name == "random")]:
        write_result(compare.find_file(setting, run), make_run(setting, scores, run))
    before = results_of(tmp_path)
    typed([*given, "--page-only"])
    assert results_of(tmp_path) == before
    page, control = (tmp_path / "comparison.md").read_text(), plan.same_cost["MIWV"]
    missing = f"full set 1, longest 1, MIWV 1, {control} 0"
    assert "\n**Unfinished. " in page
    assert f"- unfinished: 6 of {len(runs)} runs; arms that lack some, with those they have: {missing}\n" in page
    assert "--page-only" not in page and "| MIWV |" in page and (tmp_path / "comparison.png").is_file()
    assert "runs to go" not in capsys.readouterr().out
    # Draws at another cost than the one of today are no result of this comparison.
    stale = next(run for run in runs if run.arm.name == control)
    other = read_result(compare.find_file(setting, next(run for run in runs if run.arm.name == "random")))
    assert other is not None
    write_result(compare.find_file(setting, stale), replace(other, arm=control, identity={"target": 1}))
    typed([*given, "--page-only"])
    page = (tmp_path / "comparison.md").read_text()
    assert f"- unfinished: 6 of {len(runs)} runs" in page and f"| {control} |" not in page
    # Runs of another configuration are refused, before the pool is scored for it.
    changed = [*options, "--arm", "MIWV: score=zero_shot_loss", "--output", str(tmp_path)]
    for more in (["--page-only"], []):
        with pytest.raises(SystemExit, match='The arm .MIWV. was run as score="miwv", not as score="zero_shot_loss"'):
            typed([*changed, *more])
    with pytest.raises(SystemExit, match="The pool was not scored for the arm 'IFD'. Leave it out, or --page-only."):
        typed([*given, "--arm", "IFD: score=ifd", "--page-only"])
    rounds = [path.name for path in (tmp_path / "scores").iterdir() if path.is_dir()]
    assert sorted(rounds) == ["longest", "miwv", "random"]
    assert (tmp_path / "comparison.md").read_text() == page


def results_of(output: Path) -> dict[str, dict[str, Any]]:
    """The files of all runs, without their times."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted((output / "runs").glob("*.json"))}
    return {name: {**result, "seconds": 0} for name, result in found.items()}


@pytest.fixture(scope="module")
def finished(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The default arms, with generations."""
    output = tmp_path_factory.mktemp("finished")
    more = ["--generations", "2", "--max-new-tokens", "3", "--output", str(output)]
    done = subprocess.run([*compare_command(options), *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return output, done.stdout


def compare_command(options: list[str]) -> list[str]:
    return [sys.executable, str(EXAMPLES / "compare.py"), *options]


@pytest.mark.slow
def test_every_arm_is_trained_with_every_seed_as_many_samples(finished: tuple[Path, str]) -> None:
    results = results_of(finished[0])
    names = {result["arm"] for result in results.values()}
    assert {*ALWAYS, "untrained", "random, equal tokens", "MIWV", "MIWV rescored", "MIWV by tokens"} < names
    controls = {name for name in names if "times the cost" in name}
    assert controls and len(results) == 1 + 2 * (len(names) - 1)
    for result in results.values():
        if result["arm"] in controls:
            assert result["steps"] > 4 and result["scoring_tokens"] == 0
        elif result["arm"] != "untrained":
            assert result["steps"] == 4 and result["seen"] * result["samples"] == pytest.approx(16)
    rescored = results["miwv-rescored-rate-0.0005-seed-0"]["scoring_tokens"]
    assert rescored == 2 * results["miwv-rate-0.0005-seed-0"]["scoring_tokens"] > 0


@pytest.mark.slow
def test_what_it_prints_and_writes(finished: tuple[Path, str]) -> None:
    output, printed = finished
    page = (output / "comparison.md").read_text()
    count = len(results_of(output))
    assert f"{count} of {count} runs to go" in printed and f"[{count}/{count}] " in printed and "min left" in printed
    for text in (
        "## On held-out samples",
        "## On other.jsonl",
        "total compute",
        "Power: ",
        "ROUGE-L",
        "Against the full",
    ):
        assert text in page, text
    verdict = re.findall(r"^\*\*(.*)\*\*$", page, re.MULTILINE)
    assert len(verdict) == 1 and verdict[0] in printed
    assert "train_runtime" not in printed and "nan" not in page
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_processes_share_the_runs_and_end_with_the_same_results(
    options: list[str], finished: tuple[Path, str], tmp_path: Path
) -> None:
    more = ["--generations", "2", "--max-new-tokens", "3", "--output", str(tmp_path)]
    done = torchrun(2, str(EXAMPLES / "compare.py"), *options, *more)
    assert done.returncode == 0, done.stderr[-3000:]
    assert results_of(tmp_path) == results_of(finished[0])
    made = [line for line in done.stdout.splitlines() if ": held-out loss " in line]
    assert len(made) == len(results_of(tmp_path))  # each by one process
    assert done.stdout.count("comparison.png") == 1


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_ends_the_same(
    options: list[str], finished: tuple[Path, str], tmp_path: Path
) -> None:
    more = ["--generations", "2", "--max-new-tokens", "3", "--output", str(tmp_path)]
    command = [*compare_command(options), *more]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **silent) as run:
        deadline = time.monotonic() + 300
        while len(list((tmp_path / "runs").glob("*.json"))) < 5:
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
    before = results_of(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    after = results_of(tmp_path)
    assert f"{len(after) - len(before)} of {len(after)} runs to go" in done.stdout
    assert after == results_of(finished[0])


@pytest.mark.slow
def test_several_rates_are_shown_and_tuned_and_a_known_half_is_learnt_first(
    options: list[str], finished: tuple[Path, str], tmp_path: Path, typed: Callable[[list[str]], None]
) -> None:
    more = [
        "--learning-rates",
        "1e-3",
        "1e-2",
        "--known",
        "0.5",
        "--arm",
        "MIWV: score=miwv",
        "--output",
        str(tmp_path),
    ]
    done = subprocess.run([*compare_command(options), *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "comparison.md").read_text()
    titles = re.findall(r"^## (.*)$", page, re.MULTILINE)
    on = [f"On {name}, {which}" for name in ("held-out samples", "other.jsonl") for which in (
        "each arm at its best learning rate", "learning rate 0.001", "learning rate 0.01")]  # fmt: skip
    assert titles == on and "| known |" in page and "50% known" in page
    untrained, learnt = (results_of(output)["untrained"]["losses"] for output in (finished[0], tmp_path))
    assert untrained["held-out samples"] != learnt["held-out samples"]
    # A page of what there is needs no model that has learnt.
    shutil.rmtree(tmp_path / "known-model")
    typed([*options, *more, "--page-only"])
    assert not (tmp_path / "known-model").exists()
    tables = [[line for line in text.split("\n") if line.startswith("|")] for text in (page, read_page(tmp_path))]
    assert tables[0] == tables[1]


def read_page(output: Path) -> str:
    return (output / "comparison.md").read_text()


def test_a_result_is_read_as_it_was_written(setting: Setting, scores: Scores, tmp_path: Path) -> None:
    result = make_run(setting, scores, Run(Arm("untrained", None), 0.0, 0))
    write_result(tmp_path / "runs" / "untrained.json", result)
    assert json.loads((tmp_path / "runs" / "untrained.json").read_text())["arm"] == "untrained"
    read = read_result(tmp_path / "runs" / "untrained.json")
    assert read is not None and read.losses == result.losses and read.compute == 0
    assert read_result(tmp_path / "runs" / "none.json") is None
