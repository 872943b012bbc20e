"""The quickstart, run as a user does."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.helpers.forks import PYTHON, fork_python
from tests.helpers.launch import ROOT, run

EXAMPLES = ROOT / "examples"


def quickstart(output: Path, *options: str, threads: int = 1) -> str:
    command = [str(EXAMPLES / "quickstart.py"), "--output", str(output), *options]
    done = fork_python(*command) if threads == 1 else run([PYTHON, *command], timeout=900, threads=threads)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def check_quickstart(printed: str, output: Path) -> None:
    before, after = map(float, re.search(r"held-out response loss: ([\d.]+) before, ([\d.]+) after", printed).groups())
    assert before > 0 and after > 0
    rounds = [pq.read_table(output / "miwv" / f"round-{number:03d}" / "scores.parquet") for number in range(2)]
    chosen = [set(table.filter(table["selected"])["index"].to_pylist()) for table in rounds]
    assert f"{len(chosen[0] & chosen[1])} of them selected in round 0 too" in printed
    miwv = rounds[0]["miwv"].to_pylist()
    shown = re.findall(r"^ +(\d+) +[\d.]+ +[\d.]+ +(-?[\d.]+)  ", printed, flags=re.MULTILINE)
    assert [float(value) for _, value in shown] == pytest.approx(
        sorted(miwv, reverse=True)[:5] + sorted(miwv, reverse=True)[-2:], abs=1e-3
    )
    assert (output / "adapter_model.safetensors").is_file()
