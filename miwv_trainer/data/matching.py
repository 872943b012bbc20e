"""
Samples of a pool found among the rows of a dataset, by what they say and never by where they stand.

Three passes, from the strictest key to the loosest; each looks at what the passes before it have left. Samples and rows
with the same key are paired in the order in which they come, if that cannot give a sample the row of another one.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from miwv_trainer.data.pool import SampleHashes
from miwv_trainer.data.sample_texts import UNKNOWN, RowHashes

NO_ROW = -1


@dataclass(frozen=True)
class Matches:
    """
    Where the N samples stand in a dataset.

    Args:
        rows: `(N,)` int64 number of each sample's row; -1 where there is none.
        by_words: Samples that were found by their last question and their answers alone.
        by_answer: Samples that were found by the beginning of their answers alone.
        ambiguous: Samples without a row because several rows fit.
    """

    rows: np.ndarray
    by_words: list[int]
    by_answer: list[int]
    ambiguous: list[int]


def match_rows(samples: SampleHashes, rows: Sequence[RowHashes]) -> Matches:
    """Finds the row of each sample. No row is given to two samples."""
    pairing = _Pairing(samples.ids, [row.texts[0] if row.texts else UNKNOWN for row in rows])
    pairing.pair(samples.text, [row.texts for row in rows])
    before = pairing.places.copy()
    pairing.pair(samples.words, [(row.words,) for row in rows])
    by_words = np.flatnonzero(pairing.places != before).tolist()
    before = pairing.places.copy()
    # The beginning of an answer says little, so it counts only where neither the pool nor the dataset has it twice.
    keys = [row.answer for row in rows]
    often = {key for each in (samples.answer.tolist(), keys) for key, count in Counter(each).items() if count > 1}
    pairing.pair(samples.answer, [() if key in often else (key,) for key in keys])
    by_answer = np.flatnonzero(pairing.places != before).tolist()
    ambiguous = sorted(index for index in pairing.ambiguous if pairing.places[index] == NO_ROW)
    return Matches(pairing.places, by_words, by_answer, ambiguous)


class _Pairing:
    """Samples and rows that are not yet paired."""

    def __init__(self, sample_contents: np.ndarray, row_contents: Sequence[int]) -> None:
        self.places = np.full(len(sample_contents), NO_ROW, dtype=np.int64)
        self.ambiguous: set[int] = set()
        self._sample_contents, self._row_contents = sample_contents.tolist(), row_contents
        self._used: set[int] = set()

    def pair(self, sample_keys: np.ndarray, row_keys: Iterable[Iterable[int]]) -> None:
        """Pairs samples and rows with the same key."""
        waiting = defaultdict(list)
        for index in np.flatnonzero((self.places == NO_ROW) & (sample_keys != UNKNOWN)).tolist():
            waiting[int(sample_keys[index])].append(index)
        offered = defaultdict(list)
        for number, keys in enumerate(row_keys):
            for key in set(keys) if number not in self._used else ():
                if key in waiting:
                    offered[key].append(number)
        for key, numbers in offered.items():
            self._pair_group(waiting[key], [number for number in numbers if number not in self._used])

    def _pair_group(self, indices: list[int], numbers: list[int]) -> None:
        same_samples = _is_one([self._sample_contents[index] for index in indices])
        same_rows = _is_one([self._row_contents[number] for number in numbers])
        # Whichever of them is paired with whichever, each sample gets a row that says what it says.
        is_safe = (
            (same_samples and same_rows)
            or (same_rows and len(indices) <= len(numbers))
            or (same_samples and len(numbers) <= len(indices))
        )
        if not is_safe:
            self.ambiguous.update(indices)
            return
        for index, number in zip(indices, numbers, strict=False):
            self.places[index] = number
            self._used.add(number)


def _is_one(contents: Sequence[Hashable]) -> bool:
    return len(set(contents)) <= 1
