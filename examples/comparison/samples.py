"""The samples of a comparison: the pool, spoiled if that is asked for, and clean ones that no arm trains on."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeAlias

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from comparison.corruption import corrupt, merge_corruptions
from comparison.own_scores import Places
from docstring_pool import Row, collect_docstring_rows
from miwv_trainer import JsonRows, Pool, load_rows, pool_from_rows, pool_from_tokenized, tokenize

Rows: TypeAlias = datasets.Dataset | JsonRows
HELD_OUT = "held-out samples"
KNOWN = "known"
NUMBER = "number of the row"  # a column for the time of spoiling


@dataclass(frozen=True)
class Samples:
    """
    Tokenised samples, and the same as a pool.

    Args:
        faults: `(N,)` masks by name: the samples that were spoiled, or that the model was first trained on.
        places: Of a pool that is a part of the user's dataset.
    """

    rows: datasets.Dataset
    pool: Pool
    faults: dict[str, np.ndarray] = field(default_factory=dict)
    places: Places | None = None

    @cached_property
    def lengths(self) -> np.ndarray:
        """`(N,)` tokens of each sample as it is trained."""
        return np.asarray([len(ids) for ids in self.rows["input_ids"]])

    def share(self, name: str, selection: np.ndarray) -> float:
        """Share of a selection that has a fault."""
        return float(self.faults[name][selection].mean())


class Parts(NamedTuple):
    """
    The rows of the pool and those that are held out.

    Args:
        places: Of the pool's rows, before a part of them is spoiled.
    """

    pool: Rows
    held_out: Rows
    places: Places | None = None


@contextmanager
def explain(option: str) -> Iterator[None]:
    """Ends the program with one line if what an option names cannot be used."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise SystemExit(f"{option}: {error}") from error


def load_samples(
    arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase
) -> tuple[Samples, dict[str, Samples]]:
    """
    The pool, and the evaluation samples by name, the held-out ones of the pool's own dataset first.

    Raises:
        SystemExit: a dataset cannot be read, or has too few samples; the message names the option.
    """
    evaluated: dict[str, Samples] = {}
    with explain(f"--dataset {arguments.dataset}"):
        parts = split_dataset(arguments, tokenizer)
        pool = make_pool(tokenize(parts.pool, tokenizer, arguments.columns), parts.places, arguments, tokenizer)
        evaluated[HELD_OUT] = make_samples(parts.held_out, arguments.columns, tokenizer)
    for name in arguments.evaluate or []:
        short = Path(name).name
        with explain(f"--evaluate {name}"):
            rows = load_rows(name)
            columns = choose_columns(rows, arguments.columns)
            others = draw_others(keep_short(rows, arguments, tokenizer, columns), name, arguments)
            evaluated[name if short in evaluated else short] = make_samples(others, columns, tokenizer)
    return pool, evaluated


def make_samples(rows: Rows, columns: dict[str, str] | None, tokenizer: PreTrainedTokenizerBase) -> Samples:
    """Rows as samples."""
    tokenized = tokenize(rows, tokenizer, columns)
    return Samples(tokenized, pool_from_tokenized(tokenized, tokenizer))


def make_pool(
    rows: datasets.Dataset, places: Places | None, arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase
) -> Samples:
    """The pool of tokenised rows, spoiled and known as the options say."""
    numbered = rows.add_column(NUMBER, np.arange(len(rows)))
    spoiled, faults = corrupt(numbered, merge_corruptions(arguments.corrupt))
    numbers = np.asarray(spoiled[NUMBER])
    spoiled = spoiled.remove_columns(NUMBER)
    if arguments.known is not None:
        faults[KNOWN] = draw_known(len(spoiled), arguments.known)
    moved = None if places is None else replace(places, indices=places.indices[numbers])
    return Samples(spoiled, pool_from_tokenized(spoiled, tokenizer), faults, moved)


