"""Lines and headers of a journal."""

import numpy as np

from miwv_trainer.storage.journal import JournalLine

HEADER = {"round": 0, "pool": "abc"}


def entry(*samples: int, stage: str = "losses") -> JournalLine:
    kinds = np.asarray([sample % 2 for sample in samples])
    # Float32 values that no short decimal says.
    losses = np.asarray([np.float32(1) / np.float32(3 + sample) for sample in samples], dtype=np.float64)
    return JournalLine(stage, kinds, np.asarray(samples), losses, 10 * len(samples), 0.5)


def samples(files: list[list[JournalLine]]) -> list[list[int]]:
    return [one.samples.tolist() for entries in files for one in entries]
