"""The table of spoiled samples among those that each selection of a comparison's scores takes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks import spoiled
from miwv_trainer import read_rounds

EVIDENCE = Path(__file__).resolve().parents[2] / "benchmarks" / "evidence"
SWAPPED = EVIDENCE / "code_alpaca_2k_swapped"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3, 4], 1.0),
        ([4, 3, 2, 1], 0.0),
        ([2, 2, 2, 2], 0.5),
        ([1, 3, 2, 4], 0.75),  # of four pairs, only the second clean sample is above the first spoiled one
        ([1, np.nan, np.nan, 4], 1.0),
    ],
)
def test_the_separation_is_the_share_of_pairs_in_which_the_spoiled_one_is_higher(
    values: list[float], expected: float
) -> None:
    is_spoiled = np.array([False, False, True, True])
    assert spoiled.measure_separation(np.array(values, dtype=float), is_spoiled) == expected


def test_the_table_counts_the_spoiled_samples_of_the_highest_losses() -> None:
    stored = read_rounds(SWAPPED / "scores" / "lower-losses")[0]
    losses = stored.column("zero_shot_loss")
    is_spoiled = np.random.default_rng(0).random(len(losses)) < 0.3
    top = np.argsort(np.where(np.isnan(losses), np.inf, -losses), kind="stable")[:80]
    samples = cast(Any, SimpleNamespace(share=lambda name, selection: is_spoiled[selection].mean()))
    lines = spoiled.format_shares([stored], samples, "swapped", 0.1)
    assert f'| `score="zero_shot_loss"` | 80 | {is_spoiled[top].mean():.0%} |' in lines
    # This round has no losses of responses alone, and no embeddings beside it.
    assert '| `score="ifd"` |  | not stored |' in lines and '| `preset="guarded"` |  | not stored |' in lines


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (EVIDENCE / "code_alpaca_2k", "its pool was made without --corrupt and --known"),
        (EVIDENCE / "nothing", "nothing.*No such file"),
    ],
)
def test_a_folder_without_spoiled_samples_is_refused(folder: Path, message: str) -> None:
    with pytest.raises(SystemExit, match=f"--comparison .*{message}"):
        spoiled.read_options(folder)


def test_scores_of_another_pool_are_refused() -> None:
    with pytest.raises(SystemExit, match="no scores of the pool that its options make"):
        spoiled.read_scores(SWAPPED, "another")