def choose_columns(rows: Rows, columns: dict[str, str] | None) -> dict[str, str] | None:
    """The names that `--columns` gives, if another dataset has these columns; else its own are read by their names."""
    return columns if columns is not None and set(columns.values()) <= set(rows.column_names) else None


def draw_known(count: int, share: float) -> np.ndarray:
    """`(N,)` mask of the samples that the model is first trained on."""
    known = np.random.default_rng([1, count]).permutation(count)[: max(1, round(share * count))]
    return np.isin(np.arange(count), known)


def split_dataset(arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> Parts:
    """The pool's rows and the held-out rows: split by module for documentation strings, at random for a user's data."""
    if arguments.dataset is None:
        return Parts(*split_docstrings(arguments, tokenizer))
    rows = load_rows(arguments.dataset)
    short = find_short(rows, arguments, tokenizer, arguments.columns)
    # The order in which `datasets` shuffles by this seed.
    order = short[np.random.default_rng(0).permutation(len(short))]
    part = order[: arguments.max_samples or None]
    if len(part) < arguments.held_out + arguments.batch_size:
        kind = f"samples of at most {arguments.longest} tokens" if arguments.longest else "samples"
        raise SystemExit(
            f"{arguments.dataset} has {len(short)} {kind}, of which --max-samples {arguments.max_samples or 'all'} are "
            f"taken: {arguments.held_out} are held out, and a pool needs a batch of {arguments.batch_size} more. Give "
            "a larger --longest or --max-samples, or a smaller --held-out or --batch-size."
        )
    kept, held_out = part[arguments.held_out :], part[: arguments.held_out]
    return Parts(rows.select(kept), rows.select(held_out), Places(arguments.dataset, len(rows), kept))


def find_short(
    rows: Rows, arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, columns: dict[str, str] | None
) -> np.ndarray:
    """The numbers of the rows of at most `--longest` tokens."""
    if not arguments.longest:
        return np.arange(len(rows))
    lengths = pool_from_rows(rows, tokenizer, columns=columns).lengths
    return np.flatnonzero(lengths <= arguments.longest)


def keep_short(
    rows: Rows, arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, columns: dict[str, str] | None
) -> Rows:
    """The rows of at most `--longest` tokens."""
    return rows.select(find_short(rows, arguments, tokenizer, columns))


def draw_others(rows: Rows, name: str, arguments: argparse.Namespace) -> Rows:
    """The evaluation samples of another dataset."""
    rows = rows.shuffle(seed=0)
    if len(rows) < 2:
        raise SystemExit(f"--evaluate {name} has {len(rows)} samples of at most {arguments.longest} tokens: give two.")
    return rows.select(range(min(arguments.held_out, len(rows))))


def split_docstrings(arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> tuple[Rows, Rows]:
    """Documentation strings: the pool's, and those of other modules, about as many as are to be held out."""

    def is_short(row: Row) -> bool:
        turns = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        return not arguments.longest or count_tokens(turns) <= arguments.longest + preamble

    def count_tokens(turns: list[dict[str, str]]) -> int:
        return len(tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"])

    preamble = count_tokens([{"role": "user", "content": ""}])
    rows = collect_docstring_rows(is_short, arguments.max_samples or 10**6)
    modules = sorted({row["module"] for row in rows})
    every = max(2, round(len(rows) / arguments.held_out))
    kept_back = set(modules[::every])
    pool = [row for row in rows if row["module"] not in kept_back]
    held_out = [row for row in rows if row["module"] in kept_back]
    return datasets.Dataset.from_list(pool), datasets.Dataset.from_list(held_out)


def describe_limits(arguments: argparse.Namespace) -> str:
    """Which part of the dataset is used."""
    found = [f"none longer than {arguments.longest} tokens"] if arguments.longest else []
    found += [f"{arguments.max_samples} at most in all"] if arguments.max_samples else []
    return ", ".join(found) or "all that there are"
