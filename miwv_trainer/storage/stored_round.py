"""A finished round on disk: `scores.parquet`, one line a sample, and `round.json`, which says how it was made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import NotRequired

from miwv_trainer.storage.atomic import atomic_path, write_text
from miwv_trainer.storage.provenance import (
    FORMAT_VERSION,
    JsonObject,
    check_fingerprint,
    check_version,
    explain_read_errors,
)

SCORES_FILE, SUMMARY_FILE = "scores.parquet", "round.json"
# Columns of whole numbers in which null stands for -1 ("none", "never") and not for NaN.
MISSING_BELOW_ZERO = ("exemplar", "age")
# By which a sample is found in a file, whatever place it has there; null stands for 0 ("not known").
# Only scores that compare a response with itself alone measure it.
RESPONSE_LOSS = "response_loss"
# Where samples were scored behind several exemplars: the columns of what belongs to the nearest, and those of the lists
# of what belongs to the others. A sample may have fewer than the round's `exemplars_per_sample`.
FURTHER = {
    "exemplar": "further_exemplars",
    "similarity": "further_similarities",
    "one_shot_loss": "further_losses",
}
HASHES = ("ids_hash", "text_hash", "words_hash", "answer_hash")
# Other programs read these columns: new ones come at the end.
SCORES = pa.schema(
    [
        ("index", pa.int64()),
        ("exemplar", pa.int64()),
        ("similarity", pa.float32()),
        ("prompt_tokens", pa.int32()),
        ("response_tokens", pa.int32()),
        ("zero_shot_loss", pa.float32()),
        ("one_shot_loss", pa.float32()),
        ("miwv", pa.float32()),
        ("selected", pa.bool_()),
        ("score", pa.float32()),
        ("age", pa.int32()),
        *((name, pa.uint64()) for name in HASHES),
        (RESPONSE_LOSS, pa.float32()),
        ("further_exemplars", pa.list_(pa.int64())),
        ("further_similarities", pa.list_(pa.float32())),
        ("further_losses", pa.list_(pa.float32())),
    ]
)


class RoundIdentity(TypedDict):
    """
    What tells a round from all others.

    Args:
        fingerprint: What it was made from: pool, exemplars, configuration, model.
        round: Its number, from 0.
        global_step: Optimizer steps that the model had been trained when it was scored.
    """

    fingerprint: JsonObject
    round: int
    global_step: int


class TakesEffect(TypedDict):
    """From which place of the training on a round's selection is trained."""

    epoch: int
    position: int
    global_step: int
    steps_after_scoring: int


class ScoresOrigin(TypedDict):
    """
    Where the losses of a round come from that another run has made.

    Args:
        folder: The folder of that run.
        model: The name or folder of the model that made them.
        dtype: Of that model's parameters.
        context: Most tokens of a sequence that it forwarded.
        match: How its samples were matched with this run's, `"tokens"` or `"rows"`.
        date: When they were written.
    """

    folder: str
    model: str
    dtype: str
    context: int
    match: str
    date: str


class ProxyCheck(TypedDict):
    """
    How far a smaller model that scores agrees with the model in training.

    Args:
        model: The name or folder of the model in training.
        fingerprint: What that model is known by, as a round's own is in its fingerprint.
        asked: How many samples both were to score (`proxy_check`).
        compared: What both rank the samples by: the score; MIWV or the zero-shot loss where a score of the user's own
            is the same by both.
        samples: How many samples both have scored.
        rank_correlation: Spearman's, of what is compared; None if it cannot be computed.
        overlap: Share of the best `fraction` of these samples that both models have.
        seconds: What the forwards of the smaller model took for the pool, without its checks and without the
            refinement in float32; None if that was not timed.
        seconds_of_model: What those of the model in training would take at its speed on these samples; None if it
            forwarded nothing.
        reason: Why there is no correlation; only where there is none.
    """

    model: str
    fingerprint: JsonObject
    asked: int
    compared: str
    samples: int
    rank_correlation: float | None
    overlap: float | None
    seconds: float | None
    seconds_of_model: float | None
    reason: NotRequired[str]


