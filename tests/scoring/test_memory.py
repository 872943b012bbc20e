"""How many tokens a forward takes, and what happens where memory runs out all the same."""

import functools
import logging
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from miwv_trainer.choices import Attention
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.scoring import memory
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import score_pool
from miwv_trainer.scoring.memory import BatchSize, estimate_memory, find_least_free_memory, measure_memory, size_batches
from miwv_trainer.scoring.prompt_embeddings import embed_prompts
from miwv_trainer.scoring.rows import plan_prompts
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.scoring.trees import make_tree_batches, plan_trees
from tests.helpers.trees import SMALL, random_case, random_model

CPU = torch.device("cpu")
WORLD = World(0, 1, CPU)
RANDOM, EXEMPLARS, _, _ = random_case(6)
POOL = replace(RANDOM, tokens=RANDOM.tokens % SMALL["vocab_size"])


def chosen(
    monkeypatch: Any, free: int, attention: Attention = "segments", work: int | None = None, **values: Any
) -> BatchSize:
    monkeypatch.setattr(memory, "find_least_free_memory", lambda device, world: free)
    implementation = "eager" if attention == "mask" else "sdpa"
    model = random_model("Llama", SMALL, implementation)
    return size_batches(model, MIWVConfig(**values), measure_memory(model, WORLD), work)


def test_with_memory_to_spare_the_defaults_are_what_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, 2**40) == BatchSize(4096, 4096)
    assert chosen(monkeypatch, 2**40, "mask") == BatchSize(1024, 4096)


def test_what_is_configured_is_taken_whatever_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, 0, tokens_per_row=700, tokens_per_batch=900) == BatchSize(700, 900)
    assert chosen(monkeypatch, 0, tokens_per_batch=900) == BatchSize(900, 900)
    assert chosen(monkeypatch, 2**40, tokens_per_row=9000) == BatchSize(9000, 9000)


def test_a_forward_is_at_most_a_256th_of_the_work_but_no_less_than_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    for work, expected in ((100, 1024), (512_000, 2000), (10**9, 4096)):
        assert chosen(monkeypatch, 2**40, "mask", work) == BatchSize(1024, expected)
    assert chosen(monkeypatch, 2**40, "mask", 512_000, tokens_per_row=3000) == BatchSize(3000, 3000)
    assert chosen(monkeypatch, 2**40, "mask", 512_000, tokens_per_batch=4000) == BatchSize(1024, 4000)


