"""The exact search: in chunks, in full float32, on a GPU, and what it costs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from miwv_trainer.distributed.world import World
from miwv_trainer.embeddings import exact, rules
from miwv_trainer.embeddings.nearest import find_nearest_exemplars
from miwv_trainer.embeddings.vectors import normalise_rows
from tests.helpers.exemplars import FAR, brute_force, random_samples
from tests.helpers.pools import pool_of

# Run by itself, so that the peak is that of the search. Prints what the test asserts.
SEARCH_OF_T0 = """
import gzip, json, resource, sys, time, zlib
import numpy as np
import torch
from miwv_trainer.data.pool import Pool
from miwv_trainer.embeddings.nearest import find_nearest_exemplars

torch.set_num_threads(2)
prompts, responses = [], []
with gzip.open(sys.argv[1], "rt", encoding="utf-8") as lines:
    for line in lines:
        row = json.loads(line)
        prompts.append([zlib.crc32(word.encode()) % 50_000 for word in row["prompt"].split()])
        responses.append([zlib.crc32(word.encode()) % 50_000 for word in row["completion"].split()])
lengths = [len(p) + len(r) for p, r in zip(prompts, responses)]
pool = Pool(
    preamble=np.zeros(1, dtype=np.int32),
    tokens=np.asarray([t for p, r in zip(prompts, responses) for t in p + r], dtype=np.int32),
    is_response=np.asarray([m for p, r in zip(prompts, responses) for m in [False] * len(p) + [True] * len(r)]),
    offsets=np.cumsum([0, *lengths]),
)
keys = [(tuple(p), tuple(r)) for p, r in zip(prompts, responses)]
embeddings = np.random.default_rng(0).standard_normal((len(pool), 384), dtype=np.float32)
with open("/proc/self/statm") as file:
    resident_before = int(file.read().split()[1]) * resource.getpagesize()
started = time.perf_counter()
exemplars, similarities = find_nearest_exemplars(embeddings, pool, context=600)
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

unit = embeddings.astype(np.float64) / np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
usable = np.asarray([bool(p) and bool(r) for p, r in zip(prompts, responses)])
wrong = 0
for query in range(0, len(pool), 1009):
    cosines = unit @ unit[query]
    allowed = usable & np.asarray([key != keys[query] for key in keys])
    fitting = allowed & (1 + np.asarray(lengths) + lengths[query] <= 600)
    candidates = np.flatnonzero(fitting if fitting.any() else allowed)
    wrong += exemplars[query] != candidates[cosines[candidates].argmax()]
print(json.dumps({"samples": len(pool), "seconds": seconds, "extra": peak - resident_before, "wrong": int(wrong)}))
"""


@pytest.mark.parametrize("at_once", [1, 41, 41 * 7, 41 * 40, 2**25])
@pytest.mark.parametrize("embedder", ["dense", "tfidf"])
def test_a_search_in_chunks_equals_one_at_once(monkeypatch, embedder, at_once):
    samples = random_samples(41)
    vectors = np.random.default_rng(2).integers(-2, 3, size=(41, 4)).astype(np.float32)  # many ties
    embeddings = vectors if embedder == "dense" else scipy.sparse.csr_matrix(normalise_rows(vectors))
    seen = []
    nearest = rules.Rules.pick_nearest

    def watched_nearest(rules, cosines, queries, candidates):
        seen.append(tuple(cosines.shape))
        return nearest(rules, cosines, queries, candidates)

    monkeypatch.setattr(exact, "COSINES_AT_ONCE", at_once)
    monkeypatch.setattr(rules.Rules, "pick_nearest", watched_nearest)
    found, _ = find_nearest_exemplars(embeddings, pool_of(samples), 14)
    assert found.tolist() == brute_force(vectors.tolist(), samples, 14)
    assert sum(rows for rows, _ in seen) == 41
    assert max(rows * columns for rows, columns in seen) <= max(at_once, 39)  # two samples can be nobody's exemplar


@pytest.mark.slow
def test_55185_samples_of_384_dimensions_are_searched_within_60_seconds_and_2_gib(shared_data):
    run = subprocess.run(
        [sys.executable, "-c", SEARCH_OF_T0, str(shared_data / "t0_50k.jsonl.gz")],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": str(os.cpu_count())},  # other tests are tiny and run on one thread
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    measured = json.loads(run.stdout.splitlines()[-1])
    assert measured["samples"] == 55_185
    assert measured["wrong"] == 0
    assert measured["seconds"] < 60
    assert measured["extra"] < 2 * 2**30  # an N x N matrix of float32 takes 11.3 GiB


def set_newer(backend, value):
    return lambda: setattr(backend.matmul, "fp32_precision", value)


PRECISIONS = {
    "untouched": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "newer for CUDA": set_newer(torch.backends.cuda, "tf32"),
    "newer for oneDNN": set_newer(torch.backends.mkldnn, "bf16"),
    "newer for all, as transformers sets it": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
}


@pytest.fixture
def untouched_precision():
    def reset():
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        for backend in (torch.backends.cuda, torch.backends.mkldnn):
            backend.matmul.fp32_precision = "none"

    reset()
    yield
    reset()


@pytest.mark.parametrize("setting", PRECISIONS)
def test_products_are_full_float32_whatever_the_user_set_and_the_setting_comes_back(setting, untouched_precision):
    def read():
        try:
            older = torch.get_float32_matmul_precision()
        except RuntimeError:
            older = "refused"
        newer = [backend.matmul.fp32_precision for backend in (torch.backends.cuda, torch.backends.mkldnn)]
        return [older, torch.backends.fp32_precision, *newer]

    PRECISIONS[setting]()
    before = read()
    with pytest.raises(KeyError), exact.use_full_float32():
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
        assert read()[2:] == ["ieee", "ieee"]
        raise KeyError
    assert read() == before


def test_the_product_on_another_device_is_taken_in_full_float32(monkeypatch, untouched_precision):
    """On the meta device, which computes nothing: what is looked at is the setting at the moment of the product."""
    seen = []
    product = torch.Tensor.__matmul__

    def watched_product(left, right):
        seen.append((left.device.type, torch.backends.cuda.matmul.allow_tf32))
        return product(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched_product)
    torch.set_float32_matmul_precision("high")
    products = exact._prepare_products_on(np.ones((4, 3), dtype=np.float32), np.arange(4), torch.device("meta"))
    assert products(torch.arange(2)).shape == (2, 4)
    assert seen == [("meta", False)]
    assert torch.backends.cuda.matmul.allow_tf32


@pytest.mark.gpu
def test_a_search_on_a_gpu_finds_what_a_search_on_the_cpu_finds(untouched_precision):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    samples = random_samples(3000)
    vectors = np.random.default_rng(0).standard_normal((3000, 384)).astype(np.float32)
    vectors[5] = vectors[11] = vectors[2]
    vectors[100] = np.nan
    torch.backends.fp32_precision = "tf32"
    for context in (FAR, 20, 12):
        on_cpu = find_nearest_exemplars(vectors, pool_of(samples, preamble=2), context)
        on_gpu = find_nearest_exemplars(
            vectors, pool_of(samples, preamble=2), context, world=World(0, 1, torch.device("cuda"))
        )
        assert (on_gpu[0] == on_cpu[0]).mean() > 0.999  # two cosines within 1e-6 of each other may change places
        np.testing.assert_allclose(on_gpu[1], on_cpu[1], atol=2e-6)
