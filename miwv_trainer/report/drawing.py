"""Draws charts: as SVG for the page, and with matplotlib as PNG."""

import math
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from miwv_trainer.report.charts import NAMES, Axis, Bars, Cells, Chart, Line, Points
from miwv_trainer.storage.atomic import atomic_path

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 52
SHADES = 5
COLOURS = {"plain": "#8294b4", "selected": "#d9480f", "third": "#5b3fa8", "line": "#444b59", "threshold": "#d9480f"}
Place = Callable[[float], float]


def svg(chart: Chart) -> str:
    """The chart as an `<svg>` element without colours of its own: classes name the tones."""
    x, y = _places(chart)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}: {escape(chart.caption)}">'
    ]
    parts += [_grid(chart, x, y)]
    for layer in chart.layers:
        match layer:
            case Bars():
                parts.append(_bars(layer, x, y))
            case Points():
                spots = "".join(f"M{x(a):.1f} {y(b):.1f}h0" for a, b in zip(layer.x, layer.y, strict=True))
                parts.append(f'<path class="dots {layer.tone}" d="{spots}"/>')
            case Cells():
                parts += _cells(layer, x, y)
            case Line():
                ends = f'x1="{x(layer.x[0]):.1f}" y1="{y(layer.y[0]):.1f}" x2="{x(layer.x[1]):.1f}" '
                parts.append(f'<line class="{layer.tone}" {ends}y2="{y(layer.y[1]):.1f}"/>')
    return "".join([*parts, _legend(chart), "</svg>"])


