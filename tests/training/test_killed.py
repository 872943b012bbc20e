"""Killed with SIGKILL anywhere, a run ends as if nothing had happened. Slow: 30 points, most on one process."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.launch import ROOT, fork_ranks, run

pytestmark = pytest.mark.slow

POINTS_ALONE, SHARES_ON_TWO = 26, (0.1, 0.4, 0.6, 0.9)
SCRIPT = str(ROOT / "tests" / "launched" / "killed.py")
STEPS = 9


def result(output: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads(output.with_name(f"{output.name}-rank-{rank}.json").read_text())


def check_same(resumed: dict[str, Any], whole: dict[str, Any]) -> None:
    """Order compared as it was, weights and scores to the bit."""
    first = int(resumed["checkpoint"].removeprefix("checkpoint-")) if resumed["checkpoint"] else 0
    assert resumed["trained"] == [batch for batch in whole["trained"] if batch[0] >= first]
    for name in ("selections", "scores", "weights"):
        assert resumed[name] == whole[name], name


def test_killed_at_26_points_of_one_process_a_run_ends_the_same(tmp_path: Path) -> None:
    output = tmp_path / "runs"
    done = run([sys.executable, SCRIPT, str(output), str(POINTS_ALONE)], timeout=1500)
    assert done.returncode == 0, done.stderr[-4000:]
    statuses = json.loads((output / "statuses.json").read_text())
    whole = result(output / "whole")
    assert statuses.pop("whole") == [0]
    assert len({batch[0] for batch in whole["trained"]}) == STEPS and len(whole["selections"]) == 3
    assert len({tuple(selection) for selection in whole["selections"]}) > 1
    phases: Counter[str] = Counter()
    resumed_from: Counter[str] = Counter()
    for name, (killed, resumed, kill_at) in statuses.items():
        assert (killed, resumed) == (-9, 0), (name, kill_at, done.stderr[-3000:])
        found = result(output / name)
        check_same(found, whole)
        phases[(output / f"{name}.killed").read_text().split(":")[0]] += 1
        resumed_from[found["checkpoint"]] += 1
        assert not list((output / name / "miwv").glob("**/.*")), name  # nothing half written, no journal left
    assert set(phases) == {"embedding", "scoring", "training", "saving", "rescoring"} and min(phases.values()) >= 5
    print(f"\n{dict(phases)} resumed from {dict(resumed_from)}")


def on_two(output: Path, kill_at: int, score: str) -> subprocess.CompletedProcess[str]:
    return fork_ranks(2, SCRIPT, output, "--alone", str(kill_at), score)


@pytest.mark.parametrize("score", ["miwv", "column", "function", "draws"])
def test_killed_at_four_points_of_two_processes_a_run_ends_the_same(score: str, tmp_path: Path) -> None:
    done = on_two(tmp_path / "whole", 0, score)
    assert done.returncode == 0, done.stderr[-4000:]
    whole = [result(tmp_path / "whole", rank) for rank in range(2)]
    assert [(each["rank"], each["world_size"], each["wrapper"]) for each in whole] == [
        (0, 2, "DistributedDataParallel"), (1, 2, "DistributedDataParallel"),
    ]  # fmt: skip
    for share in SHARES_ON_TWO:
        output = tmp_path / f"killed-{share}"
        killed = on_two(output, max(1, int(share * len(whole[1]["phases"]))), score)
        assert killed.returncode != 0 and output.with_suffix(".killed").is_file()
        again = on_two(output, 0, score)
        assert again.returncode == 0, again.stderr[-4000:]
        for rank in range(2):
            check_same(result(output, rank), whole[rank])
