"""The numbers behind a report's charts, counted again by hand."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miwv_trainer.cli.main import main
from miwv_trainer.report.charts import (
    build_charts,
    chart_costs,
    chart_distribution,
    chart_lengths,
    chart_losses,
    chart_movement,
    chart_overlaps,
)
from miwv_trainer.report.layers import Bars, Cells, Chart, Line, Points
from miwv_trainer.report.round_facts import find_miwv_threshold
from miwv_trainer.report.svg import HEIGHT, WIDTH, draw_svg
from tests.helpers.rounds import highest, made_columns, write_round

RADIUS = 3.5  # of a large dot, in the style sheet
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
        assert points.tone == "selected" and not points.is_large
    lengths = columns["response_tokens"][np.argsort(-columns["miwv"])[:200]]
    assert sorted(points.x.tolist()) == pytest.approx(sorted(lengths.tolist()))


def test_few_samples_are_points(tmp_path: Path) -> None:
    columns = made_columns(40)
    current = write_round(tmp_path, columns, [3, 5])
    others, chosen = layers(chart_losses(current), Points)
    assert (len(others.x), len(chosen.x)) == (38, 2)
    assert others.is_large and chosen.is_large and 'class="dots selected large"' in draw_svg(chart_losses(current))
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


def test_values_above_bars_are_left_out_where_they_would_touch(tmp_path: Path) -> None:
    columns = made_columns(20)
    rounds = [write_round(tmp_path, columns, [0, 1], number) for number in range(9)]
    of_before, of_first = layers(chart_overlaps(rounds[:4]), Bars)
    assert of_before.values == of_first.values == ["100", "100", "100"]
    assert [layer.values for layer in layers(chart_overlaps(rounds), Bars)] == [[], []]
    assert layers(chart_costs(rounds[:5]), Bars)[0].values == ["30.0"] * 5
    (costs,) = layers(chart_costs(rounds * 3), Bars)
    assert costs.values == []


def test_every_dot_is_whole_within_its_picture(tmp_path: Path) -> None:
    columns = made_columns(40)
    for chart in build_charts([write_round(tmp_path, columns, [3, 5], number) for number in range(2)])[0]:
        for points in layers(chart, Points):
            drawn = draw_svg(replace(chart, layers=[points]))
            places = np.asarray([list(map(float, found)) for found in re.findall(r"M([\d.]+) ([\d.]+)h0", drawn)])
            assert len(places) == len(points.x)
            assert (places > RADIUS).all() and (places < np.asarray([WIDTH, HEIGHT]) - RADIUS).all()


@pytest.mark.parametrize("score", ["random", "longest"])
def test_a_round_without_losses_says_what_it_has_not(score: str, tmp_path: Path) -> None:
    columns = made_columns(30)
    for name in ("zero_shot_loss", "one_shot_loss", "miwv", "similarity"):
        columns[name][:] = np.nan
    columns["exemplar"][:] = -1
    charts, missing = build_charts([write_round(tmp_path, columns, [4, 7], score=score)])
    assert [chart.name for chart in charts] == (["cost"] if score == "random" else ["scores", "cost"])
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
    assert [chart.name for chart in charts] == ["scores", "cost"] and "zero_shot_loss" in missing[0]
    everyone, chosen = layers(charts[0], Bars)
    assert (everyone.top.sum(), chosen.top.sum()) == (30, 2)
    assert charts[0].title == "Distribution of zero_shot_loss"


def test_samples_that_are_all_alike_can_be_drawn(tmp_path: Path) -> None:
    columns = made_columns(9)
    for name in ("zero_shot_loss", "one_shot_loss", "similarity"):
        columns[name][:] = 1.0
    columns["miwv"][:] = 0.0
    columns["response_tokens"][:] = 1
    charts, _ = build_charts([write_round(tmp_path, columns, [0])])
    for chart in charts:
        assert "nan" not in draw_svg(chart) and "inf" not in draw_svg(chart)


def test_captions_count_the_samples_beyond_the_axes(tmp_path: Path) -> None:
    columns = made_columns(4_000)
    columns["miwv"][:3] = columns["score"][:3] = 50.0
    columns["one_shot_loss"] = columns["zero_shot_loss"] + columns["miwv"]
    current = write_round(tmp_path, columns, highest(columns["miwv"], 40))
    miwv, chart = columns["miwv"], chart_distribution(current)
    beyond = int(((miwv < chart.x.low) | (miwv > chart.x.high)).sum())
    assert 3 <= beyond < 12  # of the 8 values in the two tails, those beyond the margin
    assert f" {beyond} samples beyond the axes are counted in the outermost bars." in chart.caption
    chart, loss = chart_losses(current), columns["one_shot_loss"]
    beyond = int(((loss < chart.y.low) | (loss > chart.y.high)).sum())
    assert f" {beyond} samples beyond the axes are drawn at the edge." in chart.caption
    (points,) = layers(chart, Points)
    assert points.y.max() == np.float32(chart.y.high)


def test_of_very_many_selected_samples_some_are_drawn(tmp_path: Path) -> None:
    columns = made_columns(8_000)
    chart = chart_losses(write_round(tmp_path, columns, np.arange(6_000)))
    (points,) = layers(chart, Points)
    assert len(points.x) == 5_000 and set(points.x) <= set(columns["zero_shot_loss"][:6_000].clip(chart.x.low))
    assert "5,000 of 6,000 selected samples are drawn." in chart.caption