@pytest.mark.parametrize("count", [300, 1000, 4000])
def test_ranks_carry_about_equal_work_whatever_their_number(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator, whose forwards take up to 32,768 tokens: a thousand short samples would be twelve of them."""
    monkeypatch.setattr(memory, "TOKENS_ON_CPU", memory.TOKENS_ON_ACCELERATOR)
    generator = np.random.default_rng(count)
    offsets = np.concatenate([[0], np.cumsum(generator.integers(20, 400, count))])
    is_response = np.ones(offsets[-1], dtype=bool)
    is_response[offsets[:-1]] = False
    pool = Pool(np.arange(3, dtype=np.int32), np.zeros(offsets[-1], dtype=np.int32), is_response, offsets)
    exemplars = (np.arange(count) + generator.integers(1, count, count)) % count
    found = chosen(monkeypatch, 2**40, "mask", work=2 * int(pool.lengths.sum()))
    batches = make_tree_batches(
        plan_trees(pool, exemplars, 4096, found.tokens_per_row), pool, found.tokens_per_batch, True
    )
    sizes = sorted((batch.tokens for batch in batches), reverse=True)
    for ranks, most in ((2, 1.03), (3, 1.05), (8, 1.1), (64, 1.6)):
        shares = [World(rank, ranks, CPU).split_between_ranks(sizes) for rank in range(ranks)]
        in_turns = [[share[turn] for share in shares if turn < len(share)] for turn in range(len(shares[0]))]
        assert sum(map(max, in_turns)) <= most * sum(sizes) / ranks


@pytest.mark.parametrize("attention", ["segments", "mask"])
def test_a_forward_is_halved_until_half_of_what_is_free_holds_it(
    attention: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model("Llama", SMALL, "eager" if attention == "mask" else "sdpa")
    sizes = set()
    for free in 2 ** np.arange(20, 34):
        found = chosen(monkeypatch, int(free), attention)
        sizes.add(found.tokens_per_batch)

        def needed(tokens: int) -> int:
            row = min(tokens, 1024 if attention == "mask" else 4096)
            return estimate_memory(model, row, tokens, 256, attention)

        assert needed(found.tokens_per_batch) <= free / 2 or found.tokens_per_batch == 256
        assert found.tokens_per_batch == 4096 or needed(2 * found.tokens_per_batch) > free / 2
        assert found.tokens_per_row <= found.tokens_per_batch
    assert len(sizes) > 3


def test_the_formula_by_hand() -> None:
    """SMALL: hidden 32, intermediate 64, vocabulary 512, 4 heads, float32."""
    activations, head = 100 * 4 * (4 * 64 + 8 * 32), 10 * 512 * 12
    assert estimate_memory(random_model("Llama", SMALL, "sdpa"), 50, 100, 10, "segments") == activations + head
    masks = 2 * 50 * 50 * 5
    assert estimate_memory(random_model("Llama", SMALL, "sdpa"), 50, 100, 10, "mask") == activations + masks + head
    copies = 100 * 4 * 6 * 32
    found = estimate_memory(random_model("Llama", SMALL, "sdpa"), 50, 100, 10, "varlen")
    assert found == activations + copies + head
    weights = 2 * 50 * 50 * 4 * 12
    assert estimate_memory(random_model("Llama", SMALL, "eager"), 50, 100, 10, "mask") == activations + weights + head


class OtherRankFree(World):
    """Rank 0 of two, the other of which has so much free."""

    def all_reduce_sum(self, array: np.ndarray) -> np.ndarray:
        return array + np.array([0, 3_000])


def test_ranks_on_a_cpu_share_what_the_machine_has_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=4_001, total=9_000))
    assert find_least_free_memory(CPU, WORLD) == 4_001
    assert find_least_free_memory(CPU, OtherRankFree(0, 2, CPU)) == 2_000


def test_what_torch_has_reserved_on_a_gpu_and_not_used_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("mem_get_info", (4_000, 9_000)), ("memory_reserved", 700), ("memory_allocated", 200)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    device = torch.device("cuda", 0)
    assert find_least_free_memory(device, WORLD) == 4_500
    assert find_least_free_memory(device, OtherRankFree(0, 2, device)) == 3_000


def out_of_memory_above(most: int, model: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[int]]:
    """
    From now on the model runs out of memory on more tokens, as torch says it on a CPU. Returns the tokens of each
    forward that succeeds, and of each that fails, but for those of four tokens, which check the head.
    """
    original = model.forward
    done: list[int] = []
    failed: list[int] = []

    @functools.wraps(original)
    def forward(*args: Any, **inputs: Any) -> Any:
        tokens = inputs["input_ids"].numel()
        if tokens != 4:
            (failed if tokens > most else done).append(tokens)
        if tokens > most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: no")
        return original(*args, **inputs)

    monkeypatch.setattr(model, "forward", forward)
    return done, failed


def losses(model: Any, layout: str, world: World = WORLD, **values: Any) -> tuple[np.ndarray, int]:
    with leave_no_trace(model):
        found = score_pool(prepare_scorer(model, POOL, MIWVConfig(**values), world), EXEMPLARS, layout)
    return np.stack([found.zero_shot, found.one_shot]), found.tokens_forwarded


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_out_of_memory_halves_the_budget_and_keeps_what_is_scored(
    layout: str, attention: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = random_model("Llama", SMALL, attention)
    whole, _ = losses(model, layout)
    assert np.isfinite(whole).sum() > 20
    done, failed = out_of_memory_above(150, model, monkeypatch)
    with caplog.at_level(logging.WARNING):
        found, tokens = losses(model, layout)
    np.testing.assert_allclose(found, whole, atol=2e-5, rtol=0)
    assert 0 < len(failed) <= 6  # halved each time, and kept
    assert all(later <= earlier for earlier, later in pairwise(failed))
    assert sum(done) == tokens
    assert [f"Out of memory on {n} tokens: going on with {n // 2} a forward." for n in failed] == caplog.messages


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_a_single_sample_that_does_not_fit_ends_the_round_with_what_to_do(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model("Llama", SMALL)
    out_of_memory_above(4, model, monkeypatch)
    with pytest.raises(RuntimeError, match=r"Out of memory on a scoring forward of \d+ tokens.*single sample.*Lower"):
        losses(model, layout)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_where_parameters_are_sharded_nothing_is_tried_again(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("Llama", SMALL)
    _, failed = out_of_memory_above(150, model, monkeypatch)
    with pytest.raises(RuntimeError, match=r"Out of memory.*sharded over ranks, no rank can try again alone. Lower"):
        losses(model, layout, World(0, 1, CPU, sharded=True))
    assert len(failed) == 1


def test_the_models_own_embeddings_survive_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("Llama", SMALL).eval()
    batches = plan_prompts(POOL, 512, 4096)
    scorer = prepare_scorer(model, POOL, MIWVConfig(scoring_max_length=512), WORLD)
    with torch.no_grad():
        whole = embed_prompts(scorer, batches)
        _, failed = out_of_memory_above(150, model, monkeypatch)
        found = embed_prompts(scorer, batches)
    assert failed
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_an_error_that_is_not_about_memory_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("Llama", SMALL)
    calls = []

    def forward(*args: Any, **inputs: Any) -> Any:
        calls.append(1)
        raise RuntimeError("a shape is wrong")

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        losses(model, "padded")
    assert len(calls) == 1


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_the_largest_row_comes_first(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where parameters are sharded, nothing can be tried again: what does not fit fails at once, not after hours."""
    model = random_model("Llama", SMALL)
    done, _ = out_of_memory_above(10**9, model, monkeypatch)
    losses(model, layout, tokens_per_row=100, tokens_per_batch=100)
    assert len(done) > 5
    assert done[0] == max(done)
