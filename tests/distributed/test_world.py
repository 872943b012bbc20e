"""The same scores and the same selection on one process, two and three; no rank waits for ever, none fails unheard."""

import gc
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers.integrations import is_fsdp_enabled

from miwv_trainer.distributed.sharding import is_sharded, load_models_whole
from miwv_trainer.distributed.world import World
from miwv_trainer.storage.stored_round import HASHES
from tests.helpers.encoders import save_encoder
from tests.helpers.exemplars import brute_force_ranked, tfidf_by_hand
from tests.helpers.forks import fork_python
from tests.helpers.launch import NEEDS_ZERO2, ROOT, accelerate_launch, launch
from tests.helpers.losses import losses_by_hand, random_samples
from tests.helpers.shared_search import distinct_pool, found_by, tied_pool
from tests.helpers.tiny import save_tiny, tiny_model

CHECKS = ROOT / "tests" / "launched" / "checks.py"
WRAPPERS = {"ddp": "DistributedDataParallel"} | dict.fromkeys(["zero1", "zero2", "zero3"], "DeepSpeedEngine")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def one_process(model_folder: Path, encoder: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    output = tmp_path_factory.mktemp("one")
    done = fork_python(CHECKS, model_folder, output, encoder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((output / "rank-0.json").read_text())


@pytest.mark.parametrize(
    ("backend", "processes"),
    [
        ("ddp", 2),
        ("ddp", 3),
        pytest.param("zero1", 2, marks=pytest.mark.slow),  # of what it runs, ZeRO-2 runs all
        pytest.param("zero2", 2, marks=NEEDS_ZERO2),
        ("zero3", 2),
        pytest.param("zero3", 3, marks=pytest.mark.slow),  # three processes are tried with DDP, stage 3 with two
    ],
)
def test_several_processes_score_and_select_as_one_does(
    backend: str, processes: int, model_folder: Path, encoder: str, one_process: list[dict], tmp_path: Path
) -> None:
    # A smaller model scores too, where the model in training is whole on each rank and where it is split.
    more = [encoder] if (backend, processes) in (("ddp", 2), ("zero3", 2)) else []
    done = launch(backend, processes, CHECKS, str(model_folder), str(tmp_path), *more)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "is scored by the logits" not in done.stderr  # the head is run by chunks wherever its weight lies
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(processes)]
    for number, alone in enumerate(one_process):
        results = [rank[number] for rank in ranks]
        assert [result["rank"] for result in results] == list(range(processes))
        assert {result["world_size"] for result in results} == {processes}
        assert {result["wrapper"] for result in results} == {WRAPPERS[backend]}
        assert {result["sharded"] for result in results} == {backend == "zero3"}
        for result in results:
            # Round 0 is scored by the same weights everywhere; later ones follow other batches of training.
            for losses in ("zero_shot", "one_shot"):
                np.testing.assert_allclose(result[losses][0], alone[losses][0], atol=1e-5, rtol=0)
            assert result["selections"][0] == alone["selections"][0]
            assert result["selections"] == results[0]["selections"]
            assert result["steps"] == result["max_steps"]
            np.testing.assert_allclose(result["own_losses"], result["engine_losses"], atol=1e-5, rtol=0)
            if backend == "ddp":  # DeepSpeed makes groups of its own
                assert result["gloo_threads"][1] == ranks[0][0]["gloo_threads"][0]
        check_trained_indices(results)
    for rank in ranks if more else ():
        check_scores_of_others(rank[0]["by_others"], one_process[0]["by_others"])
    *others, last = [rank[0]["failure"] for rank in ranks]
    assert set(others) == {f"RuntimeError: Rank {processes - 1} failed while reading tea leaves: OSError: no tea"}
    assert last == "OSError: no tea"


def check_trained_indices(results: list[dict]) -> None:
    """Over all ranks, each epoch trains the round's selection once, plus the repeats that fill the last batch."""
    per_epoch, batch = len(results[0]["seen"]) // 2, 2 * len(results)
    for epoch, selection in enumerate(results[0]["selections"]):
        trained = [i for result in results for i in result["seen"][epoch * per_epoch : (epoch + 1) * per_epoch]]
        assert set(trained) == set(selection)
        assert len(trained) == -(-len(selection) // batch) * batch


def check_scores_of_others(found: dict, alone: dict) -> None:
    """A smaller model scores on several ranks as on one, and trainings that take its scores forward nothing."""
    assert found["is_whole"]
    for name, here in alone.items():
        if name == "is_whole":
            continue
        there = found[name]
        for column in ("exemplar", "similarity", *HASHES, "selection"):
            assert there[column] == here[column], (name, column)
        assert set(there["seen"]) <= set(there["selection"])
        assert (there["scoring_forwards"] > 0) == (here["scoring_forwards"] > 0) == (name in ("proxy", "again"))
        np.testing.assert_allclose(there["losses"], here["losses"], atol=1e-5, rtol=0)
    for name, samples in (("proxy", 8), ("again", 6)):
        proxy, expected = found[name]["proxy"], alone[name]["proxy"]
        assert proxy["samples"] == expected["samples"] == samples
        assert proxy["rank_correlation"] == pytest.approx(expected["rank_correlation"], abs=1e-6)
        assert proxy["overlap"] == expected["overlap"]
    # The round is read from disk. Only the figures of the smaller model are measured again.
    assert found["again"]["losses"] == found["proxy"]["losses"]
    assert found["again"]["proxy"]["seconds"] == found["proxy"]["proxy"]["seconds"]
    for name in ("source", "rows"):
        assert found[name]["proxy"] is None
        for column in ("exemplar", "similarity", *HASHES, "losses"):
            assert found[name][column] == found["proxy"][column]
    assert found["source"]["selection"] == found["proxy"]["selection"]
    assert not set(found["rows"]["selection"]) & set(found["proxy"]["selection"])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def messages(encoder: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    output = tmp_path_factory.mktemp("messages")
    done = launch("ddp", 2, ROOT / "tests" / "launched" / "messages.py", str(output), encoder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    ranks = [json.loads((output / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert [(each["rank"], each["world_size"]) for each in ranks] == [(0, 2), (1, 2)]
    return ranks


def test_messages_go_over_one_gloo_group_of_their_own(messages: list[dict]) -> None:
    for rank in messages:
        assert rank["backend"] == "gloo"
        assert rank["is_own_group"] and rank["is_one_group"]


def test_ranks_wait_for_work_that_takes_longer_than_their_patience_only_as_long_as_they_hear_of_it(
    messages: list[dict],
) -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    for rank in messages:
        assert rank["with_heartbeat"] == str(cosines.argmax(axis=1).tolist())
        assert rank["without_heartbeat"].startswith("ConnectionError: Another rank's process is gone, or silent")


def test_ranks_that_hold_different_pools_are_told_so_before_anything_is_scored(messages: list[dict]) -> None:
    for rank in messages:
        same, shuffled, relabelled = rank["pools"]
        assert same == "the same"
        assert "dataset of rank 1 holds the same samples in another order (40 of 40 stand elsewhere)" in shuffled
        assert "has other labels in 1 of 40 samples" in relabelled and "give `shuffle`" in relabelled


def test_an_error_in_a_forward_reaches_the_other_rank_before_its_next_one(messages: list[dict]) -> None:
    first, last = (rank["error"] for rank in messages)
    assert first["error"] == "RuntimeError: Rank 1 failed while scoring the pool: OSError: no tea"
    assert last["error"] == "OSError: no tea"
    assert first["forwards"] == last["forwards"] == 5


def test_memory_that_halving_cannot_save_ends_all_ranks(messages: list[dict]) -> None:
    first, last = (rank["memory"] for rank in messages)
    reason = r"RuntimeError: Out of memory on a scoring forward of \d+ tokens, and it cannot be halved"
    assert re.match(reason, last["error"])
    assert re.match("RuntimeError: Rank 1 failed while scoring the pool: " + reason, first["error"])


def test_a_rank_that_halves_its_forwards_keeps_the_others_waiting_and_all_losses_come(messages: list[dict]) -> None:
    first, last = (rank["halved"] for rank in messages)
    assert last["forwards"] > first["forwards"]
    samples = random_samples(40)
    by_hand = losses_by_hand(tiny_model(), samples, np.roll(np.arange(40), 1))
    for rank in (first, last):
        np.testing.assert_allclose(rank["losses"], by_hand, rtol=0, atol=1e-5)


def test_ranks_that_hold_different_weights_of_a_smaller_model_are_told_so(messages: list[dict]) -> None:
    for rank in messages:
        same, other = rank["weights"]
        assert same == "nothing"
        assert other.startswith("ValueError: The ranks hold different weights of the `scorer`: those of rank 1 are not")


@pytest.mark.parametrize("name", ["tied", "distinct"])
@pytest.mark.parametrize("kind", ["tfidf", "encoder"])
def test_shared_embedding_and_search_give_what_one_process_finds_to_the_bit(
    name: str, kind: str, encoder: str, messages: list[dict], tmp_path: Path
) -> None:
    pool = tied_pool() if name == "tied" else distinct_pool()
    alone = found_by(World(0, 1, torch.device("cpu")), pool, {"tfidf": "tfidf", "encoder": encoder}[kind], tmp_path)
    first, last = (rank["shared"][f"{name}-{kind}"] for rank in messages)
    assert first == alone
    assert last == {**alone, "vectors": None}
    lengths = zip(pool.prompt_tokens.tolist(), pool.response_tokens.tolist(), strict=True)
    # What the tokens are is another matter: all of these samples differ.
    samples = [([place] * prompt, [place] * response) for place, (prompt, response) in enumerate(lengths)]
    texts = list(pool.texts or [])
    vectors = tfidf_by_hand(texts) if kind == "tfidf" else SentenceTransformer(encoder).encode(texts).tolist()
    assert alone["exemplars"] == brute_force_ranked(vectors, samples, 512, 2, len(pool.preamble))


def test_a_rank_that_fails_while_it_embeds_or_searches_ends_the_others_within_a_turn(messages: list[dict]) -> None:
    first, last = (rank["failures"] for rank in messages)
    assert last["encoding"] == last["searching"] == "OSError: no tea"
    assert first["encoding"] == "RuntimeError: Rank 1 failed while embedding the instructions: OSError: no tea"
    assert first["searching"] == "RuntimeError: Rank 1 failed while finding exemplars: OSError: no tea"
    assert first["encoded"] == last["encoded"] == 1  # of three batches each
    could_not = "OSError: The embedder 'nobody/nothing' could not be loaded"
    assert last["loading"].startswith(could_not)
    assert first["loading"].startswith("RuntimeError: Rank 1 failed while loading the embedder: " + could_not)
    for rank in (first, last):
        assert rank["texts"].startswith(
            "ValueError: The ranks hold different instructions: the texts of rank 1 are not"
        )


# How a rank fails, and what is then on the screen.
FAILURES = {
    "raise": ["OSError: no tea"],
    "memory": ["RuntimeError: Out of memory on a scoring forward of", "can't allocate memory: no tea"],
    "kill": ["Signal 9 (SIGKILL)"],
}
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        *(("ddp", "raise"), ("ddp", "kill"), ("zero3", "raise")),
        *(pytest.param(backend, "memory", marks=SLOW) for backend in ("ddp", "zero3")),
        pytest.param("zero3", "kill", marks=SLOW),
    ],
)
def test_one_rank_that_fails_in_the_middle_of_a_round_ends_all_within_a_minute(
    backend: str, kind: str, model_folder: Path, tmp_path: Path
) -> None:
    script = ROOT / "tests" / "launched" / "failures.py"
    done = accelerate_launch(backend, 2, script, kind, model_folder, tmp_path)  # which ends the others
    seconds = time.time() - float((tmp_path / "failed").read_text())  # all that wrote to the pipes are gone
    print(f"{backend}, {kind}: {seconds:.1f} s from the failure to the end")
    assert done.returncode != 0
    assert seconds < 60
    screen = done.stdout + done.stderr
    for message in FAILURES[kind]:
        assert message in screen, screen[-4000:]
    if backend == "zero3" and kind != "kill":
        assert "Rank 1 failed while scoring the pool and ends the run." in screen
    elif kind != "kill":
        assert "RuntimeError: Rank 1 failed while scoring the pool: " + FAILURES[kind][0] in screen


def test_inside_sharded_forwards_the_failing_rank_prints_and_exits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others wait in a collective and could not be told; the launcher ends them when this process is gone."""

    class Exited(BaseException):
        pass

    def note_exit(status: int) -> None:
        raise Exited(status)

    monkeypatch.setattr("os._exit", note_exit)
    with pytest.raises(Exited, match="1"), World(1, 2, torch.device("cpu"), sharded=True).run_turn("scoring"):
        raise RuntimeError("out of memory")
    printed = capsys.readouterr().err
    assert "RuntimeError: out of memory" in printed
    assert "Rank 1 failed while scoring and ends the run." in printed


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 12, 100])
def test_each_piece_is_dealt_once_and_no_rank_carries_much_more_than_another(size: int, count: int) -> None:
    pieces = np.sort(np.random.default_rng(count).pareto(1.2, count))[::-1].tolist()
    shares = [World(rank, size, torch.device("cpu")).split_between_ranks(pieces) for rank in range(size)]
    assert sorted(sum(shares, []), reverse=True) == pieces
    assert all(share == sorted(share, reverse=True) for share in shares)
    numbers, sums = [len(share) for share in shares], [sum(share) for share in shares]
    assert max(numbers) - min(numbers) <= 1
    assert max(sums) - min(sums) <= max(pieces, default=0)


def test_the_dealing_order_turns_back_at_each_end() -> None:
    """By hand: 25, 20 and 19 of 64, where dealing round by round would give 27, 20 and 17."""
    pieces = [12, 11, 10, 9, 8, 7, 6, 1]
    shares = [World(rank, 3, torch.device("cpu")).split_between_ranks(pieces) for rank in range(3)]
    assert shares == [[12, 7, 6], [11, 8, 1], [10, 9]]


@pytest.mark.parametrize("block", [World.run_together, World.run_turn])
def test_an_error_on_one_process_alone_is_raised_as_it_is(block: Callable[[World, str], Any]) -> None:
    with pytest.raises(KeyError, match="lost"), block(World(0, 1, torch.device("cpu"), sharded=True), "testing"):
        raise KeyError("lost")


@pytest.fixture
def process_group() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_model_is_sharded_where_its_parameters_are_split_over_ranks(process_group: None) -> None:
    device = torch.device("cpu")
    layers = FullyShardedDataParallel(tiny_model().model.layers[0], device_id=device)
    models = {
        "plain": tiny_model(),
        "ddp": DistributedDataParallel(tiny_model()),
        "fsdp2": fully_shard(tiny_model(), mesh=init_device_mesh("cpu", (1,))),
        "fsdp1": FullyShardedDataParallel(tiny_model(), device_id=device),
        "fsdp1 inside": torch.nn.Sequential(torch.nn.Linear(2, 2), layers),
    }
    sharded = {name: World.current(device, model).sharded for name, model in models.items()}
    assert sharded == {"plain": False, "ddp": False, "fsdp2": True, "fsdp1": True, "fsdp1 inside": True}
    assert {name: is_sharded(model) for name, model in models.items()} == sharded
    assert not World.current(device).sharded


def test_a_new_process_group_gets_new_messages() -> None:
    for _ in range(2):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        world = World.current(torch.device("cpu"))
        assert world.group is World.current(torch.device("cpu")).group
        dist.barrier(group=world.group)  # refused by a group that was destroyed
        dist.destroy_process_group()
    assert World.current(torch.device("cpu")) == World(0, 1, torch.device("cpu"))


def count_gloo_threads() -> int:
    return sum("gloo" in each.read_text() for each in Path("/proc/self/task").glob("*/comm"))


def test_messages_that_are_closed_leave_no_thread_though_worlds_still_refer_to_them() -> None:
    gc.collect()
    before = count_gloo_threads()  # of groups that other tests hold
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    worlds = [World.current(torch.device("cpu")) for _ in range(2)]
    dist.barrier(group=worlds[0].group)
    worlds[0].close()
    worlds[0].close()
    with pytest.raises(RuntimeError, match=r"messages between ranks were closed\. `World.current` opens them again"):
        _ = worlds[1].group
    opened = World.current(torch.device("cpu"))
    dist.barrier(group=opened.group)
    dist.destroy_process_group()
    assert count_gloo_threads() > before  # those of the messages that were opened again, which are still referred to
    opened.close()
    assert count_gloo_threads() <= before


def test_a_world_of_one_exchanges_nothing() -> None:
    world = World(0, 1, torch.device("cpu"))
    assert world.broadcast_from_main("value") == "value"
    assert world.all_gather("value") == ["value"]
    assert world.all_reduce_sum(np.array([1.5, 2])).tolist() == [1.5, 2]
    for has_more in (True, False):
        with world.run_turn("testing") as turn:
            turn.has_more = has_more
        assert turn.has_more == has_more


def test_a_model_is_loaded_whole_where_fsdp_would_give_weights_to_one_rank(
    process_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("true", "1", "false"):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", value)
        before = is_fsdp_enabled()
        assert before == (value != "false")
        with pytest.raises(KeyError), load_models_whole():
            assert not is_fsdp_enabled()
            raise KeyError
        assert is_fsdp_enabled() == before
