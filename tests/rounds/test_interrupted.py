"""A round that was killed goes on where it stopped, and ends as if nothing had happened."""

import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.rounds import round as round_module
from miwv_trainer.rounds.exemplars import find_exemplars
from miwv_trainer.rounds.identity import TrainingPoint
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring import memory
from miwv_trainer.scoring import refine as refine_module
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.storage import journal as journal_module
from miwv_trainer.storage.journal import Journal
from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import StoredRound
from tests.helpers.interrupted import Killed, counted
from tests.helpers.tiny import tiny_config, tiny_dataset, tiny_model, tiny_tokenizer

WORLD = World(0, 1, torch.device("cpu"))
CONFIG = MIWVConfig(fraction=0.2, embedder="tfidf", tokens_per_batch=64, tokens_per_row=64)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return pool_from_rows(tiny_dataset(210), tiny_tokenizer())


def a_round(
    model: Any, pool: Pool, folder: Path, config: MIWVConfig = CONFIG, moment: TrainingPoint | None = None
) -> StoredRound:
    store = Store(folder)
    exemplars = find_exemplars(prepare_scorer(model, pool, config, WORLD), store, reuse=True)
    return run_round(prepare_scorer(model, pool, config, WORLD), exemplars, store, moment or TrainingPoint())


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_round_killed_halfway_repeats_hardly_a_forward_and_ends_the_same(
    layout: str, dtype: torch.dtype, pool: Pool, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, layout=layout)
    model = tiny_model().to(dtype)
    whole = counted(model)
    undisturbed = a_round(model, pool, tmp_path / "undisturbed", config)
    assert len(whole) > 200
    for share in (0.25, 0.5, 0.9):
        folder = tmp_path / str(share)
        model = tiny_model().to(dtype)
        before = counted(model, most=int(share * len(whole)))
        with pytest.raises(Killed):
            a_round(model, pool, folder, config)
        model = tiny_model().to(dtype)
        after = counted(model)
        resumed = a_round(model, pool, folder, config)
        assert len(before) + len(after) - len(whole) <= 0.02 * len(whole)
        assert resumed.scores.equals(undisturbed.scores)
        assert not list((folder / "miwv").glob(".round*"))
        for name in ("layout", "refined_samples", "tokens_forwarded", "refined_tokens", "fingerprint"):
            assert resumed.summary[name] == undisturbed.summary[name]


def test_killed_again_and_again_it_still_comes_to_an_end(pool: Pool, tmp_path: Path) -> None:
    undisturbed = a_round(tiny_model(), pool, tmp_path / "undisturbed")
    attempts = 0
    while True:
        model = tiny_model()
        counted(model, most=60)
        attempts += 1
        try:
            resumed = a_round(model, pool, tmp_path / "killed")
            break
        except Killed:
            assert attempts < 20
    assert attempts > 3
    assert resumed.scores.equals(undisturbed.scores)


