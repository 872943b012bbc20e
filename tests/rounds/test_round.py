import copy
import dataclasses
import json
import logging
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import MambaConfig, T5Config, T5ForConditionalGeneration

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.pool import Pool, TokenizedSample
from miwv_trainer.data.preamble import build_pool
from miwv_trainer.data.turn_markers import TurnMarkers
from miwv_trainer.distributed.world import World
from miwv_trainer.report.tables import format_scores
from miwv_trainer.rounds import exemplars
from miwv_trainer.rounds.exemplars import find_exemplars
from miwv_trainer.rounds.identity import TrainingPoint, fingerprint_exemplars, fingerprint_model, fingerprint_run
from miwv_trainer.rounds.messages import describe_cost, describe_round
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring.context import find_context_length
from miwv_trainer.scoring.model_checks import check_model
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.storage.store import Store
from tests.helpers.rounds import made_columns, write_round
from tests.helpers.tiny import tiny_config, tiny_dataset, tiny_model, tiny_tokenizer

WORLD = World(0, 1, torch.device("cpu"))
COUNT = 24
CONFIG = MIWVConfig(embedder="tfidf", fraction=0.25)


@pytest.fixture
def pool(tokenizer):
    return pool_from_rows(tiny_dataset(COUNT), tokenizer)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


def pool_of(*samples: tuple[list[int], list[int]]):
    """A pool of (prompt, response) pairs, each behind token 1 as the preamble."""
    sequences = [
        TokenizedSample(
            np.array([1, *prompt, *response]), np.array([False] * (1 + len(prompt)) + [True] * len(response))
        )
        for prompt, response in samples
    ]
    texts = [f"text{index} shared" for index in range(len(samples))]
    return build_pool(sequences, TurnMarkers(bos=1), texts)


def exemplars_of(model, pool, store, config=CONFIG, reuse=True):
    return find_exemplars(prepare_scorer(model, pool, config, WORLD), store, reuse=reuse)


def finished_round(model, pool, store, config=CONFIG, moment=None):
    exemplars = exemplars_of(model, pool, store, config)
    return run_round(prepare_scorer(model, pool, config, WORLD), exemplars, store, moment or TrainingPoint())


def loss_by_hand(model, before: np.ndarray, sample: np.ndarray, is_response: np.ndarray) -> float:
    ids = torch.from_numpy(np.concatenate([before, sample]).astype(np.int64))[None]
    with torch.no_grad():
        log_p = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(dim=-1)
    positions = len(before) + np.flatnonzero(is_response)
    return -np.mean([log_p[t - 1, ids[0, t]].item() for t in positions])


def no_embedding(*_, **__):
    raise AssertionError("the pool was embedded again")


def refuse_to_embed(monkeypatch):
    for name in ("embed_texts", "embed_prompts", "validate_embeddings"):
        monkeypatch.setattr(exemplars, name, no_embedding)


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


def test_the_summary_says_what_the_design_lists(model, pool, store):
    seen = []
    model.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True)
    # The tree layout forwards a few samples twice before the first row, which are not counted.
    config = MIWVConfig(embedder="tfidf", fraction=0.25, layout="padded", refine_near_threshold=False)
    finished = finished_round(model, pool, store, config, moment=TrainingPoint(number=2, global_step=40, epoch=3))
    summary = json.loads((finished.folder / "round.json").read_text(encoding="utf-8"))
    assert finished.folder.name == "round-002"
    assert summary == finished.summary
    named = {name: summary[name] for name in ("version", "round", "global_step", "epoch", "fraction", "layout")}
    assert named == {"version": 1, "round": 2, "global_step": 40, "epoch": 3, "fraction": 0.25, "layout": "padded"}
    assert (summary["number_selected"], summary["samples"], summary["unscorable"]) == (6, COUNT, 0)
    assert summary["pool_tokens"] == sum(len(pool.preamble) + len(pool.sample(index)) for index in range(COUNT))
    # The head is checked, four samples tell the model, the head is checked again.
    assert seen.pop(0) == 4 and seen.pop(0) > 4 and seen.pop(0) == 4
    assert summary["tokens_forwarded"] == sum(seen)
    assert summary["refined_samples"] == summary["refined_tokens"] == summary["refined_seconds"] == 0
    assert summary["seconds"] > 0
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


