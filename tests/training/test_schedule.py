"""Where a round takes effect, against what real loaders have drawn by then."""

import pytest
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard
from torch.utils.data import BatchSampler

from miwv_trainer.training.sampler import MIWVDataSampler
from miwv_trainer.training.schedule import EpochPosition, StepSchedule, count_steps_ahead


@pytest.mark.parametrize(
    ("workers", "prefetch", "accumulation", "steps"),
    [(0, None, 1, 1), (0, None, 8, 1), (2, 2, 1, 5), (2, 2, 4, 2), (2, 2, 5, 1), (4, 3, 2, 7)],
)
def test_the_look_ahead_by_hand(workers: int, prefetch: int | None, accumulation: int, steps: int) -> None:
    assert count_steps_ahead(workers, prefetch, accumulation) == steps


@pytest.mark.parametrize(
    ("step", "undrawn"),
    [
        (0, EpochPosition(0, 0, 0)),
        (1, EpochPosition(0, 36, 3)),
        (2, EpochPosition(0, 48, 4)),
        (3, EpochPosition(1, 0, 5)),  # two steps ahead the epoch is over
        (4, EpochPosition(1, 0, 5)),
        (5, EpochPosition(1, 0, 5)),  # between epochs nothing is drawn
        (6, EpochPosition(1, 36, 8)),
    ],
)
def test_the_first_undrawn_position_by_hand(step: int, undrawn: EpochPosition) -> None:
    assert StepSchedule(steps_per_epoch=5, effective_batch=12, look_ahead=2).find_undrawn(step) == undrawn


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(("workers", "prefetch"), [(0, None), (1, 2), (2, 3)])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_no_rank_has_drawn_the_first_undrawn_position_and_a_step_earlier_one_has(
    ranks: int, workers: int, prefetch: int | None, accumulation: int
) -> None:
    """Each rank's own loader, drawn from as the Trainer does: a step's batches are fetched, then the step ends."""
    batch, steps = 2, 14
    effective = batch * ranks * accumulation
    schedule = StepSchedule(steps, effective, count_steps_ahead(workers, prefetch, accumulation))
    for rank in range(ranks):
        sampler = MIWVDataSampler(steps * effective, fraction=1.0)
        sampler.set_selection(list(range(steps * effective)))
        shard = BatchSamplerShard(BatchSampler(sampler, batch, drop_last=False), ranks, rank)
        options = {"num_workers": workers, **({"prefetch_factor": prefetch} if workers else {})}
        loader = iter(DataLoaderShard(list(range(steps * effective)), batch_sampler=shard, **options))
        for step in range(1, 4):
            for _ in range(accumulation):
                next(loader)
            undrawn = schedule.find_undrawn(step)
            assert (undrawn.epoch, undrawn.global_step) == (0, undrawn.position // effective)
            assert not sampler.is_drawn(0, undrawn.position)
            # One step earlier would have been too early: a sample of it has been drawn.
            assert sampler.is_drawn(0, undrawn.position - effective)
        del loader
