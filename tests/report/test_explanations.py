"""Why a sample was selected or was not, on pools small enough to tell by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miwv_trainer.config import MIWVConfig
from miwv_trainer.report.explanations import explain_selection
from miwv_trainer.rounds.inputs import read_measured
from miwv_trainer.selection.choose import choose
from miwv_trainer.selection.scores import get_draw_seed
from tests.helpers.rounds import made_columns, write_round


def make_pool(miwv: list[float], **others: list[Any]) -> dict[str, np.ndarray]:
    columns = made_columns(len(miwv))
    columns["miwv"] = np.asarray(miwv, dtype=np.float32)
    columns["zero_shot_loss"] = np.ones(len(miwv), dtype=np.float32)
    columns["one_shot_loss"] = columns["zero_shot_loss"] + columns["miwv"]
    columns["score"] = columns["miwv"]
    for name, values in others.items():
        columns[name] = np.asarray(values, dtype=columns[name].dtype)
    return columns


def explain(tmp_path: Path, columns: dict[str, np.ndarray], selection: list[int], number: int = 0, **config: Any):
    found = explain_selection(write_round(tmp_path, columns, selection, number, **config))
    return [found.phrases[code] for code in found.codes], found.ranks.tolist()


def test_the_selected_and_those_below_the_threshold(tmp_path: Path) -> None:
    phrases, ranks = explain(tmp_path, make_pool([0.1, 0.9, 0.5, -0.5]), [1])
    assert phrases == ["below the threshold", "selected", "below the threshold", "below the threshold"]
    assert ranks == [3, 1, 2, 4]


def test_the_guard_that_left_a_sample_out(tmp_path: Path) -> None:
    columns = make_pool([0.9, 0.8, 0.7, 0.6], response_tokens=[1, 9, 9, 9], similarity=[0.9, 0.1, 0.9, 0.9])
    phrases, ranks = explain(tmp_path, columns, [2], min_response_tokens=3, min_similarity=0.5)
    assert phrases == [
        "left out by min_response_tokens=3",
        "left out by min_similarity=0.5",
        "selected",
        "below the threshold",
    ]
    assert ranks == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"diversity": "mmr"}, "passed over by diversity=mmr"),
        ({"max_selected_similarity": 0.8}, "too similar to a selected sample, max_selected_similarity=0.8"),
        ({"group_column": "source"}, "below the threshold of its source"),
    ],
)
def test_a_sample_that_ranks_above_a_selected_one(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    phrases, _ = explain(tmp_path, make_pool([0.9, 0.8, 0.7, 0.6]), [0, 2], **config)
    assert phrases == ["selected", words, "selected", "below the threshold"]


def test_why_a_sample_has_no_score(tmp_path: Path) -> None:
    nothing = float("nan")
    columns = make_pool([0.9, *[nothing] * 5], prompt_tokens=[5, 0, 5, 500, 5, 5], response_tokens=[5, 5, 0, 20, 5, 5])
    columns["exemplar"][4] = -1
    phrases, ranks = explain(tmp_path, columns, [0])
    assert phrases[1:] == [
        "unscorable: no prompt",
        "unscorable: no response",
        "unscorable: no room in the context of 512",
        "unscorable: no exemplar",
        "unscorable: no finite loss",
    ]
    assert ranks == [1, 0, 0, 0, 0, 0]


def test_a_sample_that_no_budget_has_reached_yet(tmp_path: Path) -> None:
    columns = make_pool([0.9, float("nan")], age=[2, -1])
    assert explain(tmp_path, columns, [0], number=1, rescore_budget=0.5)[0] == ["selected", "not scored yet"]


@pytest.mark.parametrize(
    "config",
    [
        {"score": "random", "sampler_seed": 5},
        {"score": "longest"},
        {"score": "low_miwv"},
        {"score": "residual_miwv", "length_bands": 3},
        {"score": "zero_shot_loss", "quantile_band": [0.1, 0.9]},
        {"selection_budget": "tokens", "loss_band": [0.2, 0.8]},
    ],
    ids=str,
)
def test_ranks_are_in_the_order_in_which_a_round_chooses(config: dict[str, Any], tmp_path: Path) -> None:
    """Whatever was ranked by: the selected stand before all others, and counts agree with the round's own."""
    wanted = MIWVConfig(fraction=0.1, **config)
    columns = made_columns(300)
    measured = read_measured(write_round(tmp_path / "before", columns, [0]), get_draw_seed(wanted, 0))
    choice = choose(measured, np.ones(300, dtype=bool), wanted)
    found = explain_selection(write_round(tmp_path, columns, choice.selection, **config))
    count = len(choice.selection)
    assert sorted(found.ranks[choice.selection].tolist()) == list(range(1, count + 1))
    phrases = [found.phrases[code] for code in found.codes]
    assert phrases.count("selected") == count
    for guard, left_out in choice.left_out.items():
        assert phrases.count(f"left out by {guard}") == left_out
