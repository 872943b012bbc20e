"""Charts as PNG files, where matplotlib is installed and where it is not."""

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest

from miwv_trainer.cli.main import main
from miwv_trainer.report.charts import NAMES as KNOWN
from miwv_trainer.report.charts import (
    build_charts,
)
from miwv_trainer.report.png import write_pngs
from tests.helpers.rounds import highest, made_columns, write_round

NAMES = ["scores", "distribution", "losses", "length", "similarity", "overlap", "movement", "between-rounds", "cost"]


def test_pngs_hold_a_picture_of_each_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    columns = made_columns(2_000)
    own = {"score": "longest"}  # with a chart of its own, beside those of MIWV
    rounds = [write_round(tmp_path, columns, highest(columns["miwv"], 40 + r), r, **own) for r in range(2)]
    paths = write_pngs(build_charts(rounds)[0], tmp_path / "report")
    assert [path.name for path in paths] == [f"{name}.png" for name in NAMES] and tuple(NAMES) == KNOWN
    assert sorted((tmp_path / "report").iterdir()) == sorted(paths)  # and no temporary file
    fewer = write_pngs(build_charts(rounds[:1])[0], tmp_path / "report")
    assert sorted((tmp_path / "report").iterdir()) == sorted(fewer) != sorted(paths)
    for path in fewer:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5_000


def test_without_matplotlib_the_page_is_written_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    write_round(tmp_path, made_columns(20), [1, 2])
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["report", "--run", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"page: {tmp_path / 'report' / 'index.html'}" in printed
    assert "need matplotlib: pip install 'miwv-trainer[report]'" in printed
    assert "<svg" in (tmp_path / "report" / "index.html").read_text()
    assert not list((tmp_path / "report").glob("*.png"))
