"""What a report draws: rounds to points, bars and lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from miwv_trainer.outcome import rank_correlation
from miwv_trainer.selection import overlap
from miwv_trainer.store import StoredRound

BINS = 48
MOST_POINTS = 3000
CLIPPED = (0.005, 0.995)
"""Quantiles beyond which points are drawn at the edge: MIWV has outliers beside which all else would be one line."""
LOSS = "nats per response token"


@dataclass(frozen=True)
class Bars:
    """`(n + 1,)` edges and `(n,)` heights."""

    name: str
    edges: np.ndarray
    heights: np.ndarray


@dataclass(frozen=True)
class Points:
    """`(n,)` x and y."""

    name: str
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Line:
    """`(n,)` x and y, connected."""

    name: str
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Rule:
    """A straight line at an x or a y, or where both are equal."""

    name: str
    at: float = 0.0
    along: Literal["x", "y", "diagonal"] = "x"


Mark = Bars | Points | Line | Rule


@dataclass(frozen=True)
class Chart:
    """One picture; later marks lie above earlier ones. `key` is its file's name, `y_shows` what no axis leaves out."""

    key: str
    title: str
    x_label: str
    y_label: str
    marks: tuple[Mark, ...]
    caption: str = ""
    log_x: bool = False
    whole_x: bool = False
    y_shows: tuple[float, ...] = ()


def charts_of(rounds: Sequence[StoredRound]) -> list[Chart]:
    """All pictures that the last round, and the rounds together, have something to show in."""
    current = rounds[-1]
    charts = [distribution(current)]
    if has(current, "zero_shot_loss") and has(current, "one_shot_loss"):
        charts.append(losses(current))
    if has(current, "miwv"):
        charts.append(against_length(current))
        if has(current, "similarity"):
            charts.append(against_similarity(current))
    if len(rounds) > 1:
        charts.append(overlaps(rounds))
        charts.append(movement(rounds[-2], current))
    if any(each.summary["seconds"] for each in rounds):
        charts.append(costs(rounds))
    return charts


def has(current: StoredRound, column: str) -> bool:
    """Whether a round knows a column of any sample."""
    return bool(np.isfinite(current.column(column)).any())


def score_name(current: StoredRound) -> str:
    """What samples were ranked by, as charts and tables call it."""
    name = current.summary["config"].get("score", "miwv")
    return "MIWV" if name == "miwv" else name.replace("_", " ").replace("miwv", "MIWV")


def scores_of(current: StoredRound) -> np.ndarray:
    """`(N,)` what samples were ranked by; rounds of an older version hold MIWV only."""
    scores = current.column("score")
    return current.column("miwv") if np.isnan(scores).all() else scores


def threshold(current: StoredRound) -> float:
    """The lowest score that is selected."""
    return float(scores_of(current)[current.selection].min())


def distribution(current: StoredRound) -> Chart:
    scores = scores_of(current)
    known = np.isfinite(scores)
    is_selected = current.column("selected") & known
    low, high = _ends(scores[known])
    edges = np.linspace(low, high, BINS + 1)
    counted = [np.histogram(np.clip(scores[those], low, high), edges)[0] for those in (known, is_selected)]
    at = threshold(current)
    return Chart(
        "distribution",
        f"Distribution of {score_name(current)}",
        f"{score_name(current)}{_unit(current)}",
        "samples",
        (Bars("all", edges, counted[0]), Bars("selected", edges, counted[1]), Rule(f"threshold {at:.4g}", at)),
        _beyond(scores[known], low, high),
    )


def losses(current: StoredRound) -> Chart:
    zero_shot, one_shot = current.column("zero_shot_loss"), current.column("one_shot_loss")
    known = np.isfinite(zero_shot) & np.isfinite(one_shot)
    high = float(np.quantile(np.concatenate([zero_shot[known], one_shot[known]]), CLIPPED[1]))
    x, y = np.clip(zero_shot, None, high), np.clip(one_shot, None, high)
    caption = "Above the line, the example makes the response harder to predict: MIWV is positive. "
    return Chart(
        "losses",
        "Zero-shot against one-shot loss",
        f"zero-shot loss ({LOSS})",
        f"one-shot loss ({LOSS})",
        (*_clouds(current, x, y, known), Rule("MIWV 0", along="diagonal")),
        caption + _drawn(current, known),
    )


def against_length(current: StoredRound) -> Chart:
    x = current.column("response_tokens").astype(np.float64)
    return _against(current, "length", x, "response length", "response tokens", log_x=True)


def against_similarity(current: StoredRound) -> Chart:
    x = current.column("similarity")
    return _against(current, "similarity", x, "exemplar similarity", "cosine of sample and exemplar")


