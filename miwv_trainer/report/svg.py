"""Draws a chart as an SVG element for the page, and its legend.

This is written by hand instead of by matplotlib, so that the page needs no optional package and its charts follow the
reader's light or dark scheme. A scatter plot of 6,000 samples takes 20 to 40 kB.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape

import numpy as np

from miwv_trainer.report.layers import Axis, Bars, Cells, Chart, Layer, Line, Points
from miwv_trainer.report.scales import SHADES, grade_counts, place_ticks

# Of the picture and of the margins around its axes, in the units of its viewBox. The margins hold half a dot, so that
# the dots of extreme samples are whole.
WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 52
Scale = Callable[[float], float]


@dataclass(frozen=True)
class _Scales:
    """Functions from a chart's numbers to places in its picture."""

    x: Scale
    y: Scale


def draw_svg(chart: Chart) -> str:
    """The chart as an `<svg>` element without colours: classes name the tones, the page's style sheet colours them."""
    scales = _Scales(_make_scale(chart.x, LEFT, WIDTH - RIGHT), _make_scale(chart.y, HEIGHT - BOTTOM, TOP))
    label = f"{escape(chart.title)}: {escape(chart.caption)}"
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    layers = [_draw_layer(layer, scales) for layer in chart.layers]
    return "".join([head, _draw_axes(chart, scales), *layers, "</svg>"])


def draw_legend(chart: Chart) -> str:
    """
    Keys and labels of the layers as a list in HTML; empty where no layer has a label.

    It is no part of the SVG, which does not measure its text: placed by a guessed width of letters, the labels touched
    each other in the fonts of phones.
    """
    items = [f'<li><i class="{kind}"></i>{escape(label)}</li>' for kind, label in _list_labels(chart)]
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def _make_scale(axis: Axis, start: float, end: float) -> Scale:
    transform: Callable[[float], float] = math.log if axis.is_log else float
    low, high = transform(axis.low), transform(axis.high)
    return lambda value: start + (transform(value) - low) / (high - low) * (end - start)


def _draw_axes(chart: Chart, scales: _Scales) -> str:
    base, end = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value, text in place_ticks(chart.y):
        y = scales.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{end}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for value, text in place_ticks(chart.x):
        x = scales.x(value)
        parts.append(f'<path class="grid" d="M{x:.1f} {base}v4"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{escape(text)}</text>')
    middle = (LEFT + end) / 2
    turned = f"translate(14 {(TOP + base) / 2}) rotate(-90)"
    parts += [
        f'<path class="axis" d="M{LEFT} {base}H{end}"/>',
        f'<text class="label" x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(chart.x.label)}</text>',
        f'<text class="label" transform="{turned}" text-anchor="middle">{escape(chart.y.label)}</text>',
    ]
    return "".join(parts)


def _draw_layer(layer: Layer, scales: _Scales) -> str:
    match layer:
        case Bars():
            return _draw_bars(layer, scales)
        case Points():
            return _draw_points(layer, scales)
        case Cells():
            return _draw_cells(layer, scales)
        case Line():
            return _draw_line(layer, scales)


def _draw_bars(layer: Bars, scales: _Scales) -> str:
    shapes, texts = [], []
    for left, right, bottom, top in zip(layer.left, layer.right, layer.bottom, layer.top, strict=True):
        if top != bottom:
            # A gap of one unit between bars, which very narrow ones do without.
            width = max(0.5, scales.x(right) - scales.x(left) - 1)
            height = scales.y(bottom) - scales.y(top)
            shapes.append(f"M{scales.x(left) + 0.5:.1f} {scales.y(bottom):.1f}v{-height:.2f}h{width:.1f}v{height:.2f}z")
    for bar, text in enumerate(layer.values):
        middle = (scales.x(layer.left[bar]) + scales.x(layer.right[bar])) / 2
        above = scales.y(layer.top[bar]) - 5
        texts.append(f'<text x="{middle:.1f}" y="{above:.1f}" text-anchor="middle">{escape(text)}</text>')
    return f'<path class="bars {layer.tone}" d="{"".join(shapes)}"/>' + "".join(texts)


def _draw_points(layer: Points, scales: _Scales) -> str:
    """One path of lines without length, which round caps show as dots: a third of the bytes that circles take."""
    dots = "".join(f"M{scales.x(x):.1f} {scales.y(y):.1f}h0" for x, y in zip(layer.x, layer.y, strict=True))
    size = " large" if layer.is_large else ""
    return f'<path class="dots {layer.tone}{size}" d="{dots}"/>'


def _draw_cells(layer: Cells, scales: _Scales) -> str:
    """One path for each shade."""
    # Edges are scaled once and not per cell: there are 2,240 cells, most of them empty.
    shades = grade_counts(layer.counts)
    # Rounded here as below: a cell as high as the unrounded edges say leaves a white line below it.
    columns = [round(scales.x(edge), 1) for edge in layer.x_edges]
    rows = [round(scales.y(edge), 1) for edge in layer.y_edges]
    parts = []
    for shade in range(1, SHADES + 1):
        shape = "".join(
            f"M{columns[i]:.1f} {rows[j + 1]:.1f}h{columns[i + 1] - columns[i]:.1f}v{rows[j] - rows[j + 1]:.1f}"
            f"h{columns[i] - columns[i + 1]:.1f}z"
            for i, j in np.argwhere(shades == shade)
        )
        if shape:
            parts.append(f'<path class="cells shade{shade}" d="{shape}"/>')
    return "".join(parts)


def _draw_line(layer: Line, scales: _Scales) -> str:
    (x1, x2), (y1, y2) = map(scales.x, layer.x), map(scales.y, layer.y)
    return f'<line class="{layer.tone}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _list_labels(chart: Chart) -> Iterator[tuple[str, str]]:
    """The classes of the key and the label of each layer that has a label."""
    for layer in chart.layers:
        match layer:
            case Line():
                key = f"dash {layer.tone}"
            case Points():
                key = f"swatch round {layer.tone}"
            case Bars():
                key = f"swatch {layer.tone}"
            case Cells():
                key = "swatch plain"
        if layer.label:
            yield key, layer.label
