"""Charts as SVG elements of the page."""

import re
from importlib.resources import files
from xml.etree import ElementTree

import numpy as np
import pytest

from miwv_trainer.report.layers import Axis, Bars, Cells, Chart, Line, Points
from miwv_trainer.report.png import COLOURS
from miwv_trainer.report.scales import SHADES
from miwv_trainer.report.svg import draw_legend, draw_svg


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
    assert "<x>" in [one.text for one in root]
    (item,) = ElementTree.fromstring(draw_legend(chart))
    assert (item[0].get("class"), item[0].tail) == ("swatch round plain", "<label>")


def test_a_legend_has_a_key_for_each_layer_with_a_label_and_none_for_others() -> None:
    numbers = np.asarray([1.0])
    layers = [
        Bars(numbers, numbers, numbers, numbers, "third", "bars"),
        Cells(numbers, numbers, numbers, "cells"),
        Points(numbers, numbers, "selected"),
        Line((0, 1), (0, 1), "line", "threshold"),
    ]
    drawn = draw_legend(Chart("n", "t", "c", Axis("x", 0, 1), Axis("y", 0, 1), layers))
    keys = {item[0].tail: item[0].get("class") for item in ElementTree.fromstring(drawn)}
    assert keys == {"bars": "swatch third", "cells": "swatch plain", "line": "dash threshold"}
    assert draw_legend(Chart("n", "t", "c", Axis("x", 0, 1), Axis("y", 0, 1), [layers[2]])) == ""


def test_bars_cells_and_lines_stand_where_their_numbers_are() -> None:
    x, y = Axis("x", 0, 4), Axis("y", 0, 8)
    bars = Bars(np.asarray([1.0]), np.asarray([3.0]), np.asarray([2.0]), np.asarray([6.0]), "plain", values=["6"])
    cells = Cells(np.asarray([0.0, 2, 4]), np.asarray([0.0, 4, 8]), np.asarray([[0, 1], [0, 0]]))
    root = ElementTree.fromstring(draw_svg(Chart("n", "t", "c", x, y, [bars, cells, Line((0, 4), (8, 0))])))
    found = {one.get("class"): one for one in root}
    line = {name: float(found["line"].get(name)) for name in ("x1", "y1", "x2", "y2")}
    width, height = line["x2"] - line["x1"], line["y2"] - line["y1"]  # of the area between the axes
    left, bottom, up, wide = map(
        float, re.match(r"M([\d.]+) ([\d.]+)v-([\d.]+)h([\d.]+)", found["bars plain"].get("d")).groups()
    )
    assert left == pytest.approx(line["x1"] + width / 4, abs=1) and wide == pytest.approx(width / 2, abs=1.1)
    assert bottom == pytest.approx(line["y2"] - height / 4, abs=1) and up == pytest.approx(height / 2, abs=0.1)
    assert [one.text for one in root if one.text == "6"] == ["6", "6"]  # above the bar, and a tick
    (cell,) = [one.get("d") for name, one in found.items() if name and name.startswith("cells")]
    left, top, wide, high = map(float, re.match(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)", cell).groups())
    assert (left, top) == pytest.approx((line["x1"], line["y1"]), abs=0.1)  # of the first column, the upper cell
    assert (wide, high) == pytest.approx((width / 2, height / 2), abs=0.1)


def test_the_style_sheet_knows_every_tone_and_shade() -> None:
    style = (files("miwv_trainer.report") / "templates" / "report.css").read_text()
    for tone, colour in COLOURS.items():
        name = "selected" if tone == "threshold" else tone
        assert f"--{name}: {colour};" in style.partition("@media")[0]  # the PNGs have the page's light colours
    assert {f".shade{shade} " for shade in range(1, SHADES + 1)} <= set(re.findall(r"\.shade\d ", style))