def _against(current: StoredRound, key: str, x: np.ndarray, what: str, label: str, log_x: bool = False) -> Chart:
    miwv = current.column("miwv")
    known = np.isfinite(miwv) & np.isfinite(x)
    low, high = _ends(miwv[known])
    return Chart(
        key,
        f"MIWV against {what}",
        label,
        f"MIWV ({LOSS})",
        (*_clouds(current, x, np.clip(miwv, low, high), known), Rule("MIWV 0", 0.0, "y")),
        f"{_beyond(miwv[known], low, high)} {_drawn(current, known)}".strip(),
        log_x=log_x,
    )


def overlaps(rounds: Sequence[StoredRound]) -> Chart:
    numbers = np.array([each.number for each in rounds[1:]], dtype=np.float64)
    before = [overlap(now.selection, then.selection) for then, now in zip(rounds, rounds[1:], strict=False)]
    first = [overlap(now.selection, rounds[0].selection) for now in rounds[1:]]
    marks = (
        Line("with the round before", numbers, 100 * np.array(before)),
        Line(f"with round {rounds[0].number}", numbers, 100 * np.array(first)),
    )
    caption = "How much of a round's selection had been selected earlier."
    return Chart(
        "overlap",
        "Overlap of the selections",
        "round",
        "% of the selection",
        marks,
        caption,
        whole_x=True,
        y_shows=(0, 100),
    )


def movement(before: StoredRound, now: StoredRound) -> Chart:
    x, y = scores_of(before), scores_of(now)
    known = np.isfinite(x) & np.isfinite(y)
    low, high = _ends(np.concatenate([x[known], y[known]]))
    then, later = before.column("selected"), now.column("selected")
    parts = {
        "in neither": known & ~then & ~later,
        "left": known & then & ~later,
        "entered": known & ~then & later,
        "stayed": known & then & later,
    }
    clouds = [
        Points(f"{name} ({those.sum():,})", np.clip(x[drawn], low, high), np.clip(y[drawn], low, high))
        for name, those in parts.items()
        for drawn in [_some(those)]
    ]
    correlation = rank_correlation(y[known], x[known])
    told = "" if correlation is None else f"Rank correlation (Spearman) of the two rounds: {correlation:.2f}."
    return Chart(
        "movement",
        f"Movement of the samples, round {before.number} to {now.number}",
        f"{score_name(before)} in round {before.number}",
        f"{score_name(now)} in round {now.number}",
        (*clouds, Rule("the same score", along="diagonal")),
        told,
    )


def costs(rounds: Sequence[StoredRound]) -> Chart:
    numbers = np.array([each.number for each in rounds])
    edges = np.stack([numbers - 0.35, numbers + 0.35], axis=1).ravel()

    def between(values: list[float]) -> np.ndarray:
        """Bars with nothing between them."""
        return np.stack([values, np.zeros(len(values))], axis=1).ravel()[:-1]

    seconds = [float(each.summary["seconds"]) for each in rounds]
    refined = [float(each.summary.get("refined_seconds") or 0) for each in rounds]
    marks: tuple[Mark, ...] = (Bars("all", edges, between(seconds)),)
    if any(refined):
        marks += (Bars("near the threshold again, in float32", edges, between(refined)),)
    tokens = sum(each.summary["tokens_forwarded"] for each in rounds)
    caption = f"{tokens:,} tokens forwarded in {sum(seconds):,.0f} s, over all rounds."
    return Chart("cost", "Cost of each round", "round", "seconds", marks, caption, whole_x=True)


def _clouds(current: StoredRound, x: np.ndarray, y: np.ndarray, known: np.ndarray) -> tuple[Points, Points]:
    is_selected = current.column("selected")
    others, selected = _some(known & ~is_selected), _some(known & is_selected)
    return Points("not selected", x[others], y[others]), Points("selected", x[selected], y[selected])


def _some(those: np.ndarray) -> np.ndarray:
    """Indices of a mask's samples, `MOST_POINTS` of them drawn where there are more."""
    indices = np.flatnonzero(those)
    if len(indices) <= MOST_POINTS:
        return indices
    return np.sort(np.random.default_rng(0).choice(indices, MOST_POINTS, replace=False))


def _drawn(current: StoredRound, known: np.ndarray) -> str:
    is_selected = current.column("selected")
    if max((known & is_selected).sum(), (known & ~is_selected).sum()) <= MOST_POINTS:
        return ""
    return f"Of the selected and of the others at most {MOST_POINTS:,} each are drawn, at random."


def _ends(values: np.ndarray) -> tuple[float, float]:
    """What an axis shows, a little wider than a point where all values are the same."""
    low, high = np.quantile(values, CLIPPED)
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(high) + 0.5)


def _beyond(values: np.ndarray, low: float, high: float) -> str:
    count = int(((values < low) | (values > high)).sum())
    return f"{count:,} of {len(values):,} samples lie beyond the axis and are drawn at its ends." if count else ""


def _unit(current: StoredRound) -> str:
    units = {"longest": " (response tokens)", "random": ""}
    return units.get(current.summary["config"].get("score", "miwv"), f" ({LOSS})")
