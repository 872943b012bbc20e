"""What the subcommands share: the rounds of a folder, and the rows that were scored."""

import argparse
import hashlib
import json
from typing import Any

import datasets

from miwv_trainer.config import SELECTION_FIELDS
from miwv_trainer.data.files import load_rows
from miwv_trainer.storage.store import Store, StoredRound


def typed_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of the options that decide the selection that were typed."""
    values = {name: getattr(arguments, name) for name in ("preset", *SELECTION_FIELDS)}
    return {name: value for name, value in values.items() if value is not None}


def rows_fingerprint(rows: datasets.Dataset, count: int) -> str:
    """A hash of the first `count` rows as they came."""
    digest = hashlib.sha256()
    for row in rows.select(range(count)):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def template_fingerprint(chat_template: Any) -> str | None:
    """A hash of a tokenizer's chat template; None where it has none."""
    if chat_template is None:
        return None
    return hashlib.sha256(json.dumps(chat_template, sort_keys=True).encode()).hexdigest()[:16]


def read_scored_rows(dataset: str, scored: StoredRound) -> datasets.Dataset:
    """The rows of a dataset, refused if they are not those that were scored."""
    rows, count = load_rows(dataset), len(scored.scores)
    if len(rows) < count:
        raise ValueError(
            f"{dataset} has {len(rows)} samples, but {scored.folder} holds scores of {count}: give the dataset that "
            "was scored."
        )
    expected = scored.summary.get("rows")  # a Trainer's rounds know token ids only
    if expected is not None and rows_fingerprint(rows, count) != expected:
        raise ValueError(
            f"The first {count} samples of {dataset} are not those that {scored.folder} holds scores of: give the "
            "dataset that was scored, as it was."
        )
    return rows.select(range(count))


def read_rounds(output: str) -> list[StoredRound]:
    store = Store(output)
    numbers = store.rounds()
    if not numbers:
        raise FileNotFoundError(
            f"There are no scores in {store.folder}. Give the folder that `miwv score --output` or the Trainer wrote "
            "to."
        )
    return [store.read_round(number) for number in numbers]
