"""Exemplars of whole pools, compared with every pair in plain Python, and which search they come from."""

import re
import sys

import numpy as np
import pytest

from miwv_trainer.config import MIWVConfig
from miwv_trainer.embeddings import faiss as faiss_search
from miwv_trainer.embeddings import nearest
from miwv_trainer.embeddings.embedders import embed_texts
from miwv_trainer.embeddings.nearest import find_nearest_exemplars, find_ranked_exemplars
from tests.helpers.exemplars import FAR, brute_force, brute_force_ranked, distinct, random_samples, tfidf_by_hand
from tests.helpers.pools import clustered_pool, pool_of


@pytest.mark.parametrize("allow_identical", [False, True])
@pytest.mark.parametrize("context", [FAR, 20, 12, 5])
def test_exemplars_of_dense_embeddings_equal_a_brute_force_search(context, allow_identical):
    samples = random_samples(40)
    vectors = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)
    vectors[5] = vectors[11] = vectors[2]
    found, similarities = find_nearest_exemplars(vectors, pool_of(samples, preamble=2), context, allow_identical)
    expected = brute_force(vectors.tolist(), samples, context, preamble=2, allow_identical=allow_identical)
    assert found.tolist() == expected
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(similarities, (unit * unit[expected]).sum(axis=1), atol=1e-6)


@pytest.mark.parametrize("allow_identical", [False, True])
@pytest.mark.parametrize("context", [FAR, 20, 12, 5])
def test_several_exemplars_a_sample_equal_a_brute_force_search(context, allow_identical):
    samples = random_samples(40)
    vectors = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)
    vectors[5] = vectors[11] = vectors[2]
    vectors[30] = vectors[31] * 2  # ties
    pool = pool_of(samples, preamble=2)
    for count in (2, 7, 60):
        config = MIWVConfig(
            score="influence", exemplars_per_sample=count, allow_identical_exemplars=allow_identical, embedder=vectors
        )
        found, similarities = find_ranked_exemplars(vectors, pool, context, config)
        expected = brute_force_ranked(vectors.tolist(), samples, context, count, 2, allow_identical)
        assert found.tolist() == expected
        unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        cosines = np.einsum("nd,nmd->nm", unit, unit[np.asarray(expected)])
        np.testing.assert_allclose(similarities, np.where(found < 0, np.nan, cosines), atol=1e-6)
        nearest, _ = find_nearest_exemplars(vectors, pool, context, allow_identical)
        assert found[:, 0].tolist() == nearest.tolist()
    assert (found == -1).any(axis=1).all()  # no sample has 60 others


def test_the_rules_of_the_brute_force_comparison_each_change_its_outcome():
    samples = random_samples(40)
    vectors = np.random.default_rng(1).standard_normal((40, 6))
    vectors[5] = vectors[11] = vectors[2]
    outcomes = [
        brute_force(vectors.tolist(), samples, context, preamble=2, allow_identical=allow_identical)
        for context in (FAR, 20, 12, 5)
        for allow_identical in (False, True)
    ]
    assert len({tuple(outcome) for outcome in outcomes[:6]}) == 6
    assert outcomes[6:] == outcomes[:2]  # nothing fits 5 tokens, so the nearest of all is taken


@pytest.mark.parametrize("context", [FAR, 12])
def test_exemplars_of_tfidf_equal_a_brute_force_search(context):
    texts = [
        f"{task} {topic} {'please' * (index % 3 == 0)}"
        for index, (task, topic) in enumerate(
            (task, topic)
            for task in ("explain the", "list facts about", "compare", "explain the the")
            for topic in ("red apples", "green apples", "rivers", "rivers and lakes", "chess", "bread", "a")
        )
    ]
    samples = random_samples(len(texts))
    found, _ = find_nearest_exemplars(embed_texts("tfidf", texts), pool_of(samples), context)
    assert found.tolist() == brute_force(tfidf_by_hand(texts), samples, context)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dim", [2, 33])
def test_random_pools_equal_a_brute_force_search(seed, dim):
    generator = np.random.default_rng(seed)
    samples = random_samples(50, seed)
    samples[30:34] = [samples[1]] * 4
    vectors = generator.standard_normal((50, dim)).astype(np.float32)
    for context in (2, 6, 9, 12, 16, FAR):
        found, _ = find_nearest_exemplars(vectors, pool_of(samples, preamble=1), context)
        assert found.tolist() == brute_force(vectors.tolist(), samples, context, preamble=1)