@pytest.mark.parametrize("kind", ["tfidf", "model", "array"])
def test_exemplars_are_found_once_and_then_read_from_the_store(model, pool, store, monkeypatch, caplog, kind):
    embedder = np.random.default_rng(0).standard_normal((COUNT, 4)).astype(np.float32) if kind == "array" else kind
    config = MIWVConfig(embedder=embedder)
    found = exemplars_of(model, pool, store, config)
    refuse_to_embed(monkeypatch)
    with caplog.at_level(logging.INFO):
        read = exemplars_of(tiny_model(seed=1), pool, Store(store.output), config)
    assert read.indices.tolist() == found.indices.tolist()
    assert read.similarities.tolist() == found.similarities.tolist()
    assert f"Exemplars: read from {store.folder}." in caplog.messages


@pytest.mark.parametrize("embedder", ["tfidf", "model"])
def test_a_fresh_run_reads_exemplars_again_unless_they_came_from_a_model_that_may_have_changed(
    model, pool, store, monkeypatch, embedder
):
    config = MIWVConfig(embedder=embedder)
    exemplars_of(model, pool, store, config)
    other = tiny_model(seed=1)
    if embedder == "tfidf":
        refuse_to_embed(monkeypatch)
        exemplars_of(other, pool, store, config, reuse=False)
        return
    fresh = exemplars_of(other, pool, store, config, reuse=False)
    elsewhere = exemplars_of(other, pool, Store(store.output / "elsewhere"), config)
    assert fresh.similarities.tolist() == elsewhere.similarities.tolist()
    assert (
        fresh.similarities.tolist()
        != exemplars_of(model, pool, Store(store.output / "old"), config).similarities.tolist()
    )
    assert exemplars_of(model, pool, store, config).similarities.tolist() == fresh.similarities.tolist()


def test_exemplars_of_another_pool_are_refused_by_both_fingerprints(model, pool, store, tokenizer):
    exemplars_of(model, pool, store)
    other = pool_from_rows(tiny_dataset(COUNT, seed=1), tokenizer)
    assert other.fingerprint != pool.fingerprint
    with pytest.raises(
        ValueError, match=f"made with pool = '{pool.fingerprint[:12]}.*, but this run.*'{other.fingerprint[:12]}"
    ):
        exemplars_of(model, other, store)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embedder": "model"}, "made with embedder = 'tfidf', but this run has embedder = 'model'"),
        ({"scoring_max_length": 256}, "made with context = 512, but this run has context = 256"),
        (
            {"allow_identical_exemplars": True},
            "made with allow_identical_exemplars = False, but this run has allow_identical_exemplars = True",
        ),
    ],
)
def test_exemplars_found_under_another_configuration_are_refused(model, pool, store, changes, words):
    exemplars_of(model, pool, store)
    with pytest.raises(ValueError, match=words):
        exemplars_of(model, pool, store, MIWVConfig(**{"embedder": "tfidf", **changes}))


def test_exemplars_of_another_array_of_the_same_shape_are_refused(model, pool, store):
    array = np.random.default_rng(0).standard_normal((COUNT, 4)).astype(np.float32)
    exemplars_of(model, pool, store, MIWVConfig(embedder=array))
    words = rf"embedder = 'array of shape \({COUNT}, 4\) \w{{16}}', but this run has embedder = 'array of shape"
    with pytest.raises(ValueError, match=words):
        exemplars_of(model, pool, store, MIWVConfig(embedder=array + 1))
    exemplars_of(model, pool, store, MIWVConfig(embedder=torch.from_numpy(array)))


def test_fractions_and_seeds_are_no_part_of_what_exemplars_depend_on(model, pool, store, monkeypatch):
    found = exemplars_of(model, pool, store)
    refuse_to_embed(monkeypatch)
    other = MIWVConfig(embedder="tfidf", fraction=0.5, sampler_seed=3, tokens_per_batch=64, logits_chunk=8)
    assert exemplars_of(model, pool, store, other).indices.tolist() == found.indices.tolist()
    assert fingerprint_exemplars(pool, other, 512) == fingerprint_exemplars(pool, CONFIG, 512)
    assert fingerprint_run(pool, other, 512) != fingerprint_run(pool, CONFIG, 512)


