"""A round in words."""

import numpy as np
import pytest

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.rounds.identity import TrainingPoint
from miwv_trainer.rounds.messages import describe_cost, describe_round
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring.scorer import prepare_scorer
from tests.helpers.own_scores import middle_miwv
from tests.helpers.tiny import tiny_model
from tests.helpers.tiny_rounds import CONFIG, COUNT, WORLD, exemplars_of, finished_round


def test_a_line_about_a_round_says_what_was_scored_and_selected_and_how_much_stayed(model, pool, store):
    exemplars = exemplars_of(model, pool, store)
    exemplars.indices[0] = -1
    first = run_round(prepare_scorer(model, pool, CONFIG, WORLD), exemplars, store, TrainingPoint(0))
    second = run_round(prepare_scorer(tiny_model(seed=1), pool, CONFIG, WORLD), exemplars, store, TrainingPoint(1))
    kept = len(set(first.selection.tolist()) & set(second.selection.tolist()))
    assert 0 < kept < 6
    assert describe_round(first).startswith(f"Round 0: scored {COUNT - 1} of {COUNT} samples in ")
    assert describe_round(first).endswith(" a second), selected 6.")
    assert describe_round(second, first).endswith(
        f", selected 6, {round(100 * kept / 6)}% of the selected as in round 0."
    )
    again = run_round(prepare_scorer(tiny_model(seed=1), pool, CONFIG, WORLD), exemplars, store, TrainingPoint(1))
    assert describe_round(again, first) == describe_round(second, first).replace("Round 1:", "Round 1, read from disk:")


def test_what_a_round_will_cost_is_told_by_the_samples_that_it_scores() -> None:
    pool = Pool(
        preamble=np.array([1], dtype=np.int32),
        tokens=np.arange(1_030, dtype=np.int32),
        is_response=np.ones(1_030, dtype=bool),
        offsets=np.array([0, 10, 30, 1_030]),
    )
    line = describe_cost(0, np.array([True, True, False]), 96, pool, MIWVConfig(fraction=0.5), None)
    # One sample of 1 + (10 + 20) / 2 tokens is trained on, which takes three forwards: 96 / (3 x 16).
    assert (
        line == "Round 0 scores 2 of 3 samples: 96 tokens, no rate yet, 2 times the compute of an epoch over 1 samples."
    )


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize(
    ("values", "told", "advice"),
    [
        (
            {"score": "ifd"},
            "Round 0: IFD above 1 leaves out {} of 24 samples",
            ", whose prompts make their responses no more likely. Look at the chat template and at the model",
        ),
        (
            {"score": "influence"},
            "Round 0: {} of 24 samples have no score (no sample was scored behind it) and are not selected.",
            " More `exemplars_per_sample` give more samples one.",
        ),
        (
            {"score": middle_miwv, "extra_losses": "both"},
            "Round 0: {} of 24 samples have no score (middle_miwv gives it no number) and are not selected.",
            "",
        ),
        (
            {"score": np.where(np.arange(COUNT) % 2, np.nan, 1.0)},
            "Round 0: {} of 24 samples have no score (array of shape (24,) gives it no number) and are not selected.",
            "",
        ),
    ],
)
def test_what_a_score_leaves_out_by_itself_is_told_once(
    values, told, advice, many, model, pool, store, caplog, monkeypatch
):
    monkeypatch.setattr("miwv_trainer.rounds.messages.LARGE_SHARE", 0.2 if many else 1.0)
    with caplog.at_level("INFO", "miwv_trainer"):
        current = finished_round(model, pool, store, MIWVConfig(**values, embedder="tfidf", fraction=0.125))
    scores = current.column("score")
    count = int(np.isnan(scores).sum()) or int((scores > 1).sum())
    assert COUNT / 5 < count < COUNT
    (record,) = [each for each in caplog.records if "leaves out" in each.message or "have no score" in each.message]
    assert record.message.startswith(told.format(count))
    assert (record.levelname, advice in record.message) == (("WARNING", True) if many else ("INFO", not advice))
    # A training's line about the round follows in the same log.
    assert "leaves out" not in describe_round(current) and "without a score" not in describe_round(current)


def test_many_that_a_guard_of_the_users_leaves_out_are_no_reason_to_warn(model, pool, store, caplog):
    least = int(np.median(pool.response_tokens))
    is_short = pool.response_tokens < least
    config = MIWVConfig(min_response_tokens=least, embedder="tfidf", fraction=0.125)
    with caplog.at_level("INFO", "miwv_trainer"):
        finished_round(model, pool, store, config)
    (record,) = [each for each in caplog.records if "leaves out" in each.message]
    assert is_short.sum() > COUNT / 4 and record.levelname == "INFO"
    assert record.message.endswith(f" leaves out {is_short.sum()} of {COUNT} samples.")