class RoundNotes(TypedDict, total=False):
    """
    What a caller adds to a round's summary.

    Args:
        rows: Hash of the raw rows; only `miwv score` knows them.
        chat_template: Hash of the chat template; only `miwv score` knows it.
        dataset: The file, the folder or the name on the hub.
        columns: The dataset's own names of what was read of it, or None where its columns are a known format's.
        takes_effect: Only in a training.
    """

    rows: str
    chat_template: str | None
    dataset: str
    columns: dict[str, str] | None
    takes_effect: TakesEffect


class RoundSummary(RoundIdentity, RoundNotes, total=False):
    """
    What `round.json` holds.

    Args:
        version: The format version.
        epoch: Epochs that had begun before the round.
        drawn_from: The round from whose scores this one has drawn again without scoring; left out of other rounds.
        left_out: Samples that each guard left out.
        without_value: Samples that have their losses and yet no score, such as nobody's exemplar under influence.
        scored: Samples that were scored in this round; the others keep their scores of the round before.
        tokens_forwarded: Tokens of all forwards, padding included, without those of the refinement in float32.
        seconds: Wall-clock time of the round, earlier attempts at it included.
        epochs: The cost of its forwards, as a multiple of the cost of training an epoch of the selection.
        layout: How samples shared a forward: `"tree"`, `"padded"`, `"equal"` (rows of equal length), these without
            exemplars (`"zero_shot"`, `"zero_shot_equal"`), or `"none"` if the round forwarded nothing.
        attention: How layers attended in rows of trees (`"varlen"`, `"segments"`, `"blocks"`, `"mask"`); `"none"` in
            other rows. Versions before it wrote no such entry.
        statistics: What the Trainer logs.
        exemplars: What the exemplars look like as a whole; left out where no sample has one.
        exemplar_warning: Why the exemplars tell little, if they do.
        texts_from: What the hashes of texts in scores.parquet were made of: `"columns"` of the dataset, or `"tokens"`.
        model: The name or folder that the model was loaded from.
        date: When the round was written, in UTC.
        library: Version of this library.
        pool_content: Hash of the samples, the same for a Trainer's pool and the same pool of `miwv score`.
        scores_from: Only where the losses are of another run.
        proxy: Only where a smaller model has scored.
    """

    version: int
    epoch: int
    fraction: float
    number_selected: int
    samples: int
    unscorable: int
    pool_tokens: int
    drawn_from: int
    left_out: dict[str, int]
    without_value: int
    config: JsonObject
    scored: int
    tokens_forwarded: int
    seconds: float
    samples_per_second: float
    tokens_per_second: float
    epochs: float
    layout: str
    attention: str
    refined_samples: int
    refined_tokens: int
    refined_seconds: float
    processes: int
    statistics: dict[str, float]
    exemplars: dict[str, float | int | bool]
    exemplar_warning: str
    texts_from: Literal["columns", "tokens"]
    model: str
    date: str
    library: str
    pool_content: str
    scores_from: ScoresOrigin
    proxy: ProxyCheck


@dataclass(frozen=True)
class StoredRound:
    """
    A finished round as it lies on disk.

    Args:
        scores: One line a sample, with the columns of [`SCORES`].
        was_there: Whether an earlier process finished it, so that it was not scored again.
    """

    number: int
    folder: Path
    scores: pa.Table
    summary: RoundSummary
    was_there: bool = False

    def column(self, name: str) -> np.ndarray:
        """`(N,)` one column of the scores; nulls become NaN, or -1 in `exemplar` and `age`, or 0 in hashes."""
        column = self.scores[name]
        if name in MISSING_BELOW_ZERO:
            column = column.fill_null(-1)
        return (column.fill_null(0) if name in HASHES else column).to_numpy()

    def ranked(self, name: str) -> np.ndarray:
        """`(N, m)` `exemplar`, `similarity` or `one_shot_loss` of all of a sample's exemplars, the nearest first."""
        first = self.column(name)
        if self.scores[FURTHER[name]].null_count == len(first):
            return first[:, None]
        lists = self.scores[FURTHER[name]].to_pylist()
        asked = self.summary.get("fingerprint", {}).get("exemplars_per_sample", 1)
        ranked = np.full((len(first), asked), -1 if name in MISSING_BELOW_ZERO else np.nan, dtype=first.dtype)
        ranked[:, 0] = first
        for sample, further in enumerate(lists):
            for rank, value in enumerate(further or (), start=1):
                if value is not None:
                    ranked[sample, rank] = value
        return ranked

    @property
    def selection(self) -> np.ndarray:
        """`(k,)` ascending indices of the selected samples."""
        return np.flatnonzero(self.column("selected"))


