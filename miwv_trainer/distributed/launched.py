"""The processes of a run without a Trainer, as `accelerate launch` or `torchrun` has started them."""

import torch
from accelerate import PartialState

from miwv_trainer.distributed.world import World


def join_launched() -> World:
    """Makes the process group of the processes that a launcher started. Without one, returns a world of one."""
    state = PartialState(cpu=not torch.cuda.is_available())
    return World.current(state.device)


def leave_launched() -> None:
    """
    Ends the process group, which only ranks that have finished their work do.

    gloo's threads may otherwise abort the process at the interpreter's exit ("terminate called without an active
    exception").
    """
    PartialState().destroy_process_group()
