"""At which position of which epoch a new selection may take effect.

Positions count the samples of an epoch's order over all ranks. A dataloader draws ahead of training, so a round that is
scored after a step cannot change the samples of the next few steps. Their number is computed and not observed: all
ranks must agree on it, and so must a resumed run.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class EpochPosition:
    """A position of an epoch's order, and the number of steps that are made before training reaches it."""

    epoch: int
    position: int
    global_step: int


@dataclass(frozen=True)
class StepSchedule:
    """
    How training goes through the order of an epoch.

    Args:
        steps_per_epoch: Optimizer steps in an epoch.
        effective_batch: Samples in an optimizer step, over all ranks.
        look_ahead: Optimizer steps whose samples may have been drawn already when a step ends.
    """

    steps_per_epoch: int
    effective_batch: int
    look_ahead: int

    def find_undrawn(self, global_step: int) -> EpochPosition:
        """The first position, at the beginning of a step, that cannot have been drawn after `global_step` steps."""
        epoch, made = divmod(global_step, self.steps_per_epoch)
        if made == 0:
            return EpochPosition(epoch, 0, global_step)
        undrawn = made + self.look_ahead
        if undrawn >= self.steps_per_epoch:
            return EpochPosition(epoch + 1, 0, (epoch + 1) * self.steps_per_epoch)
        return EpochPosition(epoch, undrawn * self.effective_batch, global_step + self.look_ahead)


def count_steps_ahead(workers: int, prefetch_factor: int | None, accumulation: int) -> int:
    """
    Optimizer steps that a dataloader may have drawn beyond the one that just ended.

    Args:
        workers: Processes of the dataloader.
        prefetch_factor: Batches that each of them loads in advance; None without workers.
        accumulation: Batches of a rank in one optimizer step.
    """
    # accelerate holds one batch more than it has yielded. A rank draws the indices of all ranks up to its own batch,
    # so that the number of ranks does not matter. With 2 workers and torch's default prefetch factor of 2, a loader of
    # 4 batches was seen to have drawn all of them after the first step.
    return math.ceil((1 + workers * (prefetch_factor or 0)) / accumulation)
