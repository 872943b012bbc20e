"""`rescore_budget` with real models: which samples a later round forwards, and what the others keep."""

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.rounds.exemplars import find_exemplars
from miwv_trainer.rounds.identity import TrainingPoint
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import StoredRound
from tests.helpers.interrupted import Killed, counted
from tests.helpers.resumed import STEPS, Run, config_of, stamps
from tests.helpers.tiny import tiny_dataset, tiny_model, tiny_tokenizer

WORLD = World(0, 1, torch.device("cpu"))
COUNT = 41
CONFIG = MIWVConfig(
    fraction=0.25,
    embedder="tfidf",
    rescore_strategy="epoch",
    rescore_budget=0.5,
    refine_near_threshold=False,
    tokens_per_batch=128,
    tokens_per_row=128,
)
LOSSES = ("zero_shot_loss", "one_shot_loss")


@pytest.fixture(scope="module")
def pool() -> Pool:
    return pool_from_rows(tiny_dataset(COUNT), tiny_tokenizer())


def rounds_of(
    pool: Pool, folder: Path, config: MIWVConfig, seeds: tuple[int, ...] = (0, 1, 2), watched: Any = None
) -> list[StoredRound]:
    """Rounds of one run, each with other weights; `watched` is called with each model before its round."""
    store, found = Store(folder), []
    for number, seed in enumerate(seeds):
        model = tiny_model(seed=seed)
        exemplars = find_exemplars(prepare_scorer(model, pool, config, WORLD), store, reuse=True)
        if watched is not None:
            watched(number, model)
        moment = TrainingPoint(number, 4 * number, number)
        previous = found[-1] if found else None
        found.append(run_round(prepare_scorer(model, pool, config, WORLD), exemplars, store, moment, previous=previous))
    return found


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_what_is_scored_is_fresh_and_the_rest_is_kept_to_the_bit(layout: str, pool: Pool, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, layout=layout)
    full = dataclasses.replace(config, rescore_budget=1.0)
    rounds = rounds_of(pool, tmp_path / "budget", config)
    afresh = rounds_of(pool, tmp_path / "full", full)
    assert rounds[0].column("age").tolist() == [0] * COUNT
    for before, current, whole in zip(rounds, rounds[1:], afresh[1:], strict=False):
        age = current.column("age")
        fresh = age == 0
        assert fresh.sum() == COUNT // 2 == current.summary["scored"]
        assert (age[~fresh] == before.column("age")[~fresh] + 1).all()
        for name in LOSSES:
            assert np.array_equal(current.column(name)[~fresh], before.column(name)[~fresh])
            np.testing.assert_allclose(current.column(name)[fresh], whole.column(name)[fresh], rtol=0, atol=1e-5)
            # Were these the losses of the round before, this would be no test.
            assert (np.abs(current.column(name)[fresh] - before.column(name)[fresh]) > 1e-3).any()
        difference = current.column("one_shot_loss") - current.column("zero_shot_loss")
        assert np.array_equal(current.column("miwv"), difference)
        best = np.argsort(-current.column("miwv"), kind="stable")[: COUNT // 4]
        assert current.selection.tolist() == sorted(best.tolist())
    # Three fifths are the highest of before: of 20 the first 12.
    highest = np.argsort(-rounds[0].column("miwv"), kind="stable")[:12]
    assert (rounds[1].column("age")[highest] == 0).all()
    # A fifth are those unscored for longest: 4 of those that were not scored in round 1 and are not among the highest.
    highest = np.argsort(-rounds[1].column("miwv"), kind="stable")[:12]
    waiting = np.setdiff1d(np.flatnonzero(rounds[1].column("age") == 1), highest)
    assert (rounds[2].column("age")[waiting] == 0).sum() >= 4


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_tokens_forwarded_are_those_written_down_and_told_before(
    layout: str, pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A few probes come first: of the head, of four samples that tell the model, and of both layouts."""
    seen: dict[int, list[int]] = {}
    counting: list[bool] = []

    def watch(number: int, model: Any) -> None:
        tokens = seen.setdefault(number, [])
        counting.clear()
        model.register_forward_pre_hook(
            lambda module, args, kwargs: tokens.append(kwargs["input_ids"].numel()) if counting else None,
            with_kwargs=True,
        )

    class AfterTheLine(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if re.match(r"Round \d scores", record.getMessage()):
                counting.append(True)

    handler = AfterTheLine()
    logging.getLogger("miwv_trainer").addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, logger="miwv_trainer"):
            rounds = rounds_of(pool, tmp_path, dataclasses.replace(CONFIG, layout=layout), watched=watch)
    finally:
        logging.getLogger("miwv_trainer").removeHandler(handler)
    told = [re.match(r"Round (\d) scores (\d+) of 41 samples: (\d+) tokens, ", line) for line in caplog.messages]
    lines = {int(found[1]): (int(found[2]), int(found[3])) for found in told if found}
    for current in rounds:
        summary = current.summary
        assert summary["layout"] == layout
        number = current.number
        # The head's shape is looked at once more before the first row: that forward is of one position a sequence.
        assert sum(tokens for tokens in seen[number] if tokens > 4) == summary["tokens_forwarded"]
        assert lines[number] == (summary["scored"], summary["tokens_forwarded"])
    assert rounds[1].summary["tokens_forwarded"] < 0.75 * rounds[0].summary["tokens_forwarded"]
    assert "about" in next(line for line in caplog.messages if line.startswith("Round 1 scores"))


def test_a_trunk_that_is_only_context_stands_once_in_its_row(tmp_path: Path) -> None:
    """Twelve samples behind one exemplar, which is itself not scored: in one row of trees it is forwarded once."""
    pool = pool_from_rows(tiny_dataset(13), tiny_tokenizer())
    embeddings = np.eye(13, dtype=np.float32)
    embeddings[:, 0] = 1.0
    embeddings[0] = np.eye(13)[0]
    config = dataclasses.replace(CONFIG, embedder=embeddings, layout="tree", tokens_per_row=4096, tokens_per_batch=4096)
    first, second = rounds_of(pool, tmp_path, config, (0, 1))
    assert (first.column("exemplar")[1:] == 0).all()
    fresh = np.flatnonzero(second.column("age") == 0)
    assert len(fresh) == 6
    lengths, before = pool.lengths, len(pool.preamble)
    # Each fresh sample once as a branch and once by itself, and the trunk of all branches once.
    behind = {int(exemplar) for exemplar in second.column("exemplar")[fresh]}
    trunks = behind | set(fresh.tolist())
    expected = lengths[fresh].sum() + sum(before + lengths[trunk] for trunk in trunks)
    assert second.summary["tokens_forwarded"] == expected


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_a_budgeted_round_that_was_killed_ends_as_if_nothing_had_happened(
    layout: str, pool: Pool, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, layout=layout)
    counts: dict[int, list[int]] = {}
    whole = rounds_of(
        pool, tmp_path / "whole", config, watched=lambda number, model: counts.update({number: counted(model)})
    )
    for left in (12, 3):
        folder = tmp_path / str(left)
        most = len(counts[2]) - left
        with pytest.raises(Killed):
            rounds_of(
                pool, folder, config, watched=lambda n, model, most=most: counted(model, most) if n == 2 else None
            )
        after: dict[int, list[int]] = {}
        again = rounds_of(pool, folder, config, watched=lambda n, m, after=after: after.update({n: counted(m)}))
        assert [current.scores.equals(other.scores) for current, other in zip(again, whole, strict=True)] == [True] * 3
        assert len(after[0]) <= 5 and len(after[1]) <= 5  # finished ones are read
        # Of the rows, 9 and more than that were kept; the probes that come first are made again.
        assert len(after[2]) < len(counts[2]) - 4


def test_a_round_behind_other_scores_is_not_taken_for_the_same(pool: Pool, tmp_path: Path) -> None:
    """The same weights at the same step, but round 0 was of others: what it left is part of round 1."""
    first = rounds_of(pool, tmp_path, CONFIG, (0, 1))
    other = rounds_of(pool, tmp_path, CONFIG, (2, 1))
    assert first[1].summary["fingerprint"]["model"]["zero_shot_losses"].keys()
    assert not other[1].scores.equals(first[1].scores)
    kept = other[1].column("age") > 0
    assert np.array_equal(other[1].column("miwv")[kept], other[0].column("miwv")[kept])


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_resuming_keeps_scores_ages_and_selections(strategy: str, tmp_path: Path) -> None:
    config = config_of(strategy, rescore_budget=0.5)
    whole = last = Run(tmp_path, config=config)
    ages = [current.column("age").tolist() for current in whole.callback.rounds]
    assert len(ages) >= 3 and max(map(max, ages)) >= 2  # some sample went two rounds without
    assert all(each.count(0) == 16 for each in ages[1:])
    for step in (5, 9, 16):
        before = stamps(tmp_path, step)
        last = Run(tmp_path, tmp_path / f"checkpoint-{step}", config)
        assert last.order == whole.order[step:] and len(last.order) == STEPS - step
        assert last.has_the_weights_of(whole) and last.places() == whole.places()
        assert stamps(tmp_path, step) == before
        for current, other in zip(last.callback.rounds, whole.callback.rounds, strict=True):
            assert current.scores.equals(other.scores)


def test_another_budget_on_resuming_is_refused_with_both(tmp_path: Path) -> None:
    Run(tmp_path, config=config_of("epoch", rescore_budget=0.5), max_steps=2)
    with pytest.raises(ValueError, match=r"rescore_budget = 0\.5, but this run has rescore_budget = 0\.25"):
        Run(tmp_path, tmp_path / "checkpoint-2", config_of("epoch", rescore_budget=0.25))