def write_round_files(folder: Path, columns: Mapping[str, np.ndarray], summary: RoundSummary) -> pa.Table:
    """Writes the two files of a round into a folder. Returns the table of scores."""
    scores = _make_table(columns)
    with atomic_path(folder / SCORES_FILE) as path:
        pq.write_table(scores, path)
    write_summary(folder, summary)
    return scores


def write_summary(folder: Path, summary: RoundSummary) -> None:
    """Writes the summary of a round into its folder, whole or not at all."""
    # NaN is no JSON: Python would write it, and other programs could not read the file.
    write_text(folder / SUMMARY_FILE, json.dumps(summary, indent=2, allow_nan=False) + "\n")


def read_round_files(folder: Path, number: int, fingerprint: JsonObject | None) -> StoredRound:
    """
    Reads the two files of a round.

    Raises:
        ValueError: they are damaged, have another format version, or were made from something else than `fingerprint`.
    """
    with explain_read_errors(folder / SUMMARY_FILE):
        summary = cast(RoundSummary, json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8")))
    check_version(folder, summary.get("version"))
    if fingerprint is not None:
        check_fingerprint(folder, summary["fingerprint"], fingerprint)
    with explain_read_errors(folder / SCORES_FILE):
        # With `schema`, a column that an older version of this library did not write is read as nulls.
        # Without `partitioning=None`, an output folder named `seed=1` would add a column `seed`.
        scores = pq.read_table(folder / SCORES_FILE, schema=SCORES, partitioning=None)
    return StoredRound(number, folder, scores, summary)


def add_version(summary: RoundSummary) -> RoundSummary:
    """The summary with the format version in front."""
    return cast(RoundSummary, {"version": FORMAT_VERSION, **summary})


def _make_table(columns: Mapping[str, np.ndarray]) -> pa.Table:
    """
    The table of scores; NaN (or -1 in `exemplar` and `age`, 0 in hashes) becomes null, which every reader knows.

    Hashes, losses of responses alone and further exemplars that are not among the columns become nulls.
    """
    arrays = []
    for entry in SCORES:
        if entry.name in (*HASHES, RESPONSE_LOSS, *FURTHER.values()) and entry.name not in columns:
            arrays.append(pa.nulls(len(columns["index"]), entry.type))
            continue
        if pa.types.is_list(entry.type):
            arrays.append(_make_lists(columns[entry.name], columns[FURTHER["exemplar"]] >= 0, entry.type))
            continue
        values = columns[entry.name]
        # Null rather than NaN: SQL engines sort NaN above every number, so a top-k would begin with unscored samples.
        missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), dtype=bool)
        if entry.name in MISSING_BELOW_ZERO:
            missing = values < 0
        if entry.name in HASHES:
            missing = values == 0
        arrays.append(pa.array(values, type=entry.type, mask=missing))
    return pa.Table.from_arrays(arrays, schema=SCORES)


def _make_lists(values: np.ndarray, is_there: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Each sample's `values` where it has an exemplar, `(N, m - 1)` both; NaN becomes null."""
    offsets = np.concatenate([[0], is_there.sum(axis=1).cumsum()]).astype(np.int32)
    flat = values[is_there]
    is_missing = np.isnan(flat) if flat.dtype.kind == "f" else np.zeros(len(flat), dtype=bool)
    return pa.ListArray.from_arrays(offsets, pa.array(flat, type=kind.value_type, mask=is_missing))
