"""The numbers behind a report's charts, counted again by hand, and their drawings."""

import builtins
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from miwv_trainer.cli.main import main
from miwv_trainer.report.charts import NAMES as KNOWN
from miwv_trainer.report.charts import (
    build_charts,
    chart_costs,
    chart_distribution,
    chart_lengths,
    chart_losses,
    chart_movement,
    chart_overlaps,
)
from miwv_trainer.report.layers import Axis, Bars, Cells, Chart, Line, Points
from miwv_trainer.report.png import write_pngs
from miwv_trainer.report.round_facts import find_miwv_threshold
from miwv_trainer.report.scales import grade_counts, place_ticks
from miwv_trainer.report.svg import draw_svg
from tests.helpers.rounds import highest, made_columns, write_round

NAMES = ["distribution", "losses", "length", "similarity", "overlap", "movement", "between-rounds", "cost"]


def layers(chart: Chart, kind: type) -> list[Any]:
    return [layer for layer in chart.layers if isinstance(layer, kind)]


def test_the_histogram_counts_every_sample_once(tmp_path: Path) -> None:
    columns = made_columns(5_000)
    columns["miwv"][7] = 100.0  # far beyond the axis
    columns["miwv"][8] = np.nan
    chart = chart_distribution(write_round(tmp_path, columns, highest(columns["miwv"], 250)))
    everyone, chosen = layers(chart, Bars)
    assert everyone.top.sum() == 4_999 and chosen.top.sum() == 250
    miwv = columns["miwv"]
    inside = (miwv >= everyone.left[20]) & (miwv < everyone.right[20])
    assert everyone.top[20] == inside.sum() > 0
    assert everyone.right[-1] < 100
    limit = np.sort(miwv[~np.isnan(miwv)])[-250]
    assert layers(chart, Line)[0].x == (pytest.approx(limit), pytest.approx(limit))


def test_the_threshold_is_where_the_selection_ends(tmp_path: Path) -> None:
    columns = made_columns(50)
    lowest = np.argsort(columns["miwv"])[:5]
    assert find_miwv_threshold(write_round(tmp_path, columns, lowest, score="low_miwv")) == pytest.approx(
        float(np.sort(columns["miwv"])[4])
    )
    assert find_miwv_threshold(write_round(tmp_path, columns, [1, 2], 1, score="longest")) is None


def test_many_samples_are_counted_in_cells_and_the_selected_drawn(tmp_path: Path) -> None:
    columns = made_columns(4_000)
    current = write_round(tmp_path, columns, highest(columns["miwv"], 200))
    for chart in (chart_losses(current), chart_lengths(current)):
        (cells,), (points,) = layers(chart, Cells), layers(chart, Points)
        assert cells.counts.sum() == 3_800 and len(points.x) == 200
        assert points.tone == "selected"
    lengths = columns["response_tokens"][np.argsort(-columns["miwv"])[:200]]
    assert sorted(points.x.tolist()) == pytest.approx(sorted(lengths.tolist()))


def test_few_samples_are_points(tmp_path: Path) -> None:
    columns = made_columns(40)
    others, chosen = layers(chart_losses(write_round(tmp_path, columns, [3, 5])), Points)
    assert (len(others.x), len(chosen.x)) == (38, 2)
    np.testing.assert_allclose(chosen.x, columns["zero_shot_loss"][[3, 5]])
    np.testing.assert_allclose(chosen.y, columns["one_shot_loss"][[3, 5]])


def test_overlap_and_movement_of_three_rounds(tmp_path: Path) -> None:
    columns = made_columns(20)
    selections = ([0, 1, 2, 3], [0, 1, 2, 9], [9, 10, 11, 0])
    rounds = [write_round(tmp_path, columns, selection, number) for number, selection in enumerate(selections)]
    of_before, of_first = layers(chart_overlaps(rounds), Bars)
    assert of_before.top.tolist() == [75, 50] and of_first.top.tolist() == [75, 25]
    stayed, entered, left = layers(chart_movement(rounds), Bars)
    assert stayed.top.tolist() == [3, 2]
    assert (entered.top - entered.bottom).tolist() == [1, 2]
    assert left.bottom.tolist() == [-1, -2]
    assert layers(chart_costs(rounds), Bars)[0].top.tolist() == [30, 30, 30]
    assert [chart.name for chart in build_charts(rounds)[0]] == NAMES


