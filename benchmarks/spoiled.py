"""How many spoiled samples of a comparison's pool does each selection hold, and which losses tell them from others?

    python -m benchmarks.spoiled --comparison benchmarks/evidence/code_alpaca_2k_swapped

Reads the scores that `examples/compare.py` left with `--corrupt` or `--known`; nothing is forwarded. The pool is made
again from the dataset and the options that the comparison has written down.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from comparison.options import make_parser
from comparison.samples import Samples, explain, load_samples
from quickstart import find_default_model
from sklearn.metrics import roc_auc_score

from miwv_trainer import MIWVConfig, read_rounds, select_again
from miwv_trainer.data.models import load_tokenizer
from miwv_trainer.storage.stored_round import StoredRound

SELECTIONS: list[dict[str, Any]] = [
    {"score": "ifd"},
    {"score": "ifd", "loss_band": [0.0, 0.7]},
    {"score": "ifd", "loss_band": [0.0, 0.5]},
    {"score": "zero_shot_loss"},
    {"score": "zero_shot_loss", "loss_band": [0.3, 0.7]},
    {"score": "miwv"},
    {"score": "miwv", "selection_budget": "tokens"},
    {"score": "miwv", "loss_band": [0.0, 0.6]},
    {"score": "low_miwv"},
    {"score": "influence"},
    {"preset": "guarded"},
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--comparison", type=Path, required=True, help="the folder of a comparison")
    folder = parser.parse_args().comparison
    arguments = read_options(folder)
    tokenizer = load_tokenizer(str(arguments.model or find_default_model()))
    assert tokenizer is not None  # The comparison had one.
    samples, _ = load_samples(arguments, tokenizer)
    rounds = read_scores(folder, samples.pool.fingerprint)
    for name, is_spoiled in samples.faults.items():
        print(f"\n{is_spoiled.mean():.0%} of {len(is_spoiled)} samples are {name}.\n")
        print("\n".join(format_shares(rounds, samples, name, arguments.fraction)))
        print()
        print("\n".join(format_separation(rounds, is_spoiled)))


def read_options(folder: Path) -> argparse.Namespace:
    """
    The options that a comparison was made by.

    Raises:
        SystemExit: the folder holds none, or its pool was not spoiled.
    """
    with explain(f"--comparison {folder}"):
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["settings"]
    if not settings["corrupt"] and settings["known"] is None:
        raise SystemExit(f"--comparison {folder}: its pool was made without --corrupt and --known.")
    return argparse.Namespace(**{**vars(make_parser(None).parse_args([])), **settings})


def read_scores(folder: Path, fingerprint: str) -> list[StoredRound]:
    """
    The first round of each scoring of the pool.

    Raises:
        SystemExit: none is of this pool.
    """
    stored = [read_rounds(each.parent)[0] for each in sorted(folder.glob("scores/*/miwv"))]
    found = [each for each in stored if each.summary["fingerprint"]["pool"] == fingerprint]
    if not found:
        raise SystemExit(f"--comparison {folder}: no scores of the pool that its options make.")
    return found


def format_shares(rounds: list[StoredRound], samples: Samples, fault: str, fraction: float) -> list[str]:
    """A line for each selection that the stored losses allow: its samples, and how many of them are spoiled."""
    lines = [f"| selection | samples | {fault} |", "| --- | ---: | ---: |"]
    for values in SELECTIONS:
        name = ", ".join(f"{option}={json.dumps(value)}" for option, value in values.items())
        selection = select_from_any(rounds, {"fraction": fraction, "embedder": "tfidf", **values})
        found = ("", "not stored") if selection is None else (len(selection), f"{samples.share(fault, selection):.0%}")
        lines.append(f"| `{name}` | {found[0]} | {found[1]} |")
    return lines


def select_from_any(rounds: list[StoredRound], values: Mapping[str, Any]) -> np.ndarray | None:
    """The selection by the first round that holds the losses it needs; None if none does."""
    for stored in rounds:
        try:
            return select_again(stored, MIWVConfig(**values)).selection
        except (ValueError, FileNotFoundError):  # Losses or embeddings that this round does not have.
            continue
    return None


def format_separation(rounds: list[StoredRound], is_spoiled: np.ndarray) -> list[str]:
    """A line for each column: the area under the curve by which it tells spoiled samples; 0.5 is chance."""
    lines = ["| column | area under the curve |", "| --- | ---: |"]
    for column in ("zero_shot_loss", "one_shot_loss", "miwv"):
        values = next((v for v in (each.column(column) for each in rounds) if np.isfinite(v).any()), None)
        if values is not None:
            lines.append(f"| `{column}` | {measure_separation(values, is_spoiled):.2f} |")
    ifd = next((each.column("score") for each in rounds if each.summary["config"]["score"] == "ifd"), None)
    if ifd is not None:
        lines.append(f"| IFD | {measure_separation(ifd, is_spoiled):.2f} |")
    return lines


def measure_separation(values: np.ndarray, is_spoiled: np.ndarray) -> float:
    """The chance that a spoiled sample has a higher value than another, ties as a half."""
    is_known = np.isfinite(values)
    return float(roc_auc_score(is_spoiled[is_known], values[is_known]))


if __name__ == "__main__":
    main()