def test_the_length_of_an_embedding_does_not_matter():
    vectors = np.random.default_rng(0).standard_normal((30, 5)).astype(np.float32)
    scaled = vectors * np.geomspace(1e-4, 1e4, 30, dtype=np.float32)[:, None]
    pool = pool_of(distinct(30))
    assert (
        find_nearest_exemplars(vectors, pool, FAR)[0].tolist() == find_nearest_exemplars(scaled, pool, FAR)[0].tolist()
    )


def test_an_embedding_of_zeros_is_similar_to_nothing_and_disturbs_nobody():
    vectors = np.array([[0, 0], [1, 0], [1, 1]], dtype=np.float32)
    found, similarities = find_nearest_exemplars(vectors, pool_of(distinct(3)), FAR)
    assert found.tolist() == [1, 2, 1]
    assert similarities[0] == 0


@pytest.mark.parametrize("approximate_above", [10_000, 0], ids=["exact", "FAISS"])
def test_an_embedding_that_is_not_finite_has_and_is_no_exemplar(monkeypatch, recwarn, approximate_above):
    pytest.importorskip("faiss")
    monkeypatch.setattr(nearest, "APPROXIMATE_ABOVE", approximate_above)
    vectors = np.array([[1, 0], [np.nan, 0], [1, 1], [np.inf, 1]], dtype=np.float32)
    found, similarities = find_nearest_exemplars(vectors, pool_of(distinct(4)), FAR)
    assert found.tolist() == [2, -1, 0, -1]
    assert np.isnan(similarities).tolist() == [False, True, False, True]
    assert not [warning for warning in recwarn if warning.category is RuntimeWarning]
    found, _ = find_nearest_exemplars(np.full_like(vectors, np.nan), pool_of(distinct(4)), FAR)
    assert found.tolist() == [-1] * 4


def test_faiss_is_used_above_the_given_size_alone_and_finds_the_same_twice(monkeypatch):
    pytest.importorskip("faiss")
    vectors, samples = clustered_pool(1000)
    searches = []
    build = faiss_search._build_index
    monkeypatch.setattr(faiss_search, "_build_index", lambda *given: searches.append(1) or build(*given))
    find_nearest_exemplars(vectors, pool_of(samples), FAR)
    monkeypatch.setattr(nearest, "APPROXIMATE_ABOVE", 1000)
    find_nearest_exemplars(vectors, pool_of(samples), FAR)
    assert not searches
    monkeypatch.setattr(nearest, "APPROXIMATE_ABOVE", 999)
    first = find_nearest_exemplars(vectors, pool_of(samples), FAR)
    second = find_nearest_exemplars(vectors, pool_of(samples), FAR)
    assert len(searches) == 2
    assert first[0].tolist() == second[0].tolist()
    assert first[1].tolist() == second[1].tolist()


def test_a_missing_faiss_is_an_error_that_names_the_extra_and_only_above_the_threshold(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    vectors = np.eye(4, dtype=np.float32)
    monkeypatch.setattr(nearest, "APPROXIMATE_ABOVE", 4)
    assert len(find_nearest_exemplars(vectors, pool_of(distinct(4)), FAR)[0]) == 4
    monkeypatch.setattr(nearest, "APPROXIMATE_ABOVE", 3)
    with pytest.raises(ImportError, match=r"4 samples are searched with FAISS.*pip install 'miwv-trainer\[faiss\]'"):
        find_nearest_exemplars(vectors, pool_of(distinct(4)), FAR)


def test_a_large_sparse_pool_is_searched_exactly_with_a_warning_of_its_cost(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "faiss", None)
    texts = ["red apples", "green apples", "green rivers", "red rivers and apples"]
    embeddings = embed_texts("tfidf", texts)
    monkeypatch.setattr(nearest, "SPARSE_SECONDS_PER_PAIR", 3600 * 2.5 / 16)
    monkeypatch.setattr(nearest, "APPROXIMATE_ABOVE", 3)
    found, _ = find_nearest_exemplars(embeddings, pool_of(distinct(4)), FAR)
    assert found.tolist() == brute_force(tfidf_by_hand(texts), distinct(4), FAR)
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert re.search(
        r"4 samples are compared pair by pair.*about 2\.5 hours on two cores\. Faster: .*`embedder`", warning
    )
