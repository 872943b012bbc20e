"""Charts as SVG, in colours that the page sets for light and dark, and as PNG files by matplotlib (extra `report`)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from miwv_trainer.charts import Bars, Chart, Line, Mark, Points, Rule
from miwv_trainer.store import atomic_path

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 12, 50
COLOURS = ("#94a3b8", "#c2410c", "#0e7490", "#4d7c0f")
"""Of the marks of a chart, in their order; the page has the same, and lighter ones on dark."""


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, values: np.ndarray | float) -> np.ndarray:
        scale: Callable[..., np.ndarray] = np.log10 if self.is_log else np.asarray
        low, high = scale(self.low), scale(self.high)
        return self.start + (scale(values) - low) / (high - low) * (self.end - self.start)


def to_svg(chart: Chart) -> str:
    """A chart as an SVG element, `WIDTH` by `HEIGHT`; its text is escaped."""
    x, y = axes_of(chart)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">']
    parts += [_tick(x, at, True) for at in ticks(x, chart.whole_x)] + [_tick(y, at, False) for at in ticks(y)]
    parts += [_svg_mark(mark, number, x, y) for number, mark in enumerate(chart.marks)]
    middle = (x.start + x.end) / 2, (y.start + y.end) / 2
    parts.append(f'<text class="label" x="{middle[0]:.0f}" y="{HEIGHT - 8}">{escape(chart.x_label)}</text>')
    turned = f'transform="translate(14 {middle[1]:.0f}) rotate(-90)"'
    parts.append(f'<text class="label" {turned}>{escape(chart.y_label)}</text></svg>')
    return "".join(parts)


def legend(chart: Chart) -> str:
    """The names of a chart's marks beside their colours, as HTML."""
    entries = [
        f'<li class="{"rule" if isinstance(mark, Rule) else f"m{number}"}">{escape(mark.name)}</li>'
        for number, mark in enumerate(chart.marks)
    ]
    return f'<ul class="legend">{"".join(entries)}</ul>'


def axes_of(chart: Chart) -> tuple[Axis, Axis]:
    """What a chart's axes show: all of its marks, bars from zero."""
    across = [part for mark in chart.marks for part in _extent(mark, 0)]
    along = [part for mark in chart.marks for part in _extent(mark, 1)]
    x_low, x_high = _room(across, chart.log_x)
    y_low, y_high = _room([*along, np.array(chart.y_shows)])
    if chart.marks and isinstance(chart.marks[0], Bars):
        y_low = 0.0
    return Axis(x_low, x_high, LEFT, WIDTH - RIGHT, chart.log_x), Axis(y_low, y_high, HEIGHT - BOTTOM, TOP)


