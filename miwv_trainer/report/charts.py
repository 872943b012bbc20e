"""What the charts of a report show: rounds to axes, bars, points and lines. Numbers only; `drawing.py` draws them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from miwv_trainer.report.explanations import config_of, no_miwv
from miwv_trainer.selection.choose import overlap
from miwv_trainer.selection.scores import score_of
from miwv_trainer.storage.store import StoredRound

# All charts that there may be, in their order on the page.
NAMES = ("distribution", "losses", "length", "similarity", "overlap", "movement", "between-rounds", "cost")
LOSS = "nats per response token"
TONES = ("plain", "selected", "third")
BINS, CELLS = 48, (56, 40)
POINTS_AT_MOST = 5_000  # of the selected; of the others, more than DENSE are counted in cells
DENSE = 1_500
TAILS = 0.001


@dataclass(frozen=True)
class Axis:
    """`ticks` gives positions and their labels; without, round numbers are taken."""

    label: str
    low: float
    high: float
    is_log: bool = False
    ticks: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class Bars:
    """`(n,)` each: rectangles; `values` are written above them where given."""

    left: np.ndarray
    right: np.ndarray
    bottom: np.ndarray
    top: np.ndarray
    tone: str
    label: str = ""
    values: Sequence[str] = ()


@dataclass(frozen=True)
class Points:
    x: np.ndarray
    y: np.ndarray
    tone: str
    label: str = ""


@dataclass(frozen=True)
class Cells:
    """Counts of shape `(len(x_edges) - 1, len(y_edges) - 1)`."""

    x_edges: np.ndarray
    y_edges: np.ndarray
    counts: np.ndarray
    label: str = ""


@dataclass(frozen=True)
class Line:
    """From (x[0], y[0]) to (x[1], y[1])."""

    x: tuple[float, float]
    y: tuple[float, float]
    label: str = ""
    tone: str = "line"


Layer = Bars | Points | Cells | Line


@dataclass(frozen=True)
class Chart:
    """`name` is that of its file."""

    name: str
    title: str
    caption: str
    x: Axis
    y: Axis
    layers: list[Layer] = field(default_factory=list)


def charts_of(rounds: Sequence[StoredRound]) -> tuple[list[Chart], list[str]]:
    """The charts that the rounds have numbers for, and a sentence for each that they have not."""
    current = rounds[-1]
    charts: list[Chart] = []
    missing: list[str] = []
    both = known(current, "zero_shot_loss", "one_shot_loss")
    if both.any():
        charts += [distribution(current), losses(current), by_length(current)]
    else:
        missing.append(f"{no_miwv(current)} Its charts are left out.")
    if known(current, "similarity", "miwv").any():
        charts.append(by_similarity(current))
    elif both.any():
        missing.append("The similarity of exemplars is not known.")
    if len(rounds) > 1:
        charts += [overlaps(rounds), movement(rounds)]
        if (known(rounds[-2], "miwv") & known(current, "miwv")).any():
            charts.append(between_rounds(rounds[-2], current))
    else:
        missing.append("There is one round: overlap and movement between rounds need two.")
    return [*charts, costs(rounds)], missing


def distribution(current: StoredRound) -> Chart:
    """Histogram of MIWV, the selected over all, with the threshold."""
    is_known = known(current, "miwv")
    miwv = current.column("miwv")
    low, high, beyond = _range(miwv[is_known])
    edges = np.linspace(low, high, BINS + 1)
    everyone = histogram(miwv[is_known], edges)
    chosen = histogram(miwv[is_known & _selected(current)], edges)
    nothing = np.zeros(BINS)
    layers: list[Layer] = [
        Bars(edges[:-1], edges[1:], nothing, everyone, "plain", "all"),
        Bars(edges[:-1], edges[1:], nothing, chosen, "selected", "selected"),
    ]
    limit = threshold_in_miwv(current)
    if limit is not None:
        layers.append(Line((limit, limit), (0, float(everyone.max()) * 1.05), f"threshold {limit:.3f}"))
    caption = f"{int(is_known.sum()):,} samples by MIWV."
    if limit is None:
        caption += f" Ranked by {config_of(current).score}, so that MIWV has no threshold."
    caption += _beyond(beyond, "are counted in the outermost bars")
    y = Axis("samples", 0, float(everyone.max()) * 1.05)
    return Chart("distribution", "Distribution of MIWV", caption, _miwv_axis(low, high), y, layers)


def losses(current: StoredRound) -> Chart:
    """Zero-shot against one-shot loss."""
    x, y = current.column("zero_shot_loss"), current.column("one_shot_loss")
    is_known = known(current, "zero_shot_loss", "one_shot_loss")
    low, high, _ = _range(np.concatenate([x[is_known], y[is_known]]))
    low = min(low, 0.0) if low < 0.5 else low
    limit = threshold_in_miwv(current)
    lines: list[Layer] = [Line((low, high), (low, high), "MIWV 0")]
    if limit is not None:
        start, end = max(low, low - limit), min(high, high - limit)
        lines.append(Line((start, end), (start + limit, end + limit), f"threshold {limit:.3f}", "threshold"))
    caption = "Above the diagonal the exemplar makes the response harder to predict."
    axes = Axis(f"zero-shot loss ({LOSS})", low, high), Axis(f"one-shot loss ({LOSS})", low, high)
    return _scatter("losses", "Zero-shot and one-shot loss", caption, *axes, x, y, _selected(current), lines)


def by_length(current: StoredRound) -> Chart:
    tokens, miwv = current.column("response_tokens").astype(np.float64), current.column("miwv")
    is_known = known(current, "miwv") & (tokens > 0)
    x = Axis("response length (tokens)", float(tokens[is_known].min()), float(tokens[is_known].max()) + 1, is_log=True)
    caption = "Short responses have noisier means: they crowd both ends of MIWV."
    y = _miwv_axis(*_range(miwv[is_known])[:2])
    zero: list[Layer] = [Line((x.low, x.high), (0, 0))]
    tokens = np.where(is_known, tokens, np.nan)
    return _scatter("length", "MIWV and response length", caption, x, y, tokens, miwv, _selected(current), zero)


def by_similarity(current: StoredRound) -> Chart:
    similarity, miwv = current.column("similarity"), current.column("miwv")
    is_known = known(current, "similarity", "miwv")
    x = Axis("similarity of the exemplar (cosine)", *_range(similarity[is_known])[:2])
    y = _miwv_axis(*_range(miwv[is_known])[:2])
    caption = "How MIWV depends on how like its exemplar is to a sample."
    zero: list[Layer] = [Line((x.low, x.high), (0, 0))]
    return _scatter("similarity", "MIWV and similarity", caption, x, y, similarity, miwv, _selected(current), zero)


def between_rounds(before: StoredRound, current: StoredRound) -> Chart:
    """MIWV of one round against the round before."""
    x, y = before.column("miwv"), current.column("miwv")
    both = np.isfinite(x) & np.isfinite(y)
    low, high, _ = _range(np.concatenate([x[both], y[both]]))
    caption = (
        f"Above the diagonal a sample is weaker in round {current.number} than it was in round {before.number}. Marked "
        f"are those selected in round {current.number}."
    )
    axes = [Axis(f"MIWV, round {one.number} ({LOSS})", low, high) for one in (before, current)]
    same: list[Layer] = [Line((low, high), (low, high), "unchanged")]
    title = f"Movement from round {before.number} to {current.number}"
    return _scatter("between-rounds", title, caption, axes[0], axes[1], x, y, _selected(current), same)


def overlaps(rounds: Sequence[StoredRound]) -> Chart:
    """Share of each selection that the round before, and the first round, had selected too."""
    later = range(1, len(rounds))
    of_before = np.asarray([overlap(rounds[i].selection, rounds[i - 1].selection) for i in later]) * 100
    of_first = np.asarray([overlap(rounds[i].selection, rounds[0].selection) for i in later]) * 100
    at, nothing = np.arange(len(of_before), dtype=np.float64), np.zeros(len(of_before))
    layers: list[Layer] = [
        Bars(at - 0.36, at, nothing, of_before, "plain", "with the round before", _written(of_before, "{:.0f}%")),
        Bars(at, at + 0.36, nothing, of_first, "third", "with the first round", _written(of_first, "{:.0f}%")),
    ]
    caption = "Share of a round's selection that an earlier round had selected too."
    y = Axis("share of the selection (%)", 0, 110, ticks=[(value, str(value)) for value in range(0, 101, 25)])
    return Chart("overlap", "Overlap between rounds", caption, _rounds_axis(rounds[1:]), y, layers)


def movement(rounds: Sequence[StoredRound]) -> Chart:
    """How many samples stayed in the selection, entered it and left it."""
    pairs = [moved(before, now) for before, now in zip(rounds, rounds[1:], strict=False)]
    stayed, entered, left = (np.asarray(numbers, dtype=np.float64) for numbers in zip(*pairs, strict=True))
    at, nothing = np.arange(len(stayed), dtype=np.float64), np.zeros(len(stayed))
    layers: list[Layer] = [
        Bars(at - 0.3, at + 0.3, nothing, stayed, "plain", "stayed"),
        Bars(at - 0.3, at + 0.3, stayed, stayed + entered, "selected", "entered"),
        Bars(at - 0.3, at + 0.3, -left, nothing, "third", "left"),
    ]
    y = Axis("samples", -float(left.max()) * 1.1, float((stayed + entered).max()) * 1.1)
    caption = "What each round changed in the selection of the round before; those that left are drawn downwards."
    return Chart("movement", "Samples that enter and leave", caption, _rounds_axis(rounds[1:]), y, layers)


def moved(before: StoredRound, current: StoredRound) -> tuple[int, int, int]:
    """How many samples stayed in the selection, entered it and left it."""
    stayed = len(np.intersect1d(current.selection, before.selection))
    return stayed, len(current.selection) - stayed, len(before.selection) - stayed


def costs(rounds: Sequence[StoredRound]) -> Chart:
    seconds = np.asarray([current.summary["seconds"] for current in rounds], dtype=np.float64)
    unit, factor = next((name, size) for name, size in (("hours", 3600), ("minutes", 60), ("seconds", 1))
                        if seconds.max() >= 2 * size or size == 1)  # fmt: skip
    time = seconds / factor
    at = np.arange(len(time), dtype=np.float64)
    bars = Bars(at - 0.3, at + 0.3, np.zeros(len(time)), time, "plain", "", _written(time, "{:,.1f}"))
    y = Axis(f"time ({unit})", 0, max(float(time.max()) * 1.15, 1e-3))
    caption = "Scoring and selecting, all attempts at a round together. Tokens and rates stand in the table of rounds."
    return Chart("cost", "Cost per round", caption, _rounds_axis(rounds), y, [bars])


def known(current: StoredRound, *names: str) -> np.ndarray:
    """`(N,)` which samples have finite numbers in all of these columns."""
    return np.all([np.isfinite(current.column(name).astype(np.float64)) for name in names], axis=0)


def threshold_in_miwv(current: StoredRound) -> float | None:
    """The MIWV at which the selection ends: its lowest, or its highest where the lowest are selected."""
    score = score_of(config_of(current))
    miwv = current.column("miwv")[current.selection]
    if score.column != "miwv" or not len(miwv):
        return None
    return float(miwv.max() if score.is_lowest_first else miwv.min())


def histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """`(len(edges) - 1,)` counts; what lies beyond the edges is counted in the outermost bins."""
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].astype(np.float64)


def _scatter(
    name: str, title: str, caption: str, x_axis: Axis, y_axis: Axis, x: np.ndarray, y: np.ndarray,
    is_selected: np.ndarray, lines: list[Layer],
) -> Chart:  # fmt: skip
    """Those not selected as points or, where they are many, as counts in cells; the selected as points over them."""
    both = np.isfinite(x) & np.isfinite(y)
    outside = both & ((x < x_axis.low) | (x > x_axis.high) | (y < y_axis.low) | (y > y_axis.high))
    x, y = np.clip(x, x_axis.low, x_axis.high), np.clip(y, y_axis.low, y_axis.high)
    others, chosen = np.flatnonzero(both & ~is_selected), np.flatnonzero(both & is_selected)
    layers: list[Layer] = []
    if len(others) > DENSE:
        spaced = np.geomspace if x_axis.is_log else np.linspace
        x_edges = spaced(x_axis.low, x_axis.high, CELLS[0] + 1)
        y_edges = np.linspace(y_axis.low, y_axis.high, CELLS[1] + 1)
        inside = np.clip(x[others], x_edges[0], x_edges[-1]), np.clip(y[others], y_edges[0], y_edges[-1])
        layers.append(Cells(x_edges, y_edges, np.histogram2d(*inside, (x_edges, y_edges))[0], "others"))
        caption += " The darker a cell, the more samples that are not selected lie in it."
    elif len(others):
        layers.append(Points(x[others], y[others], "plain", "others"))
    if len(chosen) > POINTS_AT_MOST:
        caption += f" Of {len(chosen):,} selected samples {POINTS_AT_MOST:,} are drawn."
        chosen = np.random.default_rng(0).choice(chosen, POINTS_AT_MOST, replace=False)
    layers.append(Points(x[chosen], y[chosen], "selected", "selected"))
    caption += _beyond(int(outside.sum()), "are drawn at the edge")
    return Chart(name, title, caption, x_axis, y_axis, [*layers, *lines])


def _range(values: np.ndarray) -> tuple[float, float, int]:
    """The ends of an axis that leaves out the outermost tails of large pools, and how many values lie beyond them."""
    values = values.astype(np.float64)
    low, high = (values.min(), values.max()) if len(values) < 1 / TAILS else np.quantile(values, (TAILS, 1 - TAILS))
    beyond = int(((values < low) | (values > high)).sum())
    margin = 0.03 * (high - low) or 0.5
    return float(low - margin), float(high + margin), beyond


def _beyond(count: int, what: str) -> str:
    return f" {count:,} beyond the axes {what}." if count else ""


def _miwv_axis(low: float, high: float) -> Axis:
    return Axis(f"MIWV ({LOSS})", low, high)


def _rounds_axis(rounds: Sequence[StoredRound]) -> Axis:
    every = max(1, -(-len(rounds) // 12))
    ticks = [(float(place), str(one.number)) for place, one in enumerate(rounds) if place % every == 0]
    margin = max(0.7, (5 - len(rounds)) / 2)  # few bars are not drawn broad
    return Axis("round", -margin, len(rounds) - 1 + margin, ticks=ticks)


def _selected(current: StoredRound) -> np.ndarray:
    return current.column("selected").astype(bool)


def _written(values: np.ndarray, form: str) -> list[str]:
    return [form.format(value) for value in values] if len(values) <= 8 else []
