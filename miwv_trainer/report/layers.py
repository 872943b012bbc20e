"""What a chart is made of: axes, bars, points, cells and lines. Numbers only; `svg.py` and `png.py` draw them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

# What a mark stands for. The page's style sheet and `png.py` give each tone its colour.
Tone = Literal["plain", "selected", "third", "line", "threshold"]


@dataclass(frozen=True)
class Axis:
    """
    One axis of a chart.

    Args:
        label: What the numbers are, with their unit.
        low: Value at the left or lower end.
        high: Value at the right or upper end.
        is_log: Whether the scale is logarithmic; `low` must then be above 0.
        is_whole: Whether the numbers are counts, so that there is no tick between two whole numbers.
        ticks: Positions and their labels; where empty, `place_ticks` takes round numbers.
    """

    label: str
    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False
    ticks: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class Bars:
    """
    Rectangles.

    Args:
        left: `(n,)` left edges; `right`, `bottom` and `top` likewise.
        tone: What the bars stand for.
        label: Their name in the legend; none where empty.
        values: `n` texts written above the bars, or none.
    """

    left: np.ndarray
    right: np.ndarray
    bottom: np.ndarray
    top: np.ndarray
    tone: Tone
    label: str = ""
    values: Sequence[str] = ()


@dataclass(frozen=True)
class Points:
    """
    Dots.

    Args:
        x: `(n,)` positions; `y` likewise.
        tone: What the dots stand for.
        label: Their name in the legend; none where empty.
        is_large: Whether they are so few that large dots do not hide each other.
    """

    x: np.ndarray
    y: np.ndarray
    tone: Tone
    label: str = ""
    is_large: bool = False


@dataclass(frozen=True)
class Cells:
    """Counts of shape `(len(x_edges) - 1, len(y_edges) - 1)`, drawn as shades of "plain"."""

    x_edges: np.ndarray
    y_edges: np.ndarray
    counts: np.ndarray
    label: str = ""


@dataclass(frozen=True)
class Line:
    """A straight line from (x[0], y[0]) to (x[1], y[1])."""

    x: tuple[float, float]
    y: tuple[float, float]
    label: str = ""
    tone: Tone = "line"


Layer = Bars | Points | Cells | Line


@dataclass(frozen=True)
class Chart:
    """
    A chart without its drawing.

    Args:
        name: Name of its PNG file and, on the page, of its element.
        title: One line above it.
        caption: Sentences below it.
        layers: What is drawn, the lowest first.
    """

    name: str
    title: str
    caption: str
    x: Axis
    y: Axis
    layers: Sequence[Layer] = ()
