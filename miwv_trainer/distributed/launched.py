"""The processes of a run without a Trainer, as `accelerate launch` or `torchrun` has started them."""

import torch
from accelerate import PartialState

from miwv_trainer.distributed.world import World


def join_launched() -> World:
    """Makes the process group of the processes that a launcher started. Without one, returns a world of one."""
    state = PartialState(cpu=not torch.cuda.is_available())
    return World.current(state.device)


def leave_launched(world: World) -> None:
    """
    Ends the process groups and waits for their threads, which may abort a process that exits before them.

    A rank calls it when all ranks have finished their work, or when it has failed, so that the others hear of it.
    """
    world.close()
    PartialState().destroy_process_group()
