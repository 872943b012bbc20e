"""Which checkpoints are whole, on folders that real Trainers wrote and that were then damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from miwv_trainer import MIWVConfig, attach, last_complete_checkpoint
from tests.helpers.tiny import tiny_model
from tests.helpers.trainers import lora, noting_trainer


def written(folder: Path, model: Any = None, **overrides: Any) -> Path:
    trainer = noting_trainer(folder, model=model, save_strategy="steps", save_steps=1, max_steps=2, **overrides)
    attach(trainer, MIWVConfig(fraction=0.5, embedder="tfidf"))
    trainer.train()
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("adapter"), lora(tiny_model()))


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "run"))


def cut(name: str, kept: float = 0.6) -> Callable[[Path], object]:
    """What a process that was killed while writing leaves of a file."""

    def do(checkpoint: Path) -> None:
        path = checkpoint / name
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * kept)])

    return do


def gone(name: str) -> Callable[[Path], object]:
    return lambda checkpoint: (checkpoint / name).unlink()


def sharded(checkpoint: Path) -> None:
    """The same weights in two files with an index, as larger models are saved."""
    weights = load_file(checkpoint / "model.safetensors")
    names = sorted(weights)
    places = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: weights[name] for name in names if places[name] == file}, checkpoint / file)
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (checkpoint / "model.safetensors").unlink()


def several_ranks(checkpoint: Path, ranks: int = 2) -> None:
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    for rank in range(1, ranks):
        shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / f"rng_state_{rank}.pth")
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text())
    state["stateful_callbacks"]["MIWVCallback"]["attributes"]["run_state"]["world_size"] = ranks
    path.write_text(json.dumps(state))


def deepspeed(checkpoint: Path, ranks: int = 2) -> None:
    """Named as DeepSpeed 0.19 names its files; a launched test resumes from its own."""
    several_ranks(checkpoint, ranks)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
        (checkpoint / name).unlink()
    inside = checkpoint / "global_step2"
    inside.mkdir()
    torch.save({"module": torch.zeros(9)}, inside / "mp_rank_00_model_states.pt")
    for rank in range(ranks):
        torch.save(torch.zeros(9), inside / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    (checkpoint / "latest").write_text("global_step2")


def fsdp(checkpoint: Path) -> None:
    for name, folder in (("model.safetensors", "pytorch_model_fsdp_0"), ("optimizer.pt", "optimizer_0")):
        (checkpoint / name).unlink()
        (checkpoint / folder).mkdir()
        (checkpoint / folder / ".metadata").write_bytes(b"-")


def both(*steps: Callable[[Path], object]) -> Callable[[Path], object]:
    def do(checkpoint: Path) -> None:
        for step in steps:
            step(checkpoint)

    return do


def nothing(checkpoint: Path) -> None:
    pass


OPTIMIZER_OF_RANK_1 = "global_step2/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"


@pytest.mark.parametrize("shape", [nothing, sharded, several_ranks, deepspeed, fsdp])
def test_the_highest_whole_one_is_found(plain: Path, tmp_path: Path, shape: Callable[[Path], object]) -> None:
    folder = copy_of(plain, tmp_path)
    shape(folder / "checkpoint-2")
    (folder / "checkpoint-999999").mkdir()
    (folder / "checkpoint-last").mkdir()
    (folder / "checkpoint-9").write_text("no folder")
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-2")


@pytest.mark.parametrize(
    "damage",
    [
        cut("trainer_state.json"),
        cut("trainer_state.json", kept=0),
        gone("trainer_state.json"),
        lambda checkpoint: (checkpoint / "trainer_state.json").write_text("[]"),
        lambda checkpoint: (checkpoint / "trainer_state.json").write_text('{"global_step": 1}'),
        lambda checkpoint: (checkpoint / "checkpoint-is-incomplete.txt").write_text("in progress"),
        *(cut(name) for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")),
        *(cut(name, kept=0) for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")),
        *(gone(name) for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")),
        both(sharded, gone("model-00002-of-00002.safetensors")),
        both(sharded, cut("model-00001-of-00002.safetensors")),
        both(sharded, cut("model.safetensors.index.json")),
        both(several_ranks, gone("rng_state_1.pth")),
        both(several_ranks, gone("rng_state_0.pth")),
        both(several_ranks, cut("rng_state_1.pth")),
        both(deepspeed, gone("latest")),
        both(deepspeed, lambda checkpoint: (checkpoint / "latest").write_text("global_step7")),
        both(deepspeed, gone("global_step2/mp_rank_00_model_states.pt")),
        both(deepspeed, cut("global_step2/mp_rank_00_model_states.pt")),
        both(deepspeed, gone(OPTIMIZER_OF_RANK_1)),
        both(deepspeed, cut(OPTIMIZER_OF_RANK_1)),
        both(fsdp, gone("pytorch_model_fsdp_0/.metadata")),
        both(fsdp, gone("optimizer_0/.metadata")),
    ],
)
def test_a_damaged_one_is_passed_over(plain: Path, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = copy_of(plain, tmp_path)
    damage(folder / "checkpoint-2")
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-1")
    shutil.rmtree(folder / "checkpoint-1")
    assert last_complete_checkpoint(str(folder)) is None


@pytest.mark.parametrize("damage", [cut("adapter_model.safetensors"), gone("adapter_model.safetensors")])
def test_an_adapter_is_weights(adapter: Path, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = copy_of(adapter, tmp_path)
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-2")
    damage(folder / "checkpoint-2")
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-1")


def test_weights_alone_are_no_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    assert last_complete_checkpoint(written(tmp_path, save_only_model=True)) is None


def test_no_folder_no_checkpoint(tmp_path: Path) -> None:
    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "nowhere") is None