def test_a_given_array_decides_the_exemplars(model, pool, store):
    array = np.random.default_rng(0).standard_normal((COUNT, 4)).astype(np.float32)
    found = exemplars_of(model, pool, store, MIWVConfig(embedder=array))
    unit = array / np.linalg.norm(array, axis=1, keepdims=True)
    expected = [max((j for j in range(COUNT) if j != i), key=lambda j: unit[i] @ unit[j]) for i in range(COUNT)]
    assert found.indices.tolist() == expected
    assert (
        store.read_embeddings(fingerprint_exemplars(pool, MIWVConfig(embedder=array), 512)).tolist() == array.tolist()
    )


def test_a_given_array_of_the_wrong_length_is_refused_and_nothing_is_stored(model, pool, store):
    config = MIWVConfig(embedder=np.ones((COUNT - 1, 4), dtype=np.float32))
    with pytest.raises(ValueError, match=f"array has {COUNT - 1} lines, but the pool has {COUNT} samples"):
        exemplars_of(model, pool, store, config)
    assert not store.folder.exists()


def test_the_model_embedder_is_the_mean_of_the_last_hidden_states_over_the_prompt(model, pool, store):
    config = MIWVConfig(embedder="model", tokens_per_batch=100)
    model.train()
    found = exemplars_of(model, pool, store, config)
    embeddings = store.read_embeddings(fingerprint_exemplars(pool, config, 512))
    by_hand = []
    for index in range(COUNT):
        prompt = pool.sample(index)[~pool.response_mask(index)]
        ids = torch.from_numpy(np.concatenate([pool.preamble, prompt]).astype(np.int64))[None]
        with torch.no_grad():
            by_hand.append(model.model(input_ids=ids).last_hidden_state[0, len(pool.preamble) :].mean(dim=0).numpy())
    np.testing.assert_allclose(embeddings, by_hand, rtol=0, atol=1e-5)
    unit = np.asarray(by_hand) / np.linalg.norm(by_hand, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -1)
    assert found.indices.tolist() == cosines.argmax(axis=1).tolist()


def test_a_prompt_that_the_model_cannot_embed_takes_the_exemplar_from_no_other_sample(model, store):
    pool = pool_of(*(([10 + index, 30], [50, 60 + index]) for index in range(5)), ([500, 31], [80]))
    with torch.no_grad():
        model.get_input_embeddings().weight[500] = float("nan")
    finished = finished_round(model, pool, store, MIWVConfig(embedder="model", fraction=1.0))
    assert finished.selection.tolist() == [0, 1, 2, 3, 4]
    assert 5 not in finished.column("exemplar")


