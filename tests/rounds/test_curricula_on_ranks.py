"""Two processes select the same samples as one does."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from miwv_trainer.distributed.world import World
from tests.helpers.launch import ROOT, launch
from tests.launched.curricula import COUNT, SETTINGS, score_settings

SCRIPT = ROOT / "tests" / "launched" / "curricula.py"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process finds."""
    return score_settings(tmp_path_factory.mktemp("alone"), World(0, 1, torch.device("cpu")))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks finds."""
    output = tmp_path_factory.mktemp("ranks")
    done = launch("ddp", 2, SCRIPT, str(output))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    results = [json.loads((output / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert [(each["rank"], each["world_size"]) for each in results] == [(0, 2), (1, 2)]
    return results


@pytest.mark.parametrize("setting", SETTINGS)
def test_two_processes_select_what_one_does(setting: str, alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for one, other in zip(alone[setting], rank[setting], strict=True):
            assert other["selection"] == one["selection"] and len(one["selection"])
            assert other["ages"] == one["ages"] and len(one["ages"]) == COUNT
            np.testing.assert_allclose(other["losses"], one["losses"], atol=1e-5)
            assert other["threshold"] == pytest.approx(one["threshold"], abs=1e-5)


def test_scores_that_differ_over_ranks_are_refused_on_all(ranks: list[dict[str, Any]]) -> None:
    for each in ranks:
        by_function, by_array = each["refused"]
        assert (
            "different scores by `score` tests.helpers.own_scores:another_on_each_rank: those of rank 1" in by_function
        )
        assert f"different scores by `score` array of shape ({COUNT},): those of rank 1 are not" in by_array


def test_the_settings_differ_from_one_another(alone: dict[str, Any]) -> None:
    selections = {tuple(alone[setting][0]["selection"]) for setting in SETTINGS}
    assert len(selections) == len(SETTINGS) - 1  # in a first round, "budget" is as "miwv"
    assert sum(age == 0 for age in alone["budget"][1]["ages"]) == int(0.4 * COUNT)
