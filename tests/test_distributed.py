"""The same scores and the same selection on one process and on two, under DDP, ZeRO-2 and ZeRO-3."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from miwv_trainer.distributed import World
from tests.launched import ROOT, launch, run
from tests.tiny import save_tiny

CHECKS = ROOT / "tests" / "launched_checks.py"
WRAPPERS = {"ddp": "DistributedDataParallel", "zero2": "DeepSpeedEngine", "zero3": "DeepSpeedEngine"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def one_process(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    import sys

    output = tmp_path_factory.mktemp("one")
    done = run([sys.executable, str(CHECKS), str(model_folder), str(output)])
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((output / "rank-0.json").read_text())


@pytest.mark.parametrize("backend", ["ddp", "zero2", "zero3"])
def test_two_processes_score_and_select_as_one_does(
    backend: str, model_folder: Path, one_process: list[dict], tmp_path: Path
) -> None:
    done = launch(backend, 2, CHECKS, str(model_folder), str(tmp_path))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "is scored by the logits" not in done.stderr  # the head is run by chunks wherever its weight lies
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    for number, alone in enumerate(one_process):
        results = [rank[number] for rank in ranks]
        assert [result["rank"] for result in results] == [0, 1]
        assert {result["world_size"] for result in results} == {2}
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
        check_trained_indices(results)
    assert ranks[0][0]["failure"] == "RuntimeError: Rank 1 failed while reading tea leaves: OSError: no tea"
    assert ranks[1][0]["failure"] == "OSError: no tea"


def check_trained_indices(results: list[dict]) -> None:
    """Over all ranks, each epoch trains the round's selection once, plus the repeats that fill the last batch."""
    per_epoch = len(results[0]["seen"]) // 2
    for epoch, selection in enumerate(results[0]["selections"]):
        trained = [i for result in results for i in result["seen"][epoch * per_epoch : (epoch + 1) * per_epoch]]
        assert set(trained) == set(selection)
        assert len(trained) == -(-len(selection) // 4) * 4


def test_inside_sharded_forwards_the_failing_rank_prints_and_exits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others wait in a collective and could not be told; the launcher ends them when this process is gone."""

    class Exited(BaseException):
        pass

    def note_exit(status: int) -> None:
        raise Exited(status)

    monkeypatch.setattr("os._exit", note_exit)
    with pytest.raises(Exited, match="1"), World(1, 2, torch.device("cpu"), sharded=True).forwards("scoring"):
        raise RuntimeError("out of memory")
    printed = capsys.readouterr().err
    assert "RuntimeError: out of memory" in printed
    assert "Rank 1 failed while scoring and ends the run." in printed


def test_every_rank_gets_equally_many_pieces_and_each_piece_goes_once() -> None:
    for size in (1, 2, 3, 4, 7):
        for count in (0, 1, 2, 5, 12):
            shares = [World(rank, size, torch.device("cpu")).deal(list(range(count))) for rank in range(size)]
            assert len({len(share) for share in shares}) == 1
            dealt = [piece for share in shares for piece in share if piece is not None]
            assert sorted(dealt) == list(range(count))
            assert len(shares[0]) == -(-count // size)


def test_an_error_on_one_process_alone_is_raised_as_it_is() -> None:
    with pytest.raises(KeyError, match="lost"), World(0, 1, torch.device("cpu")).together("testing"):
        raise KeyError("lost")
