"""What the subcommands share: which rows were scored, known by what they hold and not by a file's name."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from miwv_trainer.data.columns import ColumnNames
from miwv_trainer.data.content import hash_rows
from miwv_trainer.data.files import Rows, load_rows
from miwv_trainer.data.matching import NO_ROW, Matches, match_rows
from miwv_trainer.data.pool import SampleHashes
from miwv_trainer.storage.stored_round import HASHES, StoredRound

# Below this share of samples that are found, the dataset is taken for another one.
LEAST_SHARE = 0.5
NAMED = 5  # samples that a line names
TEXTS_KEPT = (
    "Columns of uncommon names are named with `--columns`; a Trainer's dataset that keeps its text columns beside "
    "`input_ids` is found by them, whatever its template."
)


@dataclass(frozen=True)
class ScoredRows:
    """
    The rows of the N samples that a round has scored.

    Args:
        dataset: Its name, as it was typed.
        rows: All its rows.
        places: `(N,)` number of each sample's row; -1 where it has none.
        notes: What the user is told of how they were found, a line each.
    """

    dataset: str
    rows: Rows
    places: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def found(self) -> np.ndarray:
        """Ascending indices of the samples that have a row."""
        return np.flatnonzero(self.places != NO_ROW)

    def align(self, needed: np.ndarray | None = None) -> Rows:
        """
        N rows, one a sample and in their order. Only those of `needed` (by default of all samples) may be used.

        Raises:
            ValueError: one of these samples has no row.
        """
        is_missing = self.places == NO_ROW
        missing = np.flatnonzero(is_missing) if needed is None else needed[is_missing[needed]]
        if len(missing):
            raise ValueError(
                f"{len(missing)} of the {len(self.places) if needed is None else len(needed)} samples that are needed "
                f"have no row in {self.dataset} ({name_samples(missing.tolist())}), so nothing is written. Give a "
                f"dataset that holds all samples the Trainer was given. {TEXTS_KEPT}"
            )
        return self.rows.select(np.where(is_missing, 0, self.places))


def fingerprint_rows(rows: Rows, count: int) -> str:
    """A hash of the first `count` rows as they came."""
    digest = hashlib.sha256()
    for row in rows.select(range(count)):
        # `default=str`: Parquet files may hold dates and decimals in columns that are not read; JSON has neither.
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def fingerprint_template(chat_template: str | dict[str, str] | None) -> str | None:
    """A hash of a tokenizer's chat template, or of several by name; None where it has none."""
    if chat_template is None:
        return None
    return hashlib.sha256(json.dumps(chat_template, sort_keys=True).encode()).hexdigest()[:16]


def find_scored_rows(dataset: str, scored: StoredRound, columns: ColumnNames | None = None) -> ScoredRows:
    """
    The rows of a dataset that a round has scored.

    Rows that `miwv score` has scored are the first ones of the dataset, as they were. A Trainer's samples are found by
    what they say: its dataset may have been shuffled, split or filtered, and SFTTrainer drops long samples.

    Args:
        columns: The dataset's own names of what is read.

    Raises:
        ValueError: the dataset is another one.
    """
    rows, count = load_rows(dataset), len(scored.scores)
    hashes = read_hashes(scored)
    if scored.summary.get("rows") is None and hashes is not None:
        return _find_by_content(dataset, rows, scored, hashes, columns)
    if len(rows) < count:
        raise ValueError(
            f"{dataset} has {len(rows)} samples, but {scored.folder} holds scores of {count}: give the dataset that "
            "was scored."
        )
    expected = scored.summary.get("rows")
    if expected is not None and fingerprint_rows(rows, count) != expected:
        raise ValueError(
            f"The first {count} samples of {dataset} are not those that {scored.folder} holds scores of: give the "
            "dataset that was scored, as it was."
        )
    by_position = (
        f"{scored.folder} does not say what its samples are (an earlier version wrote it, or there was no tokenizer), "
        f"so they are taken for the first {count} of {len(rows)} rows of {dataset}: check one of them."
    )
    return ScoredRows(dataset, rows, np.arange(count), () if expected is not None else (by_position,))


def read_hashes(scored: StoredRound) -> SampleHashes | None:
    """The hashes by which a round's samples are found; None where it has none of texts."""
    ids, text, words, answer = (scored.column(name) for name in HASHES)
    if not any(each.any() for each in (text, words, answer)):
        return None
    return SampleHashes(ids, text, words, answer, scored.summary.get("texts_from") == "columns")


def name_samples(indices: Sequence[int]) -> str:
    """The first few samples, in words."""
    named = ", ".join(map(str, indices[:NAMED])) + (", ..." if len(indices) > NAMED else "")
    return f"sample {named}" if len(indices) == 1 else f"samples {named}"


def _find_by_content(
    dataset: str, rows: Rows, scored: StoredRound, hashes: SampleHashes, columns: ColumnNames | None
) -> ScoredRows:
    matches, count = match_rows(hashes, hash_rows(rows, columns)), len(hashes.ids)
    found = int((matches.rows != NO_ROW).sum())
    if found < LEAST_SHARE * count or not found:
        names = ", ".join(rows.column_names)
        unclear = f" {_tell_ambiguous(matches.ambiguous)}." if matches.ambiguous else ""
        raise ValueError(
            f"{dataset} is not the dataset that {scored.folder} holds scores of: {found or 'none'} of {count} samples "
            f"{'is' if found < 2 else 'are'} found among its {len(rows)} rows (columns {names}), by what they "
            f"say.{unclear} Give the dataset that was trained on. {TEXTS_KEPT}"
        )
    return ScoredRows(dataset, rows, matches.rows, tuple(_describe(matches, hashes.from_columns, dataset, len(rows))))


def _tell_ambiguous(indices: Sequence[int]) -> str:
    return (
        f"{len(indices)} of those that are not found fit several rows, which differ only beside the last question and "
        f"the answers ({name_samples(indices)})"
    )


def _describe(matches: Matches, from_columns: bool, dataset: str, rows: int) -> list[str]:
    missing = np.flatnonzero(matches.rows == NO_ROW).tolist()
    count = len(matches.rows)
    notes = [
        f"{count - len(missing)} of {count} samples are found among the {rows} rows of {dataset}, by what they say"
    ]
    if missing:
        notes.append(f"not found: {len(missing)} ({name_samples(missing)})")
    if matches.ambiguous:
        notes.append(_tell_ambiguous(matches.ambiguous))
    if matches.by_words:
        reason = "other turns or columns differ" if from_columns else "the run knows token ids only"
        notes.append(
            f"found by the last question and the answers alone, because {reason}: {len(matches.by_words)} "
            f"({name_samples(matches.by_words)})"
        )
    if matches.by_answer:
        notes.append(
            "found by the beginning of the answers alone, because the rest differs or was cut off: "
            f"{len(matches.by_answer)} ({name_samples(matches.by_answer)})"
        )
    return notes
