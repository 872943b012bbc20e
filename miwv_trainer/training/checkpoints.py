"""Which checkpoint of a Trainer is complete: a process may have died while it was writing the last one."""

import json
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

# Names that transformers 5.23, PEFT 0.21, accelerate 1.15 and DeepSpeed 0.19 give their files.
UNFINISHED = "checkpoint-is-incomplete.txt"
STATE = "trainer_state.json"
WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
OPTIMIZERS = ("optimizer.pt", "optimizer.bin")
FSDP_WEIGHTS = "pytorch_model_fsdp"
ZERO_SHARD = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_\d+_optim_states\.pt")


def last_complete_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """
    The checkpoint of the highest step in a Trainer's `output_dir` from which training can go on, or None.

    `resume_from_checkpoint=True` takes the highest one even if the process died while writing it. A complete one has a
    trainer_state.json of its step, and weights, optimizer, scheduler and random states that exist and are not cut
    short: as one file, in shards with an index, as a PEFT adapter, or in the folders of DeepSpeed and FSDP. Only the
    ends of files are checked, not their contents, and nothing is unpickled.

    Args:
        folder: The Trainer's `output_dir`.

    Returns:
        A path for `trainer.train(resume_from_checkpoint=...)`. Without a complete checkpoint it is None, with which
        training starts afresh.
    """
    found = [(int(match[1]), path) for path in Path(folder).glob("checkpoint-*") if (match := _numbered(path))]
    for step, path in sorted(found, reverse=True):
        if _is_whole(path, step):
            return str(path)
    return None


def _numbered(path: Path) -> re.Match[str] | None:
    return re.fullmatch(r"checkpoint-(\d+)", path.name) if path.is_dir() else None


def _is_whole(folder: Path, step: int) -> bool:
    if (folder / UNFINISHED).exists():
        return False
    state = _read_json(folder / STATE)
    if state is None or state.get("global_step") != step:
        return False
    world_size = _read_world_size(state)
    if not _has_random_states(folder, world_size):
        return False
    if (folder / "latest").exists() or any(folder.glob("global_step*")):
        return _is_whole_deepspeed(folder, world_size)
    return _has_weights(folder) and _has_optimizer(folder) and _is_whole_file(folder / "scheduler.pt")


def _read_json(path: Path) -> dict[str, object] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _read_world_size(state: dict[str, object]) -> int | None:
    """The number of ranks that wrote the checkpoint, which is in the state of `MIWVCallback`; None without it."""
    match state:
        case {"stateful_callbacks": {"MIWVCallback": {"attributes": {"run_state": {"world_size": int(size)}}}}}:
            return size
    return None


def _has_random_states(folder: Path, world_size: int | None) -> bool:
    if (folder / "rng_state.pth").exists():
        return _is_whole_file(folder / "rng_state.pth")
    # A rank that died before it wrote its file leaves nothing to count.
    ranks = world_size or len(list(folder.glob("rng_state_*.pth")))
    return ranks > 0 and _are_whole(folder / f"rng_state_{rank}.pth" for rank in range(ranks))


def _has_weights(folder: Path) -> bool:
    for index in INDICES:
        if (folder / index).exists():
            listed = (_read_json(folder / index) or {}).get("weight_map")
            return isinstance(listed, dict) and bool(listed) and _are_whole(folder / name for name in listed.values())
    if (folder / f"{FSDP_WEIGHTS}.bin").exists():
        return _is_whole_file(folder / f"{FSDP_WEIGHTS}.bin")
    # torch.distributed.checkpoint writes `.metadata` after all shards.
    if shards := [path for path in folder.glob(f"{FSDP_WEIGHTS}*") if path.is_dir()]:
        return all((shard / ".metadata").is_file() for shard in shards)
    # PEFT saves each of several adapters in a folder of its own.
    found = [path for name in WEIGHTS for path in (folder / name, *folder.glob(f"*/{name}")) if path.exists()]
    return bool(found) and _are_whole(found)


def _has_optimizer(folder: Path) -> bool:
    found = [folder / name for name in OPTIMIZERS if (folder / name).exists()]
    if found:
        return _are_whole(found)
    shards = [path for path in folder.glob("optimizer*") if path.is_dir()]
    return bool(shards) and all((shard / ".metadata").is_file() for shard in shards)


def _is_whole_deepspeed(folder: Path, world_size: int | None) -> bool:
    """
    Whether the folder that the file `latest` names holds the model's states and, under ZeRO, each rank's optimizer.
    """
    try:
        inside = folder / (folder / "latest").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return False
    files = list(inside.glob("*.pt"))
    if not any(path.name.endswith("_model_states.pt") for path in files) or not _are_whole(files):
        return False
    if (folder / "scheduler.pt").exists() and not _is_whole_file(folder / "scheduler.pt"):
        return False
    ranks = {int(match[1]) for path in files if (match := ZERO_SHARD.fullmatch(path.name))}
    return not ranks or ranks == set(range(world_size or max(ranks) + 1))


def _are_whole(paths: Iterable[Path]) -> bool:
    return all(_is_whole_file(path) for path in paths)


def _is_whole_file(path: Path) -> bool:
    """
    Whether a file is not cut short. The header of a safetensors file holds its length; a file of torch is a zip
    archive, whose table of contents comes last.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy"):
                return True
        with zipfile.ZipFile(path) as archive:
            return bool(archive.namelist())
    except (OSError, SafetensorError, zipfile.BadZipFile):
        return False
