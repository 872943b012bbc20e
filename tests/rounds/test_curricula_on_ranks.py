"""Every score and guard selects the same samples on one and on two processes."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.launch import ROOT, launch, run
from tests.launched.curricula import COUNT, SETTINGS

SCRIPT = ROOT / "tests" / "launched" / "curricula.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """By the number of processes, what each rank has found."""
    results = {}
    for processes in (1, 2):
        output = tmp_path_factory.mktemp(f"on-{processes}")
        arguments = (str(output),)
        done = (
            run([sys.executable, str(SCRIPT), *arguments])
            if processes == 1
            else launch("ddp", processes, SCRIPT, *arguments)
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        results[processes] = [read(output, rank) for rank in range(processes)]
        assert [(each["rank"], each["world_size"]) for each in results[processes]] == [
            (rank, processes) for rank in range(processes)
        ]
    return results


def read(output: Path, rank: int) -> dict[str, Any]:
    return json.loads((output / f"rank-{rank}.json").read_text())


@pytest.mark.parametrize("setting", SETTINGS)
def test_two_processes_select_what_one_does(setting: str, found: dict[int, list[dict[str, Any]]]) -> None:
    (alone,) = found[1]
    for rank in found[2]:
        for one, other in zip(alone[setting], rank[setting], strict=True):
            assert other["selection"] == one["selection"] and len(one["selection"])
            assert other["ages"] == one["ages"] and len(one["ages"]) == COUNT
            np.testing.assert_allclose(other["losses"], one["losses"], atol=1e-5)
            assert other["threshold"] == pytest.approx(one["threshold"], abs=1e-5)


def test_the_settings_differ_from_one_another(found: dict[int, list[dict[str, Any]]]) -> None:
    (alone,) = found[1]
    selections = {tuple(alone[setting][0]["selection"]) for setting in SETTINGS}
    assert len(selections) >= len(SETTINGS) - 4  # of a first round, budgets change nothing
    assert sum(age == 0 for age in alone["budget"][1]["ages"]) == int(0.4 * COUNT)
