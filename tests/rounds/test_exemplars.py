"""Exemplars and embeddings: what needs them, and when they are found, read from the store or refused."""

import logging

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.rounds import exemplars
from miwv_trainer.rounds.exemplars import embeds_text
from miwv_trainer.rounds.identity import fingerprint_exemplars, fingerprint_run
from miwv_trainer.scoring.context import find_context_length
from miwv_trainer.selection.scores import get_score, needs_exemplars
from miwv_trainer.storage.store import Store
from tests.helpers.tiny import tiny_dataset, tiny_model
from tests.helpers.tiny_rounds import CONFIG, COUNT, exemplars_of, finished_round, pool_of


@pytest.mark.parametrize(
    "values, forwards, exemplars, embeddings",
    [
        ({}, True, True, False),
        ({"score": "residual_miwv"}, True, True, False),
        ({"score": "one_shot_loss"}, True, True, False),
        ({"score": "zero_shot_loss"}, True, False, False),
        ({"score": "zero_shot_loss", "min_similarity": 0.0}, True, True, False),
        ({"score": "random"}, False, False, False),
        ({"score": "longest"}, False, False, False),
        ({"score": "longest", "min_similarity": 0.3}, False, True, False),
        ({"preset": "guarded"}, True, True, True),
        ({"score": "random", "diversity": "mmr"}, False, False, True),
        ({"score": "longest", "diversity": "facility_location"}, False, False, True),
        ({"max_selected_similarity": 0.99}, True, True, True),
    ],
)
def test_what_is_needed_is_told_by_score_and_guards(values, forwards, exemplars, embeddings):
    config = MIWVConfig(**values)
    assert (get_score(config).needs_forwards, needs_exemplars(config)) == (forwards, exemplars)
    assert config.needs_embeddings == embeddings
    for embedder, is_of_text in (("tfidf", True), ("some/folder", True), ("model", False), (np.zeros((3, 2)), False)):
        looks = embeds_text(MIWVConfig(**values, embedder=embedder))
        assert looks == (is_of_text and (exemplars or embeddings))


def no_embedding(*_, **__):
    raise AssertionError("the pool was embedded again")


def refuse_to_embed(monkeypatch):
    for name in ("embed_texts", "embed_prompts", "validate_embeddings"):
        monkeypatch.setattr(exemplars, name, no_embedding)


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
        (
            {"score": "influence", "exemplars_per_sample": 2},
            "made with exemplars_per_sample = 1, but this run has exemplars_per_sample = 2",
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
