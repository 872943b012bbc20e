"""Scores, guards, budgets and orders in real Trainers."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from miwv_trainer import MIWVConfig, attach, select_again
from miwv_trainer.cli.main import main
from miwv_trainer.report.explanations import explain_selection
from tests.helpers.held import scoring_forwards
from tests.helpers.own_scores import middle_miwv
from tests.helpers.resumed import CONFIG, Run
from tests.helpers.tiny import instruction_rows, tiny_model, tiny_tokenizer
from tests.helpers.trainers import PositionCollator, arguments, by_epoch, noting_trainer

COUNT = 32
QUALITY = np.random.default_rng(0).permutation(COUNT)


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
        trainer = noting_trainer(tmp_path / str(number), max_steps=1)
        callback = attach(trainer, MIWVConfig(fraction=0.25, score="random", sampler_seed=seed))
        trainer.train()
        drawn.append(callback.rounds[0].selection.tolist())
    assert drawn[0] == drawn[1] != drawn[2]


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


@pytest.mark.parametrize(
    ("strategy", "values"),
    [
        ("epoch", {"score": "random"}),
        ("epoch", {"score": middle_miwv, "extra_losses": "both"}),
        ("steps", {"score": QUALITY, "epoch_order": "hard_to_easy"}),
        ("steps", {"epoch_order": "easy_to_hard"}),
        ("steps", {"rescore_budget": 0.4}),
        ("steps", {"selection": "sample"}),
        ("no", {"selection": "sample", "resample_each_epoch": True}),
    ],
)
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


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("two-steps")
    Run(folder, config=CONFIG, max_steps=2)
    return folder


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"min_response_tokens": 3}, "min_response_tokens = 0, but this run has min_response_tokens = 3"),
        ({"score": "low_miwv"}, "score = 'miwv', but this run has score = 'low_miwv'"),
        ({"score": QUALITY}, r"score = 'miwv', but this run has score = 'array of shape \(32,\)'"),
        ({"rescore_budget": 0.5}, "rescore_budget = 1.0, but this run has rescore_budget = 0.5"),
        ({"epoch_order": "hard_to_easy"}, "epoch_order = 'shuffled', but this run has epoch_order = 'hard_to_easy'"),
    ],
)
def test_another_score_or_guard_is_refused_on_a_resume(
    values: dict[str, Any], words: str, two_steps: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        Run(tmp_path, two_steps / "checkpoint-2", dataclasses.replace(CONFIG, scores_dir=str(two_steps), **values))


class WithoutTask(PositionCollator):
    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        for feature in features:
            del feature["task"]
        return super().__call__(features, return_tensors)


class AtEachStep(TrainerCallback):
    def __init__(self, do: Callable[[], None]) -> None:
        self.do = do

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.do()


def test_each_epoch_draws_anew_from_the_scores_of_the_first_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = noting_trainer(tmp_path, num_train_epochs=4)
    seen = scoring_forwards(trainer.model)
    config = MIWVConfig(fraction=0.25, embedder="tfidf", selection="sample", resample_each_epoch=True, temperature=2.0)
    callback = attach(trainer, config)
    by_step: list[int] = []
    trainer.add_callback(AtEachStep(lambda: by_step.append(len(seen))))
    with caplog.at_level(logging.INFO):
        trainer.train()
    first, *others = callback.rounds
    assert len(others) == 3 and len(by_step) == 8
    assert set(by_step) == {len(seen)} and len(seen) > 0  # all before the first step
    assert [sorted(positions) for positions in by_epoch()] == [each.selection.tolist() for each in callback.rounds]
    assert len({tuple(each.selection) for each in callback.rounds}) == 4
    for number, each in enumerate(others, start=1):
        for name in ("zero_shot_loss", "one_shot_loss", "miwv", "score", "exemplar"):
            np.testing.assert_array_equal(each.column(name), first.column(name))
        assert set(each.column("age")) == {number}
        assert each.summary["drawn_from"] == number - 1 and each.summary["tokens_forwarded"] == 0
        assert each.summary["fingerprint"]["model"] == first.summary["fingerprint"]["model"]
        assert len(each.selection) == len(first.selection) == 8
        again = select_again(each, dataclasses.replace(config, sampler_seed=callback.sampler.seed))
        assert again.selection.tolist() == each.selection.tolist()
    assert "Round 2: drawn anew from the scores of round 1, selected 8 of 32" in capsys.readouterr().out + caplog.text
    assert main(["report", "--run", str(tmp_path)]) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "were drawn by rank, so MIWV has no threshold" in page
    explained = explain_selection(others[-1])
    told = {explained.phrases[code] for code in explained.codes}
    assert told == {"selected", "not drawn"}


@pytest.mark.parametrize("is_column", [True, False], ids=["column", "array"])
def test_given_numbers_are_trained_on_in_their_order(is_column: bool, tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path, num_train_epochs=2)
    if is_column:
        trainer.train_dataset = trainer.train_dataset.add_column("task", QUALITY.astype(np.float64).tolist())
        trainer.data_collator = WithoutTask(tiny_tokenizer())
    seen = scoring_forwards(trainer.model)
    own: dict[str, Any] = {"score_column": "task"} if is_column else {"score": QUALITY}
    callback = attach(trainer, MIWVConfig(fraction=0.25, epoch_order="easy_to_hard", **own))
    trainer.train()
    assert seen == [] and callback.rounds[0].selection.tolist() == np.sort(np.argsort(-QUALITY)[:8]).tolist()
    for positions in by_epoch():
        assert QUALITY[positions].tolist() == list(range(COUNT - 8, COUNT))


def test_other_numbers_are_refused_on_a_resume(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, score=QUALITY, rescore_strategy="no")
    Run(tmp_path, config=config, max_steps=2)
    changed = dataclasses.replace(config, score=QUALITY[::-1].copy())
    words = r"given_scores = '\w+', but this run has given_scores = '\w+' \(the numbers of the score of your own\)"
    with pytest.raises(ValueError, match=words):
        Run(tmp_path, tmp_path / "checkpoint-2", changed, max_steps=4)
    Run(tmp_path, tmp_path / "checkpoint-2", config, max_steps=4)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"score": np.zeros(9)}, "`score` must give one number for each of the pool's 32 samples"),
        ({"score_column": "quality"}, "`score_column` is 'quality', but the dataset has the columns .*position"),
    ],
)
def test_numbers_that_do_not_fit_the_dataset_are_refused_before_training(
    values: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        attach(noting_trainer(tmp_path), MIWVConfig(**values))


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