def ticks(axis: Axis, whole: bool = False) -> list[float]:
    """At most nine round values of an axis: 1, 2 or 5 times a power of ten, or such multiples of one."""
    if axis.is_log:
        powers = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
        candidates = [float(digit * 10**power) for power in powers for digit in (1, 2, 5)]
        return [at for at in candidates if axis.low <= at <= axis.high]
    rough = (axis.high - axis.low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough)
    step = max(1.0, round(step)) if whole else step
    first = math.ceil(axis.low / step - 1e-9)
    last = math.floor(axis.high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def write_pictures(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """
    Each chart as `FOLDER/KEY.png`.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for chart in charts:
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        panel = figure.subplots()
        for number, mark in enumerate(chart.marks):
            _plot(panel, mark, COLOURS[number % len(COLOURS)])
        x, y = axes_of(chart)
        panel.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
        panel.set_xscale("log" if chart.log_x else "linear")
        panel.set(xlim=(x.low, x.high), ylim=(y.low, y.high))
        panel.set_xticks(ticks(x, chart.whole_x), [number_text(at) for at in ticks(x, chart.whole_x)], minor=False)
        panel.tick_params(which="minor", bottom=False, labelbottom=False)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8)
        with atomic_path(folder / f"{chart.key}.png") as path:
            figure.savefig(path, dpi=150, format="png")
        paths.append(folder / f"{chart.key}.png")
    return paths


def _plot(panel: Any, mark: Mark, colour: str) -> None:
    if isinstance(mark, Bars):
        panel.stairs(mark.heights, mark.edges, fill=True, color=colour, label=mark.name)
    elif isinstance(mark, Points):
        panel.plot(mark.x, mark.y, ".", color=colour, markersize=4, alpha=0.6, label=mark.name)
    elif isinstance(mark, Line):
        panel.plot(mark.x, mark.y, "o-", color=colour, label=mark.name)
    elif mark.along == "x":
        panel.axvline(mark.at, color="black", linewidth=1, linestyle="--", label=mark.name)
    elif mark.along == "y":
        panel.axhline(mark.at, color="black", linewidth=1, linestyle="--", label=mark.name)
    else:
        panel.axline((0, 0), slope=1, color="black", linewidth=1, linestyle="--", label=mark.name)


def number_text(value: float) -> str:
    """A tick's number: as short as it is exact, thousands apart."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.6g}"


def _extent(mark: Mark, side: int) -> list[np.ndarray]:
    if isinstance(mark, Bars):
        return [mark.edges if side == 0 else np.append(mark.heights, 0)]
    if isinstance(mark, Rule):
        wanted = {"x": 0, "y": 1, "diagonal": None}[mark.along]
        return [np.array([mark.at])] if wanted == side else []
    return [mark.x if side == 0 else mark.y]


def _room(parts: Sequence[np.ndarray], is_log: bool = False) -> tuple[float, float]:
    """From the least to the greatest value, and a little beside them."""
    values = np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in parts])
    low, high = float(values.min()), float(values.max())
    if is_log:
        low, high = max(low, 1.0), max(high, 2.0)
        return low / 1.15, high * 1.15
    margin = 0.03 * (high - low) or 0.5
    return low - margin, high + margin


def _tick(axis: Axis, at: float, is_across: bool) -> str:
    place, text = float(axis.place(at)), number_text(at)
    if is_across:
        line = f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        return line + f'<text class="tick" x="{place:.1f}" y="{HEIGHT - BOTTOM + 16}">{text}</text>'
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'
    return line + f'<text class="tick left" x="{LEFT - 8}" y="{place + 4:.1f}">{text}</text>'


def _svg_mark(mark: Mark, number: int, x: Axis, y: Axis) -> str:
    if isinstance(mark, Rule):
        ends = _rule_ends(mark, x, y)
        return '<line class="rule" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'.format(*ends)
    if isinstance(mark, Bars):
        left, right, top = x.place(mark.edges[:-1]), x.place(mark.edges[1:]), y.place(mark.heights)
        floor = y.place(0.0)
        bars = [
            f"M{a:.1f} {floor:.1f}V{b:.1f}H{c:.1f}V{floor:.1f}z"
            for a, b, c, height in zip(left, top, right, mark.heights, strict=True)
            if height
        ]
        return f'<path class="bars m{number}" d="{"".join(bars)}"/>'
    places = zip(x.place(mark.x), y.place(mark.y), strict=True)
    if isinstance(mark, Line):
        corners = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        dots = "".join(f'<circle cx="{a}" cy="{b}" r="4"/>' for a, b in (c.split(",") for c in corners.split()))
        return f'<g class="line m{number}"><polyline points="{corners}"/>{dots}</g>'
    # A dot is a stroke of no length with round ends: a tenth of the characters of a circle.
    dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in places)
    return f'<path class="points m{number}" d="{dots}"/>'


def _rule_ends(rule: Rule, x: Axis, y: Axis) -> tuple[float, float, float, float]:
    if rule.along == "x":
        at = float(x.place(rule.at))
        return at, y.start, at, y.end
    if rule.along == "y":
        at = float(y.place(rule.at))
        return x.start, at, x.end, at
    low, high = max(x.low, y.low), min(x.high, y.high)
    return float(x.place(low)), float(y.place(low)), float(x.place(high)), float(y.place(high))
