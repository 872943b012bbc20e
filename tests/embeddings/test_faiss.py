"""The approximate search: its recall, its ties, and what it leaves to the exact search."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from miwv_trainer.embeddings import faiss as faiss_search
from miwv_trainer.embeddings import nearest
from miwv_trainer.embeddings.nearest import find_nearest_exemplars
from tests.helpers.exemplars import FAR, brute_force, distinct
from tests.helpers.pools import clustered_pool, pool_of


@pytest.fixture
def find_with_faiss(monkeypatch):
    """As if every pool were large."""
    pytest.importorskip("faiss")

    def find(*given):
        with monkeypatch.context() as patched:
            patched.setattr(nearest, "APPROXIMATE_ABOVE", 0)
            return find_nearest_exemplars(*given)

    return find


@pytest.mark.parametrize("context", [FAR, 12])
def test_faiss_finds_at_least_95_percent_of_the_exemplars_and_none_that_is_ruled_out(find_with_faiss, context):
    vectors, samples = clustered_pool()
    pool = pool_of(samples)
    found, similarities = find_with_faiss(vectors, pool, context)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(similarities, (unit * unit[found]).sum(axis=1), atol=1e-6)

    hits = 0
    usable = np.asarray([bool(prompt) and bool(response) for prompt, response in samples])
    lengths = np.asarray([len(prompt) + len(response) for prompt, response in samples])
    for query, exemplar in enumerate(found.tolist()):
        assert exemplar != query
        assert usable[exemplar]
        assert samples[exemplar] != samples[query]
        allowed = usable.copy()
        allowed[[other for other in range(query - 1, min(query + 2, 4000)) if samples[other] == samples[query]]] = False
        fitting = allowed & (lengths + lengths[query] <= context)
        if fitting.any():
            assert fitting[exemplar]
        cosines = np.where(fitting if fitting.any() else allowed, unit @ unit[query], -np.inf)
        hits += cosines[exemplar] >= cosines.max() - 1e-6
    assert hits / len(found) >= 0.95


def test_ties_among_the_neighbours_of_faiss_go_to_the_lower_index(find_with_faiss):
    directions = np.random.default_rng(0).standard_normal((100, 16))
    scales = np.random.default_rng(1).uniform(0.01, 100, size=(300, 1))
    vectors = (np.tile(directions, (3, 1)) * scales).astype(np.float32)  # i, i + 100 and i + 200 point one way
    found, _ = find_with_faiss(vectors, pool_of(distinct(300)), FAR)
    assert found.tolist() == [*range(100, 200), *range(100), *range(100)]


def test_lists_are_looked_into_until_the_recall_is_reached(find_with_faiss, monkeypatch, caplog):
    vectors = np.random.default_rng(0).standard_normal((4000, 48)).astype(np.float32)  # no clusters: the hardest case
    pool = pool_of(distinct(4000))
    caplog.set_level("INFO", logger="miwv_trainer")
    exact, _ = find_nearest_exemplars(vectors, pool, FAR)
    recalls = []
    for wanted in (0.0, 0.99):
        monkeypatch.setattr(faiss_search, "RECALL", wanted)
        found, _ = find_with_faiss(vectors, pool, FAR)
        recalls.append((found == exact).mean())
    assert recalls[0] < 0.9 < 0.98 < recalls[1]
    told = [re.search(r"into (\d+) of 62 lists.* for ([\d.]+) % of 1000", record.message) for record in caplog.records]
    assert [int(match[1]) for match in told][0] == 8 < int(told[1][1])
    assert [float(match[2]) / 100 for match in told] == pytest.approx(recalls, abs=0.03)


def test_samples_whose_neighbours_are_all_ruled_out_are_searched_exactly(find_with_faiss, caplog):
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((300, 8)).astype(np.float32)
    samples = distinct(300)
    for copy in range(100):  # more than FAISS returns
        vectors[copy], samples[copy] = vectors[0], samples[0]
    caplog.set_level("INFO", logger="miwv_trainer")
    found, _ = find_with_faiss(vectors, pool_of(samples), FAR)
    expected = brute_force(vectors.tolist(), samples, FAR)
    assert found[:100].tolist() == expected[:100]
    assert (found[100:] == expected[100:]).mean() >= 0.95
    assert "100 samples have no exemplar among 32 neighbours: searched exactly." in caplog.text


def test_a_pool_of_copies_has_no_exemplars_with_faiss_either(find_with_faiss):
    vectors = np.ones((200, 4), dtype=np.float32)
    found, similarities = find_with_faiss(vectors, pool_of([([1], [2])] * 200), FAR)
    assert found.tolist() == [-1] * 200
    assert np.isnan(similarities).all()


@pytest.mark.parametrize(("first", "threads"), [("torch", 2), ("faiss", 1)])
def test_torch_and_faiss_work_in_one_process(first, threads):
    pytest.importorskip("faiss")
    script = f"""
import {first}
import numpy as np, torch
from tests.helpers.pools import clustered_pool
from miwv_trainer.embeddings import nearest
from tests.helpers.pools import pool_of
vectors, samples = clustered_pool(2000)
nearest.APPROXIMATE_ABOVE = 0
for _ in range(2):
    found, _ = nearest.find_nearest_exemplars(vectors, pool_of(samples), 100)
    assert torch.ones(200, 200).matmul(torch.ones(200, 200)).sum() == 200**3
print((found >= 0).all())
"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "True"