def killed_at(most: int, model: Any, pool: Pool, folder: Path, **values: Any) -> None:
    counted(model, most)
    with pytest.raises(Killed):
        a_round(model, pool, folder, **values)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_a_resumed_round_composes_the_batches_it_had_although_less_memory_is_free(
    layout: str, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MIWVConfig(fraction=0.2, embedder="tfidf", layout=layout, tokens_per_row=64)  # the batch: by free memory
    model = tiny_model()
    whole = counted(model)
    undisturbed = a_round(model, pool, tmp_path / "undisturbed", config)
    largest = max(whole)
    at = whole.index(largest) + 2  # largest first: this forward and the one behind it are done
    killed_at(at, tiny_model(), pool, tmp_path / "killed", config=config)
    (header,) = Journal.read_headers(Store(tmp_path / "killed").journal_folder(0))
    assert header["context"] == 512 and header["layout"] == layout and header["memory"]["longest_batch"] == 4096

    monkeypatch.setattr(memory, "find_least_free_memory", lambda device, world: 2**17)
    scarce = tiny_model()
    small = counted(scarce)
    a_round(scarce, pool, tmp_path / "scarce", config)
    assert max(small) < largest / 2  # a round that begins with so little memory has other batches
    model = tiny_model()
    after = counted(model)
    resumed = a_round(model, pool, tmp_path / "killed", config)
    assert [tokens for tokens in after if tokens in whole[at:]][-len(whole[at:]) :] == whole[at:]
    assert resumed.scores.equals(undisturbed.scores)
    assert resumed.summary["tokens_forwarded"] == undisturbed.summary["tokens_forwarded"]


@pytest.mark.parametrize(
    "other",
    [
        {"model": tiny_model(seed=1)},
        {"model": tiny_model(tiny_config(rms_norm_eps=1e-3))},
        {"moment": TrainingPoint(0, 7, 0)},
        {"config": dataclasses.replace(CONFIG, fraction=0.3)},
        {"config": dataclasses.replace(CONFIG, layout="padded")},
    ],
    ids=["weights", "model configuration", "step", "fraction", "layout"],
)
def test_the_journal_of_another_round_is_not_gone_on_with(other: dict[str, Any], pool: Pool, tmp_path: Path) -> None:
    undisturbed = a_round(**{"model": tiny_model(), "pool": pool, "folder": tmp_path / "undisturbed", **other})
    killed_at(150, tiny_model(), pool, tmp_path / "killed")
    values = {"model": tiny_model(), **other}
    seen = counted(values["model"])
    resumed = a_round(pool=pool, folder=tmp_path / "killed", **values)
    assert len(seen) > 200
    assert resumed.scores.equals(undisturbed.scores)


def test_a_journal_whose_last_line_was_cut_loses_that_line_only(pool: Pool, tmp_path: Path) -> None:
    undisturbed = a_round(tiny_model(), pool, tmp_path / "undisturbed")
    killed_at(150, tiny_model(), pool, tmp_path / "killed")
    (path,) = (tmp_path / "killed" / "miwv" / ".round-000.journal").iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    assert a_round(tiny_model(), pool, tmp_path / "killed").scores.equals(undisturbed.scores)


def test_what_goes_on_says_so(pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    killed_at(150, tiny_model(), pool, tmp_path)
    with caplog.at_level(logging.INFO, logger="miwv_trainer"):
        finished = a_round(tiny_model(), pool, tmp_path)
    assert any("Round 0 goes on where it was interrupted" in message for message in caplog.messages)
    assert finished.summary["tokens_per_second"] > 0


def test_a_round_that_was_finished_is_read_rather_than_scored(pool: Pool, tmp_path: Path) -> None:
    first = a_round(tiny_model(), pool, tmp_path)
    model = tiny_model()
    seen = counted(model)
    again = a_round(model, pool, tmp_path)
    assert len(seen) <= 5 and again.scores.equals(first.scores) and again.summary == first.summary
    assert not list((tmp_path / "miwv").glob("previous-*"))


@pytest.mark.parametrize(
    "other",
    [
        {"model": tiny_model(seed=1)},
        {"model": tiny_model().to(torch.bfloat16)},
        {"config": dataclasses.replace(CONFIG, fraction=0.3)},
        {"config": dataclasses.replace(CONFIG, refine_near_threshold=False)},
        {"moment": TrainingPoint(0, 7, 0)},
    ],
    ids=["weights", "dtype", "fraction", "refinement", "step"],
)
def test_another_round_that_was_finished_is_moved_aside(other: dict[str, Any], pool: Pool, tmp_path: Path) -> None:
    first = a_round(tiny_model(), pool, tmp_path)
    second = a_round(**{"model": tiny_model(), "pool": pool, "folder": tmp_path, **other})
    assert second.summary != first.summary
    assert (tmp_path / "miwv" / "previous-0" / "round-000" / "round.json").is_file()


def test_losses_that_are_not_finite_are_not_scored_again_either(tmp_path: Path) -> None:
    rows = tiny_dataset(60)
    pool = pool_from_rows(rows, tiny_tokenizer())
    holders = np.asarray([len({i for i in range(60) if token in pool.sample(i)}) for token in range(512)])
    holders[holders == 0] = holders[pool.preamble] = 60
    token = int(np.argmin(holders))

    def model() -> Any:
        made = tiny_model()
        with torch.no_grad():
            made.get_input_embeddings().weight[token] = float("nan")
        return made

    whole = model()
    seen = counted(whole)
    undisturbed = a_round(whole, pool, tmp_path / "undisturbed")
    assert 0 < undisturbed.summary["unscorable"] < 60
    killed_at(len(seen) - 3, model(), pool, tmp_path / "killed")
    again = model()
    after = counted(again)
    assert a_round(again, pool, tmp_path / "killed").scores.equals(undisturbed.scores)
    assert len(after) < 12


def test_seconds_of_both_attempts_are_counted(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that forwards alone move: by 1 s before the kill, by 2 s after it."""
    undisturbed = tiny_model()
    whole = counted(undisturbed)
    a_round(undisturbed, pool, tmp_path / "undisturbed")
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0], monotonic=lambda: now[0])
    for module in (round_module, refine_module, journal_module):
        monkeypatch.setattr(module, "time", clock)

    def taking(seconds: float) -> Any:
        model = tiny_model()
        model.register_forward_hook(lambda *_: now.__setitem__(0, now[0] + seconds))
        return model

    killed_at(150, taking(1.0), pool, tmp_path / "killed")
    model = taking(2.0)
    after = counted(model)
    summary = a_round(model, pool, tmp_path / "killed").summary
    # What the first attempt had written down was not forwarded again. A dozen forwards of an attempt are not counted:
    # they choose the layout, before the round begins.
    kept = len(whole) - len(after)
    assert kept > 100 and len(after) > 100
    assert kept + 2 * len(after) - 2 * 12 <= summary["seconds"] <= kept + 1 + 2 * len(after)
    assert summary["tokens_per_second"] == round(summary["tokens_forwarded"] / summary["seconds"], 1)