def ticks(axis: Axis, count: int = 6) -> list[tuple[float, str]]:
    """Positions of at most about `count` round numbers on an axis, and their labels."""
    if axis.ticks:
        return list(axis.ticks)
    if axis.is_log:
        low, high = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
        steps = (1, 2, 5) if axis.high / axis.low <= 300 else (1,)
        values = [step * 10**power for power in range(low, high + 1) for step in steps]
        return [(value, f"{value:,}") for value in values if axis.low <= value <= axis.high]
    rough = (axis.high - axis.low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
    return [(number * step, f"{number * step + 0.0:,.{digits}f}") for number in range(first, last + 1)]


def _places(chart: Chart) -> tuple[Place, Place]:
    """Functions from the chart's numbers to places in the picture."""

    def scaled(axis: Axis, start: float, end: float) -> Place:
        change: Callable[[float], float] = math.log if axis.is_log else float
        low, high = change(axis.low), change(axis.high)
        return lambda value: start + (change(value) - low) / (high - low) * (end - start)

    return scaled(chart.x, LEFT, WIDTH - RIGHT), scaled(chart.y, HEIGHT - BOTTOM, TOP)


def _grid(chart: Chart, x: Place, y: Place) -> str:
    base, end = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value, text in ticks(chart.y):
        parts.append(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{end}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y(value) + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for value, text in ticks(chart.x):
        parts.append(f'<path class="grid" d="M{x(value):.1f} {base}v4"/>')
        parts.append(f'<text x="{x(value):.1f}" y="{base + 18}" text-anchor="middle">{escape(text)}</text>')
    middle = (LEFT + end) / 2
    parts.append(f'<path class="axis" d="M{LEFT} {base}H{end}"/>')
    parts.append(
        f'<text class="label" x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(chart.x.label)}</text>'
    )
    turned = f"translate(14 {(TOP + base) / 2}) rotate(-90)"
    parts.append(f'<text class="label" transform="{turned}" text-anchor="middle">{escape(chart.y.label)}</text>')
    return "".join(parts)


def _bars(layer: Bars, x: Place, y: Place) -> str:
    shapes, texts = [], []
    for left, right, bottom, top in zip(layer.left, layer.right, layer.bottom, layer.top, strict=True):
        if top != bottom:
            width, height = max(0.5, x(right) - x(left) - 1), y(bottom) - y(top)
            shapes.append(f"M{x(left) + 0.5:.1f} {y(bottom):.1f}v{-height:.2f}h{width:.1f}v{height:.2f}z")
    for place, text in enumerate(layer.values):
        middle = (x(layer.left[place]) + x(layer.right[place])) / 2
        texts.append(f'<text x="{middle:.1f}" y="{y(layer.top[place]) - 5:.1f}" text-anchor="middle">{text}</text>')
    return f'<path class="bars {layer.tone}" d="{"".join(shapes)}"/>' + "".join(texts)


def _cells(layer: Cells, x: Place, y: Place) -> list[str]:
    """One path for each shade; a shade is a step of the logarithm of the count."""
    shades = shades_of(layer.counts)
    columns, rows = [x(edge) for edge in layer.x_edges], [y(edge) for edge in layer.y_edges]
    parts = []
    for shade in range(1, SHADES + 1):
        shape = "".join(
            f"M{columns[i]:.1f} {rows[j + 1]:.1f}h{columns[i + 1] - columns[i]:.1f}v{rows[j] - rows[j + 1]:.1f}"
            f"h{columns[i] - columns[i + 1]:.1f}z"
            for i, j in np.argwhere(shades == shade)
        )
        if shape:
            parts.append(f'<path class="cells shade{shade}" d="{shape}"/>')
    return parts


def shades_of(counts: np.ndarray) -> np.ndarray:
    """Whole numbers from 1 to SHADES by the logarithm of the counts, 0 where the count is 0."""
    share = np.log1p(counts) / max(np.log1p(counts.max(initial=0)), 1e-9)
    return np.where(counts > 0, np.clip(np.ceil(share * SHADES), 1, SHADES), 0).astype(np.int64)


def _legend(chart: Chart) -> str:
    """Labels of the layers above the picture, one behind the other."""
    parts, at = [], float(LEFT)
    for tone, label, is_line in _labels(chart):
        if is_line:
            parts.append(f'<path class="key {tone}" d="M{at:.0f} 14h16"/>')
        else:
            parts.append(f'<rect class="bars {tone}" x="{at + 3:.0f}" y="9" width="10" height="10" rx="2"/>')
        parts.append(f'<text x="{at + 21:.0f}" y="18">{escape(label)}</text>')
        at += 36 + 6.6 * len(label)
    return "".join(parts)


def _labels(chart: Chart) -> Iterable[tuple[str, str, bool]]:
    for layer in chart.layers:
        if layer.label:
            yield ("plain" if isinstance(layer, Cells) else layer.tone), layer.label, isinstance(layer, Line)


def write_pngs(charts: Iterable[Chart], folder: Path) -> list[Path]:
    """
    Writes each chart to `folder` as a PNG, and takes away those that an earlier report has left there.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for name in NAMES:
        (folder / f"{name}.png").unlink(missing_ok=True)
    paths = []
    for chart in charts:
        figure = Figure(figsize=(7.2, 5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        _draw(chart, figure.add_subplot())
        with atomic_path(folder / f"{chart.name}.png") as path:
            figure.savefig(path, format="png")
        paths.append(folder / f"{chart.name}.png")
    return paths


def _draw(chart: Chart, axes: Any) -> None:
    for layer in chart.layers:
        colour = "#8294b4" if isinstance(layer, Cells) else COLOURS[layer.tone]
        named = {"label": layer.label} if layer.label else {}
        match layer:
            case Bars():
                sizes = {"height": layer.top - layer.bottom, "width": layer.right - layer.left}
                drawn = axes.bar(layer.left, bottom=layer.bottom, align="edge", color=colour, **sizes, **named)
                if layer.values:
                    axes.bar_label(drawn, labels=layer.values)
            case Points():
                axes.scatter(layer.x, layer.y, s=6, color=colour, linewidths=0, **named)
            case Cells():
                shades = np.ma.masked_equal(shades_of(layer.counts), 0)
                axes.pcolormesh(layer.x_edges, layer.y_edges, shades.T, cmap="Blues", vmin=-1, vmax=SHADES + 1)
                axes.scatter([], [], marker="s", color=colour, **named)
            case Line():
                axes.plot(layer.x, layer.y, color=colour, linewidth=1.2, linestyle="--", **named)
    for axis, side in ((chart.x, "x"), (chart.y, "y")):
        axes.set(**{f"{side}label": axis.label, f"{side}lim": (axis.low, axis.high)})
        if axis.is_log:
            axes.set(**{f"{side}scale": "log"})
        marks = ticks(axis)
        axes.set(**{f"{side}ticks": [value for value, _ in marks], f"{side}ticklabels": [text for _, text in marks]})
    axes.set_title(chart.title, loc="left")
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    if any(layer.label for layer in chart.layers):
        axes.legend(frameon=False, fontsize="small")
