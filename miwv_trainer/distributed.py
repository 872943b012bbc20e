"""The only file that knows ranks and DeepSpeed: dealing work, agreeing, reducing.

Under ZeRO-3 every forward is a collective, so all ranks must run the same number of them. `deal` therefore pads the
shorter shares with None, for which the caller runs a dummy.
"""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers.integrations import deepspeed, is_deepspeed_zero3_enabled

T = TypeVar("T")


@contextmanager
def whole_models() -> Iterator[None]:
    """
    Inside, `from_pretrained` loads a model whole. Under ZeRO-3 it would split every model over the ranks, and hang
    where only one of them loads it.
    """
    reference = deepspeed._hf_deepspeed_config_weak_ref
    running = reference() if reference is not None else None
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if running is not None:
            deepspeed.set_hf_deepspeed_config(running)


def is_sharded(model: nn.Module) -> bool:
    """
    Whether a forward of the model waits for all ranks, because parameters are split over them: by ZeRO-3, by FSDP2
    (`fully_shard`, whose parameters are DTensors) or by FSDP1.
    """
    if is_deepspeed_zero3_enabled() or any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return True
    return len(FullyShardedDataParallel.fsdp_modules(model)) > 0


@dataclass(frozen=True)
class World:
    """
    Who takes part: this process's rank, the number of ranks, and the device their messages travel on.

    `sharded` says that parameters are split over ranks, so that each forward waits for all of them.
    """

    rank: int
    size: int
    device: torch.device
    sharded: bool = False

    @classmethod
    def current(cls, device: torch.device, model: nn.Module | None = None) -> "World":
        """The running process group, or a world of one."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls(0, 1, device)
        return cls(dist.get_rank(), dist.get_world_size(), device, model is not None and is_sharded(model))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def deal(self, work: Sequence[T]) -> list[T | None]:
        """This rank's share, round robin. All shares are equally long; None fills up the shorter ones."""
        share: list[T | None] = list(work[self.rank :: self.size])
        longest = -(-len(work) // self.size)
        return share + [None] * (longest - len(share))

    def share(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def sum_slots(self, array: np.ndarray) -> np.ndarray:
        """Sum over ranks. Exact where each slot is non-zero on one rank only."""
        if self.size == 1:
            return array
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
        dist.all_reduce(tensor)
        return tensor.cpu().numpy()

    @contextmanager
    def together(self, doing: str) -> Iterator[None]:
        """
        Runs the block on every rank and lets all of them fail if one does. The block must not wait for other ranks.

        Raises:
            RuntimeError: on the ranks that did not fail, naming one that did. That one raises its own error.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        if self.size > 1:
            messages: list[str | None] = [None] * self.size
            dist.all_gather_object(messages, None if error is None else f"{type(error).__name__}: {error}")
            if error is None:
                for rank, message in enumerate(messages):
                    if message is not None:
                        raise RuntimeError(f"Rank {rank} failed while {doing}: {message}")
        if error is not None:
            raise error

    @contextmanager
    def forwards(self, doing: str) -> Iterator[None]:
        """
        Like `together`, for a block of forwards.

        Where parameters are sharded, the other ranks wait inside a forward and cannot hear of an error; so the failing
        rank prints and exits, and the launcher ends the rest.
        """
        if not (self.sharded and self.size > 1):
            with self.together(doing):
                yield
            return
        try:
            yield
        except Exception:
            traceback.print_exc()
            print(f"Rank {self.rank} failed while {doing} and ends the run.", file=sys.stderr, flush=True)
            os._exit(1)