def test_a_failed_search_is_not_kept(model, pool, store, monkeypatch):
    def fail(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr(Store, "write_embeddings", fail)
    with pytest.raises(OSError, match="the disk is full"):
        exemplars_of(model, pool, store)
    assert store.read_exemplars(fingerprint_exemplars(pool, CONFIG, 512)) is None


@pytest.mark.parametrize(("scoring_max_length", "expected"), [(None, 512), (100, 100), (512, 512), (9_000, 512)])
def test_the_context_is_the_shorter_of_the_models_and_the_configured_one(model, scoring_max_length, expected):
    assert find_context_length(model, MIWVConfig(scoring_max_length=scoring_max_length)) == expected


def test_a_model_without_a_longest_sequence_takes_any():
    model = tiny_model(MambaConfig(vocab_size=512, hidden_size=32, num_hidden_layers=1, state_size=4))
    assert find_context_length(model, MIWVConfig()) > 10**9
    assert find_context_length(model, MIWVConfig(scoring_max_length=64)) == 64


def test_a_token_id_outside_the_vocabulary_is_refused(model):
    check_model(model, pool_of(([10], [511]), ([12], [13])))
    with pytest.raises(
        ValueError, match=r"holds token id 512, but the model's vocabulary has 512 entries.*own, or resize"
    ):
        check_model(model, pool_of(([10], [11]), ([512], [13])))


def test_a_token_id_outside_the_vocabulary_is_refused_in_the_preamble_too(model):
    sequences = [TokenizedSample(np.array([700, 10, 11]), np.array([False, False, True]))] * 2
    with pytest.raises(ValueError, match="token id 700"):
        check_model(model, build_pool(sequences, TurnMarkers(bos=700)))


def test_an_encoder_decoder_model_is_refused_by_its_name(pool):
    config = T5Config(vocab_size=512, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(
        ValueError, match="T5ForConditionalGeneration is an encoder-decoder model; MIWV is defined for caus"
    ):
        check_model(T5ForConditionalGeneration(config), pool)


def test_a_models_fingerprint_holds_its_configuration_and_four_losses_spread_over_the_pool(model):
    losses = np.array([np.nan, *range(1, 12), np.inf], dtype=np.float32)
    fingerprint = fingerprint_model(model, losses)
    assert fingerprint["zero_shot_losses"] == {"1": 1.0, "4": 4.0, "7": 7.0, "11": 11.0}
    assert fingerprint == fingerprint_model(tiny_model(seed=1), losses)
    other = fingerprint_model(tiny_model(tiny_config(num_hidden_layers=1)), losses)
    assert other["config"] != fingerprint["config"]


def test_a_models_fingerprint_names_as_many_losses_as_there_are(model):
    assert fingerprint_model(model, np.array([np.nan, 2.0], dtype=np.float32))["zero_shot_losses"] == {"1": 2.0}


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


def test_a_text_that_steers_the_terminal_is_shown_instead(tmp_path: Path) -> None:
    columns = made_columns(3)
    current = write_round(tmp_path, columns, [0])
    table = format_scores(current, ["\x1b[31mred \x9b0m", "bell\x07 \u202e", "größer 😀\n日本"])
    assert all(letter.isprintable() or letter == "\n" for letter in table)
    assert r"\x1b[31mred \x9b0m" in table and r"bell\x07 \u202e" in table and "größer 😀 日本" in table


def test_a_prompt_tuned_model_is_refused(model) -> None:
    from peft import PromptTuningConfig, get_peft_model

    tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(ValueError, match="prompt-tuned by PEFT: its virtual tokens shift every position"):
        check_model(tuned, pool_from_rows(tiny_dataset(4), tiny_tokenizer()))


@pytest.mark.parametrize("changes", [{"embedder": "model"}, {"scoring_max_length": 256}, {"embedder": "tfidf"}])
def test_a_fresh_run_moves_what_does_not_fit_aside_and_keeps_what_does(model, pool, store, changes, caplog):
    finished = finished_round(model, pool, store)
    config = MIWVConfig(**{"embedder": "tfidf", **changes})
    exemplars_of(model, pool, store, config, reuse=False)
    aside = store.folder / "previous-0"
    if config == CONFIG or changes == {"embedder": "tfidf"}:
        assert not aside.exists() and store.list_rounds() == [0]
        return
    assert "of an earlier run" in caplog.text
    assert sorted(path.name for path in aside.iterdir()) == ["embeddings.safetensors", "exemplars.parquet", "round-000"]
    assert pq.read_table(aside / "round-000" / "scores.parquet").equals(finished.scores)
    assert store.read_exemplars(fingerprint_exemplars(pool, config, find_context_length(model, config))) is not None


def test_exemplars_that_are_damaged_are_found_again_by_a_fresh_run(model, pool, store):
    found = exemplars_of(model, pool, store)
    for name in ("exemplars.parquet", "embeddings.safetensors"):
        (store.folder / name).write_bytes(b"half a fi")
    again = exemplars_of(model, pool, store, reuse=False)
    assert again.indices.tolist() == found.indices.tolist()


def test_a_negative_token_id_is_refused(model, pool) -> None:
    tokens = pool.tokens.copy()
    tokens[3] = -1
    with pytest.raises(ValueError, match="token id -1, but the model's vocabulary has 512 entries"):
        check_model(model, Pool(pool.preamble, tokens, pool.is_response, pool.offsets))
