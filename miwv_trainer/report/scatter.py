"""Samples by two of their numbers, as points or counted in cells."""

from dataclasses import replace

import numpy as np

from miwv_trainer.report.layers import Cells, Chart, Layer, Points

# Thousands of points hide each other and take 13 bytes of the page each. More than these are counted in cells instead.
MOST_POINTS_OF_OTHERS = 1_500
MOST_POINTS_OF_SELECTED = 5_000
# Up to this many points are drawn as large dots: a chart of forty samples in the small ones looks empty.
MOST_LARGE_POINTS = 300
CELLS = (56, 40)
# An axis leaves out this share of the values at either end, so that a few outliers do not crush all the others.
TAIL = 0.001


def add_samples(chart: Chart, x: np.ndarray, y: np.ndarray, is_selected: np.ndarray) -> Chart:
    """
    The chart with its samples below its other layers: the selected as points, over the others as points or cells.

    Args:
        chart: Axes, titles and lines.
        x: `(N,)`, NaN where a sample has no number; `y` likewise.
        y: `(N,)`.
        is_selected: `(N,)` bool.
    """
    has_both = np.isfinite(x) & np.isfinite(y)
    is_outside = has_both & ((x < chart.x.low) | (x > chart.x.high) | (y < chart.y.low) | (y > chart.y.high))
    x, y = np.clip(x, chart.x.low, chart.x.high), np.clip(y, chart.y.low, chart.y.high)
    others, selected = np.flatnonzero(has_both & ~is_selected), np.flatnonzero(has_both & is_selected)
    is_large = len(others) + len(selected) <= MOST_LARGE_POINTS
    layers: list[Layer] = []
    caption = chart.caption
    if len(others) > MOST_POINTS_OF_OTHERS:
        layers.append(_count_in_cells(chart, x[others], y[others]))
        caption += " A darker cell holds more samples that are not selected."
    elif len(others):
        layers.append(Points(x[others], y[others], "plain", "others", is_large))
    if len(selected) > MOST_POINTS_OF_SELECTED:
        caption += f" {MOST_POINTS_OF_SELECTED:,} of {len(selected):,} selected samples are drawn."
        # Drawn with a fixed seed: the same rounds give the same page.
        selected = np.random.default_rng(0).choice(selected, MOST_POINTS_OF_SELECTED, replace=False)
    # Last, so that the selected are never hidden by the others.
    layers.append(Points(x[selected], y[selected], "selected", "selected", is_large))
    caption += describe_outliers(int(is_outside.sum()), "are drawn at the edge")
    return replace(chart, caption=caption, layers=[*layers, *chart.layers])


def _count_in_cells(chart: Chart, x: np.ndarray, y: np.ndarray) -> Cells:
    x_edges = (np.geomspace if chart.x.is_log else np.linspace)(chart.x.low, chart.x.high, CELLS[0] + 1)
    y_edges = np.linspace(chart.y.low, chart.y.high, CELLS[1] + 1)
    # Rounding puts the outermost edges a little inside the axis: without this, samples at its ends would not count.
    x, y = np.clip(x, x_edges[0], x_edges[-1]), np.clip(y, y_edges[0], y_edges[-1])
    return Cells(x_edges, y_edges, np.histogram2d(x, y, (x_edges, y_edges))[0], "others")


def find_range(values: np.ndarray) -> tuple[float, float]:
    """The ends of an axis for these finite values: all of them, or all but the tails where there are 1,000 or more."""
    values = values.astype(np.float64)
    low, high = (values.min(), values.max()) if len(values) < 1 / TAIL else np.quantile(values, (TAIL, 1 - TAIL))
    margin = 0.03 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def describe_outliers(count: int, fate: str) -> str:
    """A sentence for a caption; empty where there are none."""
    return f" {count:,} samples beyond the axes {fate}." if count else ""
