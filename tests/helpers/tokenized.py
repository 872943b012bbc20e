"""Three small tokenised samples in every form in which they may come, and pools of given tokens."""

import datasets
import numpy as np
import torch

from miwv_trainer.data.pool import TokenizedSample
from miwv_trainer.data.preamble import build_pool, split_preamble
from miwv_trainer.data.tokenized import read_tokenized
from miwv_trainer.data.turn_markers import TurnMarkers

BOS, SYSTEM, USER, ASSISTANT = 1, 2, 3, 4


NO_MARKERS = TurnMarkers()


CHAT_MARKERS = TurnMarkers(user_header=(USER,), generation_prompt=(ASSISTANT,), bos=BOS)


IDS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15]]


LABELS = [[-100, -100, 7, 8], [-100, 10], [-100, 12, -100, 14, -100]]


MASKS = [[0, 0, 1, 1], [0, 1], [0, 1, 0, 1, 0]]


class MapStyle(torch.utils.data.Dataset):
    """The least a Trainer accepts as a dataset."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(())


def labelled_rows(ids=IDS, labels=LABELS):
    return [{"input_ids": i, "labels": label} for i, label in zip(ids, labels, strict=True)]


def labelled_dataset():
    return datasets.Dataset.from_dict({"input_ids": IDS, "labels": LABELS})


def pool_of(ids, masks, markers=NO_MARKERS):
    samples = [TokenizedSample(np.array(i), np.array(m, dtype=bool)) for i, m in zip(ids, masks, strict=True)]
    return build_pool(samples, markers)


def pool_from(dataset, markers=NO_MARKERS):
    return split_preamble(read_tokenized(dataset), markers)


def as_lists(pool):
    return (
        [pool.sample(index).tolist() for index in range(len(pool))],
        [pool.response_mask(index).astype(int).tolist() for index in range(len(pool))],
    )


def tensors(rows):
    return [{name: torch.tensor(value) for name, value in row.items()} for row in rows]
