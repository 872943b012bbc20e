import copy
import dataclasses
import json
import logging
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from miwv_trainer.config import MIWVConfig
from miwv_trainer.rounds import round as round_module
from miwv_trainer.rounds.identity import TrainingPoint, fingerprint_run
from miwv_trainer.rounds.messages import describe_round
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring import losses as losses_module
from miwv_trainer.scoring.context import find_context_length
from miwv_trainer.scoring.refine import score_refined
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.storage.store import Store
from tests.helpers.tiny import tiny_config, tiny_model
from tests.helpers.tiny_rounds import CONFIG, COUNT, WORLD, exemplars_of, finished_round, loss_by_hand, pool_of


def test_a_round_scores_selects_and_writes_both_files(model, pool, store):
    finished_round(model, pool, store)
    folder = store.output / "miwv" / "round-000"
    assert sorted(path.name for path in folder.iterdir()) == ["round.json", "scores.parquet"]
    lines = pq.read_table(folder / "scores.parquet").to_pylist()
    assert [line["index"] for line in lines] == list(range(COUNT))
    for index, line in enumerate(lines):
        sample, is_response = pool.sample(index), pool.response_mask(index)
        zero_shot = loss_by_hand(model, pool.preamble, sample, is_response)
        behind = np.concatenate([pool.preamble, pool.sample(line["exemplar"])])
        one_shot = loss_by_hand(model, behind, sample, is_response)
        assert line["zero_shot_loss"] == pytest.approx(zero_shot, abs=1e-5)
        assert line["one_shot_loss"] == pytest.approx(one_shot, abs=1e-5)
        assert line["miwv"] == np.float32(line["one_shot_loss"]) - np.float32(line["zero_shot_loss"])
        assert line["response_tokens"] == is_response.sum()
        assert line["prompt_tokens"] == len(sample) - is_response.sum()  # one response span, at the end

    by_score = sorted(lines, key=lambda line: (-line["miwv"], line["index"]))
    assert {line["index"] for line in lines if line["selected"]} == {line["index"] for line in by_score[: COUNT // 4]}
    assert len({line["miwv"] for line in lines}) == COUNT


@pytest.mark.parametrize(
    ("values", "implementation", "expected"),
    [
        ({}, "sdpa", ("tree", "segments")),
        ({}, "eager", ("tree", "mask")),
        ({"attention": "mask"}, "sdpa", ("tree", "mask")),
        ({"layout": "padded"}, "sdpa", ("padded", "none")),
        ({"score": "zero_shot_loss", "attention": "mask"}, "sdpa", ("zero_shot", "none")),
        ({"score": "longest"}, "sdpa", ("none", "none")),
    ],
    ids=str,
)
def test_the_summary_has_the_layout_and_the_attention_that_ran(
    values, implementation, expected, pool, store, monkeypatch
):
    """The attention is compared with what is put into the model while its rows of trees are forwarded."""
    model, used = tiny_model(), []
    model.set_attn_implementation(implementation)
    monkeypatch.setattr(losses_module, "use_tree_attention", record_attention(used))
    finished = finished_round(model, pool, store, MIWVConfig(embedder="tfidf", fraction=0.25, **values))
    summary = json.loads((finished.folder / "round.json").read_text(encoding="utf-8"))
    assert (summary["layout"], summary["attention"]) == expected
    assert set(used) == ({expected[1]} if expected[0] == "tree" else set())
    names = list(summary)
    assert names[names.index("layout") + 1] == "attention"


def record_attention(used):
    own = losses_module.use_tree_attention

    def use(model, attention):
        used.append(attention)
        return own(model, attention)

    return use


def test_losses_that_were_read_from_another_run_attended_to_nothing_here(model, pool, store, tmp_path):
    finished_round(model, pool, store)
    again = finished_round(
        model, pool, Store(tmp_path / "again"), dataclasses.replace(CONFIG, scores_from=str(store.output))
    )
    assert (again.summary["layout"], again.summary["attention"]) == ("none", "none")


def test_the_summary_says_what_the_design_lists(model, pool, store, monkeypatch):
    seen = []
    model.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True)

    def score_from_here(*args):
        # Forwards before this are checks: of the head, of the model's identity, of the layout. They are not counted.
        seen.clear()
        return score_refined(*args)

    monkeypatch.setattr(round_module, "score_refined", score_from_here)
    config = MIWVConfig(embedder="tfidf", fraction=0.25, layout="padded", refine_near_threshold=False)
    finished = finished_round(model, pool, store, config, moment=TrainingPoint(number=2, global_step=40, epoch=3))
    summary = json.loads((finished.folder / "round.json").read_text(encoding="utf-8"))
    assert finished.folder.name == "round-002"
    assert summary == finished.summary
    named = {name: summary[name] for name in ("version", "round", "global_step", "epoch", "fraction", "layout")}
    assert named == {"version": 1, "round": 2, "global_step": 40, "epoch": 3, "fraction": 0.25, "layout": "padded"}
    assert (summary["number_selected"], summary["samples"], summary["unscorable"]) == (6, COUNT, 0)
    assert summary["pool_tokens"] == sum(len(pool.preamble) + len(pool.sample(index)) for index in range(COUNT))
    assert seen.pop(0) == 4  # the head is checked again
    assert summary["tokens_forwarded"] == sum(seen)
    assert summary["refined_samples"] == summary["refined_tokens"] == summary["refined_seconds"] == 0
    assert summary["seconds"] > 0 and summary["attention"] == "none"
    assert summary["samples_per_second"] == pytest.approx(COUNT / summary["seconds"], rel=0.05)
    assert summary["tokens_per_second"] == pytest.approx(sum(seen) / summary["seconds"], rel=0.05)
    fingerprint = summary["fingerprint"]
    assert fingerprint["pool"] == pool.fingerprint
    told = fingerprint["model"]["zero_shot_losses"]
    assert len(told) == 4
    for sample, loss in told.items():
        assert loss == pytest.approx(finished.column("zero_shot_loss")[int(sample)], abs=1e-5)
    assert store.read_round(2, fingerprint_run(pool, CONFIG, find_context_length(model, CONFIG))).number == 2


@pytest.mark.parametrize("refine", [True, False])
def test_a_model_in_bfloat16_is_scored_again_near_the_threshold_unless_switched_off(model, pool, tmp_path, refine):
    config = MIWVConfig(embedder="tfidf", fraction=0.25, refine_near_threshold=refine)
    low = finished_round(copy.deepcopy(model).bfloat16(), pool, Store(tmp_path / "low"), config)
    wide = finished_round(copy.deepcopy(model).bfloat16().float(), pool, Store(tmp_path / "wide"), config)
    exact = np.abs(low.column("miwv") - wide.column("miwv")) < 2e-5
    assert wide.summary["refined_samples"] == 0
    assert (low.summary["refined_samples"] > 0) == (low.summary["refined_tokens"] > 0) == refine
    assert exact.sum() >= low.summary["refined_samples"]
    assert ("near the threshold scored again in float32" in describe_round(low)) == refine


def test_scores_do_not_depend_on_the_batch_size(model, pool, tmp_path):
    columns = []
    for tokens in (1, 4096):
        config = MIWVConfig(embedder="tfidf", fraction=0.25, tokens_per_batch=tokens, logits_chunk=tokens)
        columns.append(finished_round(model, pool, Store(tmp_path / str(tokens)), config))
    np.testing.assert_allclose(columns[0].column("miwv"), columns[1].column("miwv"), rtol=0, atol=1e-5)
    assert columns[0].selection.tolist() == columns[1].selection.tolist()


def test_a_round_leaves_no_trace_in_model_or_random_state(pool, store):
    model = tiny_model(tiny_config(attention_dropout=0.5)).train()
    model.model.embed_tokens.eval()
    flags = [module.training for module in model.modules()]
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    in_training = finished_round(model, pool, store, MIWVConfig(embedder="model", fraction=0.25))
    assert [module.training for module in model.modules()] == flags
    assert (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()) == states
    assert torch.is_grad_enabled()

    model.eval()
    again = run_round(
        prepare_scorer(model, pool, CONFIG, WORLD),
        exemplars_of(model, pool, store, MIWVConfig(embedder="model")),
        store,
        TrainingPoint(1),
    )
    assert np.array_equal(in_training.column("miwv"), again.column("miwv"))


def test_other_weights_give_other_scores(model, pool, store):
    first = finished_round(model, pool, store)
    second = finished_round(tiny_model(seed=1), pool, store, moment=TrainingPoint(1))
    assert np.abs(first.column("miwv") - second.column("miwv")).max() > 1e-2
    assert first.column("exemplar").tolist() == second.column("exemplar").tolist()


def test_a_finished_round_is_moved_aside_rather_than_overwritten(model, pool, store):
    first = finished_round(model, pool, store)
    second = finished_round(model, pool, store, dataclasses.replace(CONFIG, fraction=0.5))
    assert len(second.selection) != len(first.selection)
    moved = pq.read_table(store.folder / "previous-0" / "round-000" / "scores.parquet")
    assert moved.equals(first.scores)
    assert store.read_round(0).scores.equals(second.scores)


def test_samples_whose_loss_is_not_finite_are_null_unselected_and_counted(model, store, caplog):
    poisoned = 500
    pool = pool_of(*(([10 + index, 30], [50, 60 + index]) for index in range(5)), ([poisoned, 31], [80]))
    with torch.no_grad():
        model.get_input_embeddings().weight[poisoned] = float("nan")
    embeddings = np.array([[0, 1], [1, 3], [1, 0], [1, 0.1], [1, 0.2], [0, 2]], dtype=np.float32)
    config = MIWVConfig(embedder=embeddings, fraction=1.0)
    with caplog.at_level(logging.WARNING):
        finished = finished_round(model, pool, store, config)
    assert finished.column("exemplar").tolist() == [5, 0, 3, 4, 3, 0]
    # Sample 5 holds the token itself, sample 0 has it in its exemplar.
    lines = pq.read_table(finished.folder / "scores.parquet").to_pylist()
    for index, line in enumerate(lines):
        scores = [line[name] for name in ("zero_shot_loss", "one_shot_loss", "miwv")]
        assert line["selected"] == (index not in (0, 5))
        assert scores == [None] * 3 if index in (0, 5) else all(np.isfinite(scores))
    assert (finished.summary["number_selected"], finished.summary["unscorable"]) == (4, 2)
    assert (
        "Round 0: 2 of 6 samples could not be scored and are left out: 2 with a loss that is not finite." in caplog.text
    )


def test_a_model_that_gives_no_finite_loss_at_all_is_an_error_and_writes_no_round(model, pool, store):
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(
        ValueError, match="Not one loss is finite.*on every sample of the pool. Check its weights and dtyp"
    ):
        finished_round(model, pool, store)
    assert store.list_rounds() == []


def test_samples_that_are_left_out_are_counted_by_reason_in_the_log(model, store, caplog):
    pool = pool_of(
        ([10, 11], [12]),
        ([20, 21], [22, 23]),
        ([30] * 10, [31] * 5),  # with the preamble as long as the context
        ([40] * 10, [41] * 6),
        ([50, 51], []),
        ([], [61, 62]),
        ([], []),
    )
    config = MIWVConfig(embedder="tfidf", fraction=1.0, scoring_max_length=16)
    with caplog.at_level(logging.WARNING):
        finished = finished_round(model, pool, store, config)
    assert np.flatnonzero(np.isfinite(finished.column("miwv"))).tolist() == [0, 1]
    assert finished.selection.tolist() == [0, 1]
    assert finished.summary["unscorable"] == 5
    words = (
        "Round 0: 5 of 7 samples could not be scored and are left out: 3 with no prompt or no response; 2 with more "
        "tokens than the context of 16 leaves room for."
    )
    assert caplog.messages == [words]


def test_samples_with_no_exemplar_but_their_copies_are_left_out_and_counted(model, store, caplog):
    # Every other sample lacks a response, so the copies have no exemplar but each other.
    pool = pool_of(([10, 11], [12]), ([10, 11], [12]), ([20, 21], []))
    with pytest.raises(
        ValueError, match="Not one of the 3 samples can be scored: 1 with no prompt or no response; 2 with"
    ):
        finished_round(model, pool, store)
    config = MIWVConfig(embedder="tfidf", fraction=1.0, allow_identical_exemplars=True)
    finished = finished_round(model, pool, Store(store.output / "allowed"), config)
    assert finished.selection.tolist() == [0, 1]


def test_a_copy_counts_as_left_out_where_others_are_scored(model, pool, store, caplog):
    exemplars = exemplars_of(model, pool, store)
    exemplars.indices[4] = -1
    with caplog.at_level(logging.WARNING):
        run_round(prepare_scorer(model, pool, CONFIG, WORLD), exemplars, store, TrainingPoint(3))
    words = "samples could not be scored and are left out: 1 with no exemplar but copies of themselves."
    assert caplog.messages == [f"Round 3: 1 of {COUNT} {words}"]


def test_nothing_scorable_is_an_error_that_counts_the_reasons_and_says_what_to_do(model, store):
    pool = pool_of(([10] * 9, [11] * 9), ([20] * 9, [21] * 9), ([30, 31], []))
    config = MIWVConfig(embedder="tfidf", scoring_max_length=16)
    words = (
        r"Not one of the 3 samples can be scored: 1 with no prompt or no response; 2 with more tokens than the context "
        r"of 16 leaves room for\. Give samples that differ and that fit the context\.$"
    )
    with pytest.raises(ValueError, match=words):
        finished_round(model, pool, store, config)
    copies = pool_of(([10], [11]), ([10], [11]))
    with pytest.raises(
        ValueError, match="2 with no exemplar but copies of themselves.*`allow_identical_exemplars=True`"
    ):
        finished_round(model, copies, Store(store.output / "copies"), CONFIG)
    assert store.list_rounds() == []


def test_exemplars_that_were_cut_are_counted_in_the_log(model, store, caplog):
    pool = pool_of(([10] * 5, [11] * 5), ([20] * 5, [21] * 4), ([30], [31]))
    vectors = np.array([[1, 0], [1, 0.1], [0, 1]], dtype=np.float32)
    with caplog.at_level(logging.WARNING):
        finished_round(model, pool, store, MIWVConfig(embedder=vectors, scoring_max_length=12))
    # Sample 0 fits behind nothing; 1 fits behind 2 and takes it; 2 fits behind 1, its nearest.
    assert caplog.messages == [
        "Round 0: the exemplar of 1 sample(s) was cut at its beginning, because none fits the 12 tokens of the context "
        "together with the sample."
    ]


def test_a_round_that_scores_all_warns_of_nothing(model, pool, store, caplog):
    with caplog.at_level(logging.WARNING):
        finished_round(model, pool, store)
    assert caplog.messages == []
