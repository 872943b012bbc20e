"""SmolLM2-135M on real samples, against forwards and a search written here. Slow: about ten minutes on 2 cores."""

import gzip
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.measure import measure
from miwv_trainer.cli.main import main
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.files import load_rows
from miwv_trainer.distributed.world import World
from miwv_trainer.embeddings.embedders import embed_texts
from miwv_trainer.embeddings.nearest import find_nearest_exemplars
from miwv_trainer.scoring.attention import choose_tree_attention
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import choose_layout, score_pool
from miwv_trainer.scoring.memory import estimate_memory, measure_memory, size_batches
from miwv_trainer.scoring.scorer import prepare_scorer
from tests.helpers.launch import ROOT
from tests.helpers.quickstart import check_quickstart, quickstart

pytestmark = pytest.mark.slow

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
SAMPLES = 64


@pytest.fixture(scope="module", autouse=True)
def all_threads() -> Iterator[None]:
    """Other tests are tiny and run on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    sys.path.insert(0, str(ROOT / "examples"))
    quickstart_module = pytest.importorskip("quickstart")
    pytest.importorskip("gguf")
    return quickstart_module.find_default_model()


def first_rows(shared_data: Path, count: int) -> list[dict[str, str]]:
    with gzip.open(shared_data / "alpaca_gpt4_1k.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for _, line in zip(range(count), file, strict=False)]


def instruction(row: dict[str, str]) -> str:
    return f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]


def loss(model: Any, tokenizer: Any, before: str, response: str) -> float:
    """One row, all logits: the mean over the response, end of turn included."""
    start = tokenizer(before, add_special_tokens=False)["input_ids"]
    ids = tokenizer(before + response, add_special_tokens=False)["input_ids"]
    assert ids[: len(start)] == start
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float()
    log_probs = logits.log_softmax(-1)[range(len(start) - 1, len(ids) - 1), ids[len(start) :]]
    return -float(log_probs.mean())


def test_miwv_score_agrees_with_a_row_by_row_forward_and_a_brute_force_search(
    smollm2: Path, shared_data: Path, tmp_path: Path
) -> None:
    pool = shared_data / "alpaca_gpt4_1k.jsonl.gz"
    command = f"score --model {smollm2} --dataset {pool} --max-samples {SAMPLES} --embedder tfidf --dtype float32"
    assert main([*command.split(), "--output", str(tmp_path)]) == 0
    scores = pq.read_table(tmp_path / "miwv" / "round-000" / "scores.parquet").to_pandas()
    rows = first_rows(shared_data, SAMPLES)

    vectors = TfidfVectorizer().fit_transform([instruction(row) for row in rows]).toarray()
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    assert scores["exemplar"].tolist() == cosines.argmax(axis=1).tolist()
    np.testing.assert_allclose(scores["similarity"], cosines.max(axis=1), atol=1e-6)

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    preamble = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
    prompts = [f"<|im_start|>user\n{instruction(row)}<|im_end|>\n<|im_start|>assistant\n" for row in rows]
    responses = [f"{row['output']}<|im_end|>\n" for row in rows]
    for index, exemplar in enumerate(scores["exemplar"]):
        shown = prompts[exemplar] + responses[exemplar]
        zero_shot = loss(model, tokenizer, preamble + prompts[index], responses[index])
        one_shot = loss(model, tokenizer, preamble + shown + prompts[index], responses[index])
        assert scores["zero_shot_loss"][index] == pytest.approx(zero_shot, abs=1e-4)
        assert scores["one_shot_loss"][index] == pytest.approx(one_shot, abs=1e-4)
        assert scores["miwv"][index] == pytest.approx(one_shot - zero_shot, abs=1e-4)


def test_ifd_is_that_of_rows_forwarded_alone_within_1e_5(smollm2: Path, shared_data: Path, tmp_path: Path) -> None:
    pool, count = shared_data / "alpaca_gpt4_1k.jsonl.gz", 32
    typed = f"score --model {smollm2} --dataset {pool} --max-samples {count} --score ifd --dtype float32"
    assert main([*typed.split(), "--fraction", "0.25", "--output", str(tmp_path)]) == 0
    scores = pq.read_table(tmp_path / "miwv" / "round-000" / "scores.parquet").to_pandas()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    system, opening = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n", "<|im_start|>assistant\n"
    expected = []
    for row in first_rows(shared_data, count):
        prompt, response = f"<|im_start|>user\n{instruction(row)}<|im_end|>\n", f"{row['output']}<|im_end|>\n"
        behind = loss(model, tokenizer, system + prompt + opening, response)
        alone = loss(model, tokenizer, system + opening, response)
        expected.append(np.exp(behind - alone))
    np.testing.assert_allclose(scores["score"], expected, atol=1e-5, rtol=0)
    allowed = [index for index in range(count) if expected[index] <= 1]
    highest = sorted(allowed, key=lambda index: -expected[index])[: count // 4]
    assert np.flatnonzero(scores["selected"]).tolist() == sorted(highest)


def test_trees_have_the_losses_of_padded_rows(smollm2: Path, shared_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    pool = pool_from_rows(load_rows(shared_data / "alpaca_gpt4_1k.jsonl.gz").select(range(100, 140)), tokenizer)
    exemplars, _ = find_nearest_exemplars(embed_texts("tfidf", pool.texts), pool, 8192)
    world = World(0, 1, torch.device("cpu"))
    with leave_no_trace(model):
        assert choose_layout(prepare_scorer(model, pool, MIWVConfig(), world), exemplars) == "tree"
        tree = score_pool(prepare_scorer(model, pool, MIWVConfig(), world), exemplars, "tree")
        padded = score_pool(prepare_scorer(model, pool, MIWVConfig(), world), exemplars, "padded")
    assert np.isfinite(padded.miwv).all()
    np.testing.assert_allclose(tree.zero_shot, padded.zero_shot, atol=2e-5, rtol=0)
    np.testing.assert_allclose(tree.one_shot, padded.one_shot, atol=2e-5, rtol=0)


def forward_memory(dtype: torch.dtype, smollm2: Path, shared_data: Path) -> tuple[int | None, int]:
    """Bytes that the largest forwards of a round took at their peak, and by the formula."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=dtype).eval()
    pool = pool_from_rows(load_rows(shared_data / "alpaca_gpt4_1k.jsonl.gz").select(range(12)), tokenizer)
    exemplars, _ = find_nearest_exemplars(embed_texts("tfidf", pool.texts), pool, 8192)
    world = World(0, 1, torch.device("cpu"))
    budget = size_batches(model, MIWVConfig(), measure_memory(model, world))
    assert budget.tokens_per_batch == 4096
    with leave_no_trace(model):
        model(torch.tensor([[1, 2]]))  # weights are mapped from their file, and count once they are touched
        measured = measure(
            lambda: score_pool(prepare_scorer(model, pool, MIWVConfig(), world), exemplars, "tree"), world.device
        )
    tokens = measured.result.tokens_forwarded
    return measured.peak_bytes, estimate_memory(model, budget.tokens_per_row, tokens, 256, choose_tree_attention(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forward_takes_no_more_memory_than_the_formula_says(
    dtype: torch.dtype, smollm2: Path, shared_data: Path
) -> None:
    # In a process of its own: in one that has done much, malloc's free pieces are too small and stay resident.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        peak_bytes, formula = fresh.submit(forward_memory, dtype, smollm2, shared_data).result()
    assert peak_bytes is not None
    assert 2**24 < peak_bytes < 1.25 * formula


def test_the_default_quickstart_takes_less_than_three_minutes_and_learns(smollm2: Path, tmp_path: Path) -> None:
    started = time.perf_counter()
    printed = quickstart(tmp_path, threads=os.cpu_count() or 1)
    assert time.perf_counter() - started < 180
    check_quickstart(printed, tmp_path)
    line = next(line for line in printed.splitlines() if line.startswith("held-out response loss"))
    before, after = (float(word) for word in line.replace(",", "").split() if "." in word)
    assert after < before
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(smollm2), tmp_path)