@pytest.mark.parametrize("score", ["random", "longest"])
def test_a_round_without_losses_says_what_it_has_not(score: str, tmp_path: Path) -> None:
    columns = made_columns(30)
    for name in ("zero_shot_loss", "one_shot_loss", "miwv", "similarity"):
        columns[name][:] = np.nan
    columns["exemplar"][:] = -1
    charts, missing = build_charts([write_round(tmp_path, columns, [4, 7], score=score)])
    assert [chart.name for chart in charts] == ["cost"]
    assert missing[0] == f"Round 0 has no MIWV: its score is {score}. Charts of MIWV are left out."
    assert main(["report", "--run", str(tmp_path)]) == 0


def test_a_round_of_which_no_loss_is_finite_says_so(tmp_path: Path) -> None:
    columns = made_columns(30)
    for name in ("zero_shot_loss", "one_shot_loss", "miwv"):
        columns[name][:] = np.nan
    _, missing = build_charts([write_round(tmp_path, columns, [4, 7])])
    assert missing[0].startswith("Round 0 has no MIWV: not one of its samples has two finite losses. Charts")


def test_zero_shot_losses_alone_make_no_chart_of_miwv(tmp_path: Path) -> None:
    columns = made_columns(30)
    for name in ("one_shot_loss", "miwv"):
        columns[name][:] = np.nan
    charts, missing = build_charts([write_round(tmp_path, columns, [4, 7], score="zero_shot_loss")])
    assert [chart.name for chart in charts] == ["cost"] and "zero_shot_loss" in missing[0]


def test_samples_that_are_all_alike_can_be_drawn(tmp_path: Path) -> None:
    columns = made_columns(9)
    for name in ("zero_shot_loss", "one_shot_loss", "similarity"):
        columns[name][:] = 1.0
    columns["miwv"][:] = 0.0
    columns["response_tokens"][:] = 1
    charts, _ = build_charts([write_round(tmp_path, columns, [0])])
    for chart in charts:
        assert "nan" not in draw_svg(chart) and "inf" not in draw_svg(chart)


def test_ticks_are_round_numbers_within_the_axis() -> None:
    assert [text for _, text in place_ticks(Axis("", -0.31, 0.52))] == ["-0.2", "0.0", "0.2", "0.4"]
    assert [text for _, text in place_ticks(Axis("", 0, 9_000))] == ["0", "2,000", "4,000", "6,000", "8,000"]
    assert [text for _, text in place_ticks(Axis("", 3, 150, is_log=True))] == ["5", "10", "20", "50", "100"]
    assert [text for _, text in place_ticks(Axis("", 1, 2_000, is_log=True))] == ["1", "10", "100", "1,000"]


def test_shades_grow_with_the_logarithm_of_the_count() -> None:
    shades = grade_counts(np.asarray([[0, 1, 3], [10, 100, 1000]]))
    assert shades.tolist() == [[0, 1, 2], [2, 4, 5]]  # ceil(5 log(1 + n) / log(1001))


def test_an_svg_places_a_point_where_its_axes_say_and_escapes_words() -> None:
    points = Points(np.asarray([0.0, 10.0]), np.asarray([0.0, 10.0]), "plain", "<label>")
    chart = Chart("n", "<t>&", '"', Axis("<x>", 0, 10), Axis("y", 0, 10), [points])
    drawn = draw_svg(chart)
    root = ElementTree.fromstring(drawn)
    dots = next(one for one in root if one.get("class") == "dots plain").get("d")
    (left, bottom), (right, top) = re.findall(r"M([\d.]+) ([\d.]+)h0", dots)
    _, _, width, height = map(float, root.get("viewBox").split())
    assert 0 < float(left) < 0.2 * width and 0.9 * width < float(right) < width
    assert 0 < float(top) < 0.2 * height and 0.8 * height < float(bottom) < height
    assert "<x>" in [one.text for one in root] and "<label>" in [one.text for one in root]


def test_pngs_hold_a_picture_of_each_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    columns = made_columns(2_000)
    rounds = [write_round(tmp_path, columns, highest(columns["miwv"], 40 + r), r) for r in range(2)]
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
