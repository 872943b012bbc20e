"""A round in words."""

import numpy as np

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.rounds.identity import TrainingPoint
from miwv_trainer.rounds.messages import describe_cost, describe_round
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring.scorer import prepare_scorer
from tests.helpers.tiny import tiny_model
from tests.helpers.tiny_rounds import CONFIG, COUNT, WORLD, exemplars_of


def test_a_line_about_a_round_says_what_was_scored_and_selected_and_how_much_stayed(model, pool, store):
    exemplars = exemplars_of(model, pool, store)
    exemplars.indices[0] = -1
    first = run_round(prepare_scorer(model, pool, CONFIG, WORLD), exemplars, store, TrainingPoint(0))
    second = run_round(prepare_scorer(tiny_model(seed=1), pool, CONFIG, WORLD), exemplars, store, TrainingPoint(1))
    kept = len(set(first.selection.tolist()) & set(second.selection.tolist()))
    assert 0 < kept < 6
    assert describe_round(first).startswith(f"Round 0: scored {COUNT - 1} of {COUNT} samples in ")
    assert describe_round(first).endswith(" a second), selected 6.")
    assert describe_round(second, first).endswith(f", selected 6, {round(100 * kept / 6)}% of them as in round 0.")
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
