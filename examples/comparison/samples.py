"""The samples of a comparison: the pool, spoiled if that is asked for, and clean ones that no arm trains on."""

import argparse
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from comparison.corruption import corrupt, merge_corruptions
from docstring_pool import Row, collect_docstring_rows
from miwv_trainer import JsonRows, Pool, load_rows, pool_from_rows, pool_from_tokenized, tokenize

Rows: TypeAlias = datasets.Dataset | JsonRows
HELD_OUT = "held-out samples"
KNOWN = "known"


@dataclass(frozen=True)
class Samples:
    """
    Tokenised samples, and the same as a pool.

    Args:
        faults: `(N,)` masks by name: the samples that were spoiled, or that the model was first trained on.
    """

    rows: datasets.Dataset
    pool: Pool
    faults: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def lengths(self) -> np.ndarray:
        """`(N,)` tokens of each sample as it is trained."""
        return np.asarray([len(ids) for ids in self.rows["input_ids"]])

    def share(self, name: str, selection: np.ndarray) -> float:
        """Share of a selection that has a fault."""
        return float(self.faults[name][selection].mean())


def load_samples(
    arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase
) -> tuple[Samples, dict[str, Samples]]:
    """The pool, and the evaluation samples by name, the held-out ones of the pool's own dataset first."""
    rows, held_out = split_dataset(arguments, tokenizer)
    spoiled, faults = corrupt(tokenize(rows, tokenizer, arguments.columns), merge_corruptions(arguments.corrupt))
    if arguments.known is not None:
        faults[KNOWN] = draw_known(len(spoiled), arguments.known)
    pool = Samples(spoiled, pool_from_tokenized(spoiled, tokenizer), faults)
    evaluated = {HELD_OUT: tokenize(held_out, tokenizer, arguments.columns)}
    for name in arguments.evaluate or []:
        short = Path(name).name
        evaluated[name if short in evaluated else short] = tokenize(load_others(name, arguments, tokenizer), tokenizer)
    return pool, {name: Samples(part, pool_from_tokenized(part, tokenizer)) for name, part in evaluated.items()}


def draw_known(count: int, share: float) -> np.ndarray:
    """`(N,)` mask of the samples that the model is first trained on."""
    known = np.random.default_rng([1, count]).permutation(count)[: max(1, round(share * count))]
    return np.isin(np.arange(count), known)


def split_dataset(arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> tuple[Rows, Rows]:
    """The pool's rows and the held-out rows: split by module for documentation strings, at random for a user's data."""
    if arguments.dataset is None:
        return split_docstrings(arguments, tokenizer)
    rows = keep_short(load_rows(arguments.dataset), arguments, tokenizer, arguments.columns)
    rows = rows.shuffle(seed=0)
    part = rows.select(range(min(arguments.max_samples or len(rows), len(rows))))
    if len(part) < arguments.held_out + arguments.batch_size:
        kind = f"samples of at most {arguments.longest} tokens" if arguments.longest else "samples"
        raise SystemExit(
            f"{arguments.dataset} has {len(rows)} {kind}, of which --max-samples {arguments.max_samples or 'all'} are "
            f"taken: {arguments.held_out} are held out, and a pool needs a batch of {arguments.batch_size} more. Give "
            "a larger --longest or --max-samples, or a smaller --held-out or --batch-size."
        )
    return part.select(range(arguments.held_out, len(part))), part.select(range(arguments.held_out))


def keep_short(
    rows: Rows, arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, columns: dict[str, str] | None
) -> Rows:
    """The rows of at most `--longest` tokens."""
    if not arguments.longest:
        return rows
    lengths = pool_from_rows(rows, tokenizer, columns=columns).lengths
    return rows.select(np.flatnonzero(lengths <= arguments.longest))


def load_others(name: str, arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """The evaluation samples of another dataset."""
    rows = keep_short(load_rows(name), arguments, tokenizer, None).shuffle(seed=0)
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
