"""Scores, guards and budgets in real Trainers."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from trl import SFTConfig, SFTTrainer

from miwv_trainer import MIWVCallback, MIWVConfig, MIWVDataSampler, attach
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.rounds.exemplars import find_exemplars
from miwv_trainer.rounds.identity import TrainingPoint
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import StoredRound
from tests.helpers.resumed import Run
from tests.helpers.tiny import instruction_rows, tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.trainers import PositionCollator, arguments, by_epoch, noting_trainer

WORLD = World(0, 1, torch.device("cpu"))
COUNT = 32


@pytest.fixture(scope="module")
def pool() -> Pool:
    return pool_from_rows(tiny_dataset(60), tiny_tokenizer())


def scoring_forwards(model: nn.Module) -> list[int]:
    """Tokens of every forward without gradients from now on."""
    seen: list[int] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        if not torch.is_grad_enabled():
            seen.append(kwargs["input_ids"].numel())

    model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def a_round(
    model: Any, pool: Pool, folder: Path, config: MIWVConfig, number: int = 0, previous: StoredRound | None = None
) -> StoredRound:
    store = Store(folder)
    exemplars = find_exemplars(prepare_scorer(model, pool, config, WORLD), store, reuse=True)
    return run_round(
        prepare_scorer(model, pool, config, WORLD),
        exemplars,
        store,
        TrainingPoint(number, 5 * number),
        previous=previous,
    )


@pytest.mark.parametrize("score", ["random", "longest"])
def test_a_score_without_losses_makes_no_forward_and_embeds_nothing(score: str, tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path)
    seen = scoring_forwards(trainer.model)
    # The default embedder is on a hub that is out of reach.
    callback = attach(trainer, MIWVConfig(fraction=0.25, score=score, rescore_strategy="epoch"))
    trainer.train()
    assert seen == []
    assert [sorted(positions) for positions in by_epoch()] == [each.selection.tolist() for each in callback.rounds]
    first, second = callback.rounds
    tokens = first.column("response_tokens")
    if score == "longest":
        assert first.selection.tolist() == sorted(sorted(range(COUNT), key=lambda i: (-tokens[i], i))[: COUNT // 4])
    assert (first.selection.tolist() == second.selection.tolist()) == (score == "longest")
    assert np.isnan(first.column("miwv")).all() and (first.column("exemplar") == -1).all()
    assert (first.column("age") == -1).all()
    assert first.summary["layout"] == "none" and first.summary["tokens_forwarded"] == 0
    assert not list(first.folder.parent.glob("e*"))


def test_random_draws_follow_the_seed_of_the_order(tmp_path: Path) -> None:
    drawn = []
    for number, seed in enumerate((3, 3, 4)):
        trainer = noting_trainer(tmp_path / str(number))
        callback = attach(trainer, MIWVConfig(fraction=0.25, score="random", sampler_seed=seed))
        trainer.train()
        drawn.append(callback.rounds[0].selection.tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_zero_shot_loss_forwards_each_sample_once_and_finds_no_exemplars(pool: Pool, tmp_path: Path) -> None:
    model = tiny_model()
    config = MIWVConfig(fraction=0.2, score="zero_shot_loss", embedder="not/there")
    current = a_round(model, pool, tmp_path, config)
    expected = []
    for index in range(len(pool)):
        ids = torch.tensor(np.concatenate([pool.preamble, pool.sample(index)]).astype(np.int64))[None]
        is_response = np.concatenate([np.zeros(len(pool.preamble), bool), pool.response_mask(index)])
        labels = torch.where(torch.from_numpy(is_response)[None], ids, -100)
        with torch.no_grad():
            expected.append(float(model(input_ids=ids, labels=labels).loss))
    np.testing.assert_allclose(current.column("zero_shot_loss"), expected, atol=1e-5)
    assert current.selection.tolist() == np.sort(np.argsort(-np.asarray(expected), kind="stable")[:12]).tolist()
    assert np.isnan(current.column("one_shot_loss")).all() and (current.column("exemplar") == -1).all()
    padded = a_round(tiny_model(), pool, tmp_path / "both", MIWVConfig(embedder="tfidf", layout="padded"))
    assert current.summary["tokens_forwarded"] < 0.45 * padded.summary["tokens_forwarded"]


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_a_budgeted_round_scores_so_many_and_keeps_the_other_scores(
    layout: str, pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = MIWVConfig(
        fraction=0.1, embedder="tfidf", rescore_strategy="epoch", rescore_budget=0.3, layout=layout, sampler_seed=1
    )
    first = a_round(tiny_model(), pool, tmp_path / "budget", config)
    learnt = tiny_model(seed=1)
    full = a_round(learnt, pool, tmp_path / "full", dataclasses.replace(config, rescore_budget=1.0), 1, None)
    seen = scoring_forwards(learnt)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        second = a_round(learnt, pool, tmp_path / "budget", config, 1, first)
    ages = second.column("age")
    fresh = ages == 0
    assert fresh.sum() == int(0.3 * len(pool)) == second.summary["scored"]
    assert set(ages[~fresh]) == {1}
    for name in ("zero_shot_loss", "one_shot_loss", "miwv"):
        np.testing.assert_allclose(second.column(name)[fresh], full.column(name)[fresh], atol=1e-5)
        assert np.array_equal(second.column(name)[~fresh], first.column(name)[~fresh])
        assert np.abs(first.column(name) - full.column(name)).min() > 1e-4
    highest = np.argsort(-first.column("miwv"), kind="stable")[: round(0.6 * fresh.sum())]
    assert fresh[highest].all()
    ranked = np.argsort(-second.column("miwv"), kind="stable")
    assert second.selection.tolist() == sorted(ranked[:6].tolist())
    # Probes come first: of the head, of the model, of the layout where trees are compared.
    tokens = second.summary["tokens_forwarded"]
    assert tokens == sum(seen[-number_of_forwards(seen, tokens) :])
    assert tokens < full.summary["tokens_forwarded"] * 0.5
    (announced,) = [line for line in caplog.messages if "times the compute" in line]
    assert announced.startswith(f"Round 1 scores {fresh.sum()} of {len(pool)} samples: {tokens} tokens, about ")
    rate = first.summary["tokens_per_second"]
    of_epoch = 6 * (len(pool.preamble) + pool.lengths[first.selection].mean())
    assert f"at the {rate:.0f} tokens a second of before, {tokens / 3 / of_epoch:.2g} times the compute" in announced
    third = a_round(tiny_model(seed=2), pool, tmp_path / "budget", config, 2, second)
    assert set(third.column("age")) == {0, 1, 2}
    # Those unscored for longest go before others of the same last score, so that nothing is left for ever.
    for number in range(3, 9):
        third = a_round(tiny_model(seed=number), pool, tmp_path / "budget", config, number, third)
    assert third.column("age").max() <= 8


def number_of_forwards(seen: list[int], tokens: int) -> int:
    """How many of the last forwards have so many tokens together."""
    sums = np.cumsum(seen[::-1])
    assert tokens in sums
    return int(np.flatnonzero(sums == tokens)[0]) + 1


def test_what_guards_forbid_is_not_scored_again(pool: Pool, tmp_path: Path) -> None:
    config = MIWVConfig(
        fraction=0.1, embedder="tfidf", rescore_strategy="epoch", rescore_budget=0.5, min_response_tokens=12
    )
    first = a_round(tiny_model(), pool, tmp_path, config)
    second = a_round(tiny_model(seed=1), pool, tmp_path, config, 1, first)
    is_short = pool.response_tokens < 12
    assert 0 < is_short.sum() < len(pool)
    assert not ((second.column("age") == 0) & is_short).any()
    assert not is_short[second.selection].any()
    assert second.summary["left_out"] == {"min_response_tokens=12": int(is_short.sum())}


@pytest.mark.parametrize("score", ["low_miwv", "zero_shot_loss", "residual_miwv"])
@pytest.mark.parametrize("guards", [{}, {"length_bands": 3}])
def test_under_bfloat16_the_selection_of_any_score_is_float32s(
    score: str, guards: dict[str, Any], pool: Pool, tmp_path: Path
) -> None:
    model = tiny_model(seed=3).to(torch.bfloat16)
    exact = a_round(
        tiny_model(seed=3).to(torch.bfloat16).float(),
        pool,
        tmp_path / "exact",
        config := MIWVConfig(fraction=0.2, embedder="tfidf", score=score, **guards),
    )
    refined = a_round(model, pool, tmp_path / "refined", config)
    assert refined.summary["refined_samples"] > 0
    assert refined.selection.tolist() == exact.selection.tolist()


def test_statistics_go_through_the_trainers_log(tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path, logging_steps=100)
    callback = attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf", rescore_strategy="epoch"))
    trainer.train()
    logged = [line for line in trainer.state.log_history if "miwv/round" in line]
    assert [line["miwv/round"] for line in logged] == [0, 1]
    first, second = callback.rounds
    miwv = second.column("miwv")
    expected = {
        "threshold": miwv[second.selection].min(),
        "mean": miwv.mean(),
        "q05": np.quantile(miwv, 0.05),
        "q50": np.median(miwv),
        "q95": np.quantile(miwv, 0.95),
        "share_above_zero": (miwv > 0).mean(),
        "overlap": len(set(first.selection) & set(second.selection)) / 8,
        "rank_correlation": spearmanr(first.column("miwv"), miwv).statistic,
        "unscorable": 0,
        "scored": COUNT,
        "tokens": second.summary["tokens_forwarded"],
        "share_of_training": (first.summary["epochs"] + second.summary["epochs"]) / 2,
    }
    for name, value in expected.items():
        assert logged[1][f"miwv/{name}"] == pytest.approx(value, rel=1e-5), name
    assert logged[1]["step"] == 2 and "miwv/overlap" not in logged[0]
    assert second.summary["statistics"]["mean"] == pytest.approx(miwv.mean(), rel=1e-5)


def test_a_callback_made_by_hand_logs_nothing_unless_it_is_told_where(tmp_path: Path) -> None:
    for told in (False, True):
        trainer = noting_trainer(tmp_path / str(told), logging_steps=100)
        sampler = MIWVDataSampler(COUNT, fraction=0.25)
        trainer._get_train_sampler = lambda *_, sampler=sampler: sampler
        callback = MIWVCallback(MIWVConfig(fraction=0.25, embedder="tfidf"), sampler)
        callback.log = trainer.log if told else None
        trainer.add_callback(callback)
        trainer.train()
        assert any("miwv/round" in line for line in trainer.state.log_history) == told


def test_a_budget_in_tokens_leaves_the_number_of_steps_and_walks_through_what_it_selects(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = noting_trainer(tmp_path, num_train_epochs=4)
    callback = attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf", selection_budget="tokens", score="low_miwv"))
    with caplog.at_level(logging.WARNING):
        trainer.train()
    (current,) = callback.rounds
    tokens = current.column("response_tokens")
    budget = int(tokens.sum() * 0.25)
    order = np.argsort(current.column("miwv"), kind="stable")
    most = int((np.cumsum(tokens[order]) <= budget).sum())
    assert current.selection.tolist() == sorted(order[:most].tolist())
    assert trainer.state.global_step == trainer.state.max_steps == 4 * 2
    epochs = by_epoch()
    assert [len(positions) for positions in epochs] == [8] * 4
    counts = np.bincount(np.concatenate(epochs), minlength=COUNT)[current.selection]
    assert counts.sum() == 32 and counts.max() - counts.min() <= 1
    assert ("repeated" in caplog.text) == (len(current.selection) < 8)


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
@pytest.mark.parametrize("epoch_order", ["easy_to_hard", "hard_to_easy"])
def test_an_epoch_goes_from_easy_to_hard_or_back(strategy: str, epoch_order: Any, tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path, count=64, train_sampling_strategy=strategy, per_device_train_batch_size=2)
    callback = attach(trainer, MIWVConfig(fraction=0.5, embedder="tfidf", epoch_order=epoch_order))
    trainer.train()
    miwv = callback.rounds[0].column("miwv")
    sign = 1 if epoch_order == "easy_to_hard" else -1
    for positions in by_epoch():
        trained = sign * miwv[positions]
        if strategy == "random":
            assert (np.diff(trained) >= 0).all()
        else:  # 16 batches in groups of 4
            groups = trained.reshape(4, 8)
            assert (groups.max(axis=1)[:-1] <= groups.min(axis=1)[1:]).all()
            assert not (np.diff(trained) >= 0).all()


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
@pytest.mark.parametrize("values", [{"rescore_budget": 0.4}, {"score": "random"}, {"epoch_order": "easy_to_hard"}])
def test_a_resumed_curriculum_ends_as_the_undisturbed_one(
    strategy: str, values: dict[str, Any], tmp_path: Path
) -> None:
    steps = {"rescore_steps": 5} if strategy == "steps" else {}
    config = MIWVConfig(fraction=0.5, embedder="tfidf", rescore_strategy=strategy, **steps, **values)
    whole = Run(tmp_path, config=config)
    scores = [current.scores for current in whole.callback.rounds]
    for step in (11, 16):
        resumed = Run(tmp_path, tmp_path / f"checkpoint-{step}", config)
        assert resumed.order == whole.order[step:]
        assert resumed.has_the_weights_of(whole)
        for current, expected in zip(resumed.callback.rounds, scores, strict=True):
            assert current.scores.equals(expected)
        lines = [line["miwv/round"] for line in resumed.trainer.state.log_history if "miwv/round" in line]
        assert lines == sorted(set(lines)) == list(range(len(scores)))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"min_response_tokens": 3}, "min_response_tokens = 0, but this run has min_response_tokens = 3"),
        ({"score": "low_miwv"}, "score = 'miwv', but this run has score = 'low_miwv'"),
        ({"rescore_budget": 0.5}, "rescore_budget = 1.0, but this run has rescore_budget = 0.5"),
        ({"epoch_order": "hard_to_easy"}, "epoch_order = 'shuffled', but this run has epoch_order = 'hard_to_easy'"),
    ],
)
def test_another_score_or_guard_is_refused_on_a_resume(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    config = MIWVConfig(fraction=0.5, embedder="tfidf", rescore_strategy="epoch")
    Run(tmp_path, config=config, num_train_epochs=1)
    with pytest.raises(ValueError, match=words):
        Run(tmp_path, tmp_path / "checkpoint-4", dataclasses.replace(config, **values), num_train_epochs=1)


def test_another_score_in_the_same_folder_does_not_reuse_the_rounds(tmp_path: Path, pool: Pool) -> None:
    rounds = [
        a_round(tiny_model(), pool, tmp_path, MIWVConfig(embedder="tfidf", fraction=0.2, score=score))
        for score in ("random", "miwv", "one_shot_loss")
    ]
    losses = rounds[2].column("one_shot_loss")
    assert rounds[2].selection.tolist() == sorted(np.argsort(-losses, kind="stable")[:12].tolist())
    assert (rounds[1].column("exemplar") >= 0).all()
    before = (rounds[2].folder / "scores.parquet").stat().st_mtime_ns
    again = a_round(tiny_model(), pool, tmp_path, MIWVConfig(embedder="tfidf", fraction=0.2, score="one_shot_loss"))
    assert (again.folder / "scores.parquet").stat().st_mtime_ns == before


class WithoutTask(PositionCollator):
    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        for feature in features:
            del feature["task"]
        return super().__call__(features, return_tensors)


@pytest.mark.parametrize("kind", ["plain", "trl"])
def test_groups_keep_their_shares(kind: str, tmp_path: Path) -> None:
    names = ["chess" if index % 7 == 0 else "bread" if index % 3 else "taxes" for index in range(60)]
    config = MIWVConfig(fraction=0.2, embedder="tfidf", group_column="task")
    trainer: Any
    if kind == "plain":
        trainer = noting_trainer(tmp_path, count=60, num_train_epochs=1)
        trainer.train_dataset = trainer.train_dataset.add_column("task", names)
        trainer.data_collator = WithoutTask(tiny_tokenizer())
    else:
        rows = [
            {"prompt": f"{row['instruction']} {row['input']}", "completion": " " + row["output"], "task": name}
            for row, name in zip(instruction_rows(60), names, strict=True)
        ]
        values = arguments(tmp_path, num_train_epochs=1).to_dict()
        kept = {name: values[name] for name in ("output_dir", "use_cpu", "report_to", "save_strategy")}
        trainer = SFTTrainer(
            model=tiny_model(),
            args=SFTConfig(**kept, num_train_epochs=1, bf16=False),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tiny_tokenizer(),
        )
    callback = attach(trainer, config)
    trainer.train()
    selected = np.asarray(names)[callback.rounds[0].selection]
    assert len(selected) == 12
    for name in set(names):
        assert abs((selected == name).sum() - 12 * names.count(name) / 60) < 1


def test_a_group_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path)
    with pytest.raises(ValueError, match="`group_column` is 'task', but the dataset has the columns .*position"):
        attach(trainer, MIWVConfig(embedder="tfidf", group_column="task"))


def test_guards_that_leave_nothing_say_which(pool: Pool, tmp_path: Path) -> None:
    config = MIWVConfig(embedder="tfidf", min_response_tokens=10_000)
    with pytest.raises(ValueError, match=r"No sample .*: min_response_tokens=10000 leaves out 60. Loosen a guard"):
        a_round(tiny_model(), pool, tmp_path, config)


@pytest.mark.parametrize("values", [{"diversity": "facility_location"}, {"max_selected_similarity": 0.5}])
def test_embeddings_that_are_gone_are_made_again_but_not_by_a_model_that_has_learnt(
    values: dict[str, Any], pool: Pool, tmp_path: Path
) -> None:
    config = MIWVConfig(fraction=0.2, embedder="model", rescore_strategy="epoch", **values)
    first = a_round(tiny_model(), pool, tmp_path, config)
    (tmp_path / "miwv" / "embeddings.safetensors").unlink()
    with pytest.raises(ValueError, match="The embeddings in .* are gone, and the model that made them has learnt"):
        a_round(tiny_model(seed=1), pool, tmp_path, config, 1, first)
    text = dataclasses.replace(config, embedder="tfidf")
    first = a_round(tiny_model(), pool, tmp_path / "text", text)
    (tmp_path / "text" / "miwv" / "embeddings.safetensors").unlink()
    assert len(a_round(tiny_model(seed=1), pool, tmp_path / "text", text, 1, first).selection)
