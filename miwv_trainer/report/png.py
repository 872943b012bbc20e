"""Writes charts as PNG files with matplotlib, which is an optional package."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from miwv_trainer.report.charts import NAMES
from miwv_trainer.report.layers import Bars, Cells, Chart, Layer, Line, Points, Tone
from miwv_trainer.report.scales import SHADES, grade_counts, place_ticks
from miwv_trainer.storage.atomic import atomic_path, delete

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Those of the page in the light scheme.
COLOURS: dict[Tone, str] = {
    "plain": "#8294b4",
    "selected": "#d9480f",
    "third": "#6741d9",
    "line": "#444b59",
    "threshold": "#d9480f",
}


def write_pngs(charts: Iterable[Chart], folder: Path) -> list[Path]:
    """
    Writes each chart to `folder` as a PNG file and deletes those that an earlier report left there.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: a file could not be written.
    """
    # Figures are drawn by the Agg canvas, not by pyplot: pyplot would choose a backend for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for name in NAMES:
        delete(folder / f"{name}.png")
    paths = []
    for chart in charts:
        figure = Figure(figsize=(7.2, 5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        _draw_chart(chart, figure.add_subplot())
        path = folder / f"{chart.name}.png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
        paths.append(path)
    return paths


def _draw_chart(chart: Chart, axes: "Axes") -> None:
    for layer in chart.layers:
        _draw_layer(layer, axes)
    for axis, side in ((chart.x, "x"), (chart.y, "y")):
        axes.set(**{f"{side}label": axis.label, f"{side}lim": (axis.low, axis.high)})
        if axis.is_log:
            axes.set(**{f"{side}scale": "log"})
        # After the scale, which would put ticks of its own in their place.
        ticks = place_ticks(axis)
        axes.set(**{f"{side}ticks": [value for value, _ in ticks], f"{side}ticklabels": [text for _, text in ticks]})
    axes.set_title(chart.title, loc="left")
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    if any(layer.label for layer in chart.layers):
        axes.legend(frameon=False, fontsize="small")


def _draw_layer(layer: Layer, axes: "Axes") -> None:
    colour = COLOURS["plain" if isinstance(layer, Cells) else layer.tone]
    label = layer.label or None  # matplotlib leaves None out of the legend, but not ""
    match layer:
        case Bars():
            height, width = layer.top - layer.bottom, layer.right - layer.left
            drawn = axes.bar(layer.left, height, width, layer.bottom, align="edge", color=colour, label=label)
            if layer.values:
                axes.bar_label(drawn, labels=layer.values)
        case Points():
            # Not clipped: the frame would cut the dots of samples at the ends of the axes in half.
            size = 24 if layer.is_large else 6
            axes.scatter(layer.x, layer.y, s=size, color=colour, linewidths=0, label=label, clip_on=False)
        case Cells():
            shades = np.ma.masked_equal(grade_counts(layer.counts), 0)
            axes.pcolormesh(layer.x_edges, layer.y_edges, shades.T, cmap="Blues", vmin=-1, vmax=SHADES + 1)
            axes.scatter([], [], marker="s", color=colour, label=label)  # its entry in the legend: a mesh has none
        case Line():
            axes.plot(layer.x, layer.y, color=colour, linewidth=1.2, linestyle="--", label=label)
