"""What each process draws from a dataloader."""

import itertools

from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader

from miwv_trainer import MIWVDataSampler

POOL_SIZE = 400


def drawn(
    sampler: MIWVDataSampler,
    processes: int,
    batch: int,
    drop_last: bool = False,
    even_batches: bool = True,
    split_batches: bool = False,
    skip: int = 0,
) -> list[list[list[int]]]:
    """Each rank's batches, as accelerate deals them to the process it takes itself for."""
    ranks = []
    sampler.hold_epoch(sampler.epoch)  # as the callback does
    for rank in range(processes):
        loader = DataLoader(range(POOL_SIZE), batch, sampler=sampler, drop_last=drop_last, collate_fn=list)
        shard = prepare_data_loader(
            loader, None, processes, rank, split_batches=split_batches, even_batches=even_batches,
            use_seedable_sampler=True,
        )  # fmt: skip
        shard.set_epoch(sampler.epoch)  # as the Trainer does
        ranks.append(list(skip_first_batches(shard, skip) if skip else shard))
    sampler.release_epoch()
    return ranks


def steps(ranks: list[list[list[int]]], accumulation: int) -> list[list[int]]:
    """The samples of each optimizer step: its batches one after the other, each in the order of ranks."""
    assert len({len(batches) for batches in ranks}) == 1
    in_time = [list(itertools.chain(*batch)) for batch in zip(*ranks, strict=True)]
    return [list(itertools.chain(*in_time[at : at + accumulation])) for at in range(0, len(in_time), accumulation)]
