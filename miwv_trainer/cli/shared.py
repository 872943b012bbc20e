"""What the subcommands share: which rows were scored, known by what they hold and not by a file's name."""

import hashlib
import json

from miwv_trainer.data.files import Rows, load_rows
from miwv_trainer.storage.stored_round import StoredRound


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


def read_scored_rows(dataset: str, scored: StoredRound) -> Rows:
    """
    The rows of a dataset that a round has scored.

    Raises:
        ValueError: they are fewer than were scored, or others.
    """
    rows, count = load_rows(dataset), len(scored.scores)
    if len(rows) < count:
        raise ValueError(
            f"{dataset} has {len(rows)} samples, but {scored.folder} holds scores of {count}: give the dataset that "
            "was scored."
        )
    # The rounds of a Trainer do not have this entry: it hands over token ids, from which rows cannot be told.
    expected = scored.summary.get("rows")
    if expected is not None and fingerprint_rows(rows, count) != expected:
        raise ValueError(
            f"The first {count} samples of {dataset} are not those that {scored.folder} holds scores of: give the "
            "dataset that was scored, as it was."
        )
    return rows.select(range(count))
