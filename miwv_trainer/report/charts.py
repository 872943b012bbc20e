"""The charts of a report, from stored rounds to layers: one function a chart, listed in `build_charts` and `NAMES`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from miwv_trainer.report.layers import Axis, Bars, Chart, Layer, Line
from miwv_trainer.report.round_facts import (
    count_moves,
    explain_missing_miwv,
    find_finite,
    find_miwv_threshold,
    find_selected,
)
from miwv_trainer.report.scatter import add_samples, describe_outliers, find_range
from miwv_trainer.rounds.stored_config import restore_config
from miwv_trainer.selection.choose import compute_overlap
from miwv_trainer.selection.scores import get_score
from miwv_trainer.storage.stored_round import StoredRound

# All charts that there may be, in their order on the page. `write_pngs` deletes earlier files by these names.
NAMES = ("scores", "distribution", "losses", "length", "similarity", "overlap", "movement", "between-rounds", "cost")
LOSS = "nats per response token"
# Bars of a histogram, by the square root of the number of samples: 30 samples in 48 bars have no shape.
FEWEST_BINS, MOST_BINS = 8, 48
# Of a picture of 460 units' width: between the axes, and of a digit in the largest font, which is that of phones.
PLOT_WIDTH, DIGIT_WIDTH = 384, 9
MOST_TICKS_OF_ROUNDS = 12
COUNTS = Axis("samples", 0, 1, is_whole=True)
UNITS = (("hours", 3600), ("minutes", 60), ("seconds", 1))


def build_charts(rounds: Sequence[StoredRound]) -> tuple[list[Chart], list[str]]:
    """The charts that the rounds have numbers for, and a sentence for each group of charts that they have not."""
    current = rounds[-1]
    charts: list[Chart] = []
    missing: list[str] = []
    score = get_score(restore_config(current))
    if not score.ranks_miwv and not score.is_random and find_finite(current, "score").any():
        charts.append(chart_scores(current))
    has_miwv = bool(find_finite(current, "zero_shot_loss", "one_shot_loss").any())
    if has_miwv:
        charts += [chart_distribution(current), chart_losses(current), chart_lengths(current)]
    else:
        missing.append(f"{explain_missing_miwv(current)} Charts of MIWV are left out.")
    if find_finite(current, "similarity", "miwv").any():
        charts.append(chart_similarities(current))
    elif has_miwv:
        missing.append("The round stores no similarity of exemplars. Its chart is left out.")
    if len(rounds) > 1:
        charts += [chart_overlaps(rounds), chart_movement(rounds)]
        if (find_finite(rounds[-2], "miwv") & find_finite(current, "miwv")).any():
            charts.append(chart_two_rounds(rounds[-2], current))
    else:
        missing.append("There is only one round. Charts of overlap and movement need two.")
    return [*charts, chart_costs(rounds)], missing


def chart_scores(current: StoredRound) -> Chart:
    """Histogram of what was ranked, where that is not MIWV."""
    score = get_score(restore_config(current))
    label = "response length" if score.column == "response_tokens" else score.label
    caption = f"The {int(find_finite(current, 'score').sum()):,} samples that were ranked by {label}."
    axis = Axis("response length (tokens)" if score.column == "response_tokens" else label, 0, 1)
    chart = Chart("scores", f"Distribution of {label}", caption, axis, COUNTS, [])
    return _add_histogram(chart, current, "score")


def chart_distribution(current: StoredRound) -> Chart:
    """Histogram of MIWV, with the threshold."""
    caption = f"MIWV of {int(find_finite(current, 'miwv').sum()):,} samples."
    threshold = find_miwv_threshold(current)
    if threshold is None:
        caption += _explain_missing_threshold(current)
    chart = Chart("distribution", "Distribution of MIWV", caption, _make_miwv_axis(0, 1), COUNTS, [])
    return _add_histogram(chart, current, "miwv", threshold)


def _explain_missing_threshold(current: StoredRound) -> str:
    config = restore_config(current)
    if config.selection != "top":
        return " The selected samples were drawn by rank, so MIWV has no threshold."
    return f" The samples were ranked by {get_score(config).label}, so MIWV has no threshold."


def _add_histogram(chart: Chart, current: StoredRound, column: str, threshold: float | None = None) -> Chart:
    """The chart with a histogram of a column, the selected over all, and axes as wide as that needs."""
    is_finite, values = find_finite(current, column), current.column(column)
    low, high = find_range(values[is_finite])
    bins = int(np.clip(2 * np.sqrt(is_finite.sum()), FEWEST_BINS, MOST_BINS))
    edges = np.linspace(low, high, bins + 1)
    of_all = count_in_bins(values[is_finite], edges)
    of_selected = count_in_bins(values[is_finite & find_selected(current)], edges)
    top, zeros = float(of_all.max()) * 1.05, np.zeros(bins)
    layers: list[Layer] = [
        Bars(edges[:-1], edges[1:], zeros, of_all, "plain", "all"),
        Bars(edges[:-1], edges[1:], zeros, of_selected, "selected", "selected"),
    ]
    if threshold is not None:
        layers.append(Line((threshold, threshold), (0, top), f"threshold {threshold:.3f}"))
    outliers = int((is_finite & ((values < low) | (values > high))).sum())
    return replace(
        chart,
        caption=chart.caption + describe_outliers(outliers, "are counted in the outermost bars"),
        x=replace(chart.x, low=low, high=high),
        y=replace(chart.y, high=top),
        layers=layers,
    )


def chart_losses(current: StoredRound) -> Chart:
    """Zero-shot against one-shot loss, with lines of equal MIWV."""
    zero_shot, one_shot = current.column("zero_shot_loss"), current.column("one_shot_loss")
    is_finite = find_finite(current, "zero_shot_loss", "one_shot_loss")
    low, high = find_range(np.concatenate([zero_shot[is_finite], one_shot[is_finite]]))
    # Losses begin at 0, unless that would leave half of the picture empty.
    low = min(low, 0.0) if low < 0.5 else low
    lines: list[Layer] = [Line((low, high), (low, high), "MIWV 0")]
    threshold = find_miwv_threshold(current)
    if threshold is not None:
        # The line one-shot = zero-shot + threshold, cut where it leaves the axes.
        start, end = max(low, low - threshold), min(high, high - threshold)
        label = f"threshold {threshold:.3f}"
        lines.append(Line((start, end), (start + threshold, end + threshold), label, "threshold"))
    caption = "Above the diagonal, the exemplar makes the response harder to predict."
    x, y = Axis(f"zero-shot loss ({LOSS})", low, high), Axis(f"one-shot loss ({LOSS})", low, high)
    chart = Chart("losses", "Zero-shot and one-shot loss", caption, x, y, lines)
    return add_samples(chart, zero_shot, one_shot, find_selected(current))


def chart_lengths(current: StoredRound) -> Chart:
    """MIWV against the number of response tokens."""
    tokens, miwv = current.column("response_tokens").astype(np.float64), current.column("miwv")
    is_finite = find_finite(current, "miwv") & (tokens > 0)
    shortest, longest = float(tokens[is_finite].min()), float(tokens[is_finite].max())
    # A margin on both sides, as `find_range` leaves one: an axis needs a width, also where all are equally long.
    margin = max((longest / shortest) ** 0.03, 1.05)
    x = Axis("response length (tokens)", shortest / margin, longest * margin, is_log=True)
    y = _make_miwv_axis(*find_range(miwv[is_finite]))
    caption = "A mean over few tokens varies more, so short responses are frequent at both ends of MIWV."
    chart = Chart("length", "MIWV and response length", caption, x, y, [Line((x.low, x.high), (0, 0))])
    return add_samples(chart, np.where(is_finite, tokens, np.nan), miwv, find_selected(current))


def chart_similarities(current: StoredRound) -> Chart:
    """MIWV against the cosine of a sample and its exemplar."""
    similarity, miwv = current.column("similarity"), current.column("miwv")
    is_finite = find_finite(current, "similarity", "miwv")
    x = Axis("similarity of the exemplar (cosine)", *find_range(similarity[is_finite]))
    y = _make_miwv_axis(*find_range(miwv[is_finite]))
    caption = "MIWV of a sample and the similarity of its exemplar to it."
    chart = Chart("similarity", "MIWV and similarity", caption, x, y, [Line((x.low, x.high), (0, 0))])
    return add_samples(chart, similarity, miwv, find_selected(current))


def chart_two_rounds(before: StoredRound, current: StoredRound) -> Chart:
    """MIWV of one round against the round before."""
    miwv_before, miwv = before.column("miwv"), current.column("miwv")
    has_both = find_finite(before, "miwv") & find_finite(current, "miwv")
    low, high = find_range(np.concatenate([miwv_before[has_both], miwv[has_both]]))
    x, y = (Axis(f"MIWV, round {stored.number} ({LOSS})", low, high) for stored in (before, current))
    caption = (
        f"Above the diagonal, the model is weaker on a sample in round {current.number} than in round {before.number}. "
        f"The samples selected in round {current.number} are marked."
    )
    title = f"Movement from round {before.number} to {current.number}"
    chart = Chart("between-rounds", title, caption, x, y, [Line((low, high), (low, high), "unchanged")])
    return add_samples(chart, miwv_before, miwv, find_selected(current))


def chart_overlaps(rounds: Sequence[StoredRound]) -> Chart:
    """Share of each selection that the round before, and the first round, had selected too."""
    later = range(1, len(rounds))
    with_before = np.asarray([compute_overlap(rounds[i].selection, rounds[i - 1].selection) for i in later]) * 100
    with_first = np.asarray([compute_overlap(rounds[i].selection, rounds[0].selection) for i in later]) * 100
    x, zeros, axis = np.arange(len(later), dtype=np.float64), np.zeros(len(later)), _make_rounds_axis(rounds[1:])
    before_values, first_values = (_write_values(values, "{:.0f}", axis, 0.36) for values in (with_before, with_first))
    layers = [
        Bars(x - 0.36, x, zeros, with_before, "plain", "with the round before", before_values),
        Bars(x, x + 0.36, zeros, with_first, "third", "with the first round", first_values),
    ]
    caption = "Share of a round's selection that an earlier round had selected too."
    # Up to 110: the values above bars of 100 % need room.
    y = Axis("share of the selection (%)", 0, 110, ticks=[(value, str(value)) for value in range(0, 101, 25)])
    return Chart("overlap", "Overlap between rounds", caption, axis, y, layers)


def chart_movement(rounds: Sequence[StoredRound]) -> Chart:
    """How many samples stayed in the selection, entered it and left it."""
    moves = [count_moves(before, current) for before, current in zip(rounds, rounds[1:], strict=False)]
    stayed, entered, left = np.asarray(moves, dtype=np.float64).T
    x, zeros = np.arange(len(moves), dtype=np.float64), np.zeros(len(moves))
    layers = [
        Bars(x - 0.3, x + 0.3, zeros, stayed, "plain", "stayed"),
        Bars(x - 0.3, x + 0.3, stayed, stayed + entered, "selected", "entered"),
        Bars(x - 0.3, x + 0.3, -left, zeros, "third", "left"),
    ]
    y = Axis("samples", -float(left.max()) * 1.1, float((stayed + entered).max()) * 1.1, is_whole=True)
    caption = "What each round changed in the selection of the round before. Samples that left are drawn below zero."
    return Chart("movement", "Samples that enter and leave", caption, _make_rounds_axis(rounds[1:]), y, layers)


def chart_costs(rounds: Sequence[StoredRound]) -> Chart:
    """Time of each round, in the largest unit of which some round took at least two."""
    seconds = np.asarray([current.summary["seconds"] for current in rounds], dtype=np.float64)
    unit, size = next((unit, size) for unit, size in UNITS if seconds.max() >= 2 * size or size == 1)
    time, x, axis = seconds / size, np.arange(len(rounds), dtype=np.float64), _make_rounds_axis(rounds)
    bars = Bars(x - 0.3, x + 0.3, np.zeros(len(time)), time, "plain", "", _write_values(time, "{:,.1f}", axis, 1))
    # A round that forwards nothing may take 0.0 s. Ticks of milliseconds would be as wide as the axis' name.
    y = Axis(f"time ({unit})", 0, max(float(time.max()) * 1.15, 1.0))
    caption = "Time of scoring and selecting, over all attempts at a round. The table of rounds gives tokens and rates."
    return Chart("cost", "Cost per round", caption, axis, y, [bars])


def count_in_bins(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """`(len(edges) - 1,)` counts; values beyond the edges are counted in the outermost bins."""
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].astype(np.float64)


def _make_miwv_axis(low: float, high: float) -> Axis:
    return Axis(f"MIWV ({LOSS})", low, high)


def _make_rounds_axis(rounds: Sequence[StoredRound]) -> Axis:
    """One place a round; at most `MOST_TICKS_OF_ROUNDS` of them are labelled."""
    step = max(1, -(-len(rounds) // MOST_TICKS_OF_ROUNDS))
    ticks = [(float(place), str(stored.number)) for place, stored in enumerate(rounds) if place % step == 0]
    margin = max(0.7, (5 - len(rounds)) / 2)  # one or two bars would else fill the picture
    return Axis("round", -margin, len(rounds) - 1 + margin, ticks=ticks)


def _write_values(values: np.ndarray, form: str, x: Axis, distance: float) -> list[str]:
    """
    Texts to stand above bars; none where neighbours would touch.

    Args:
        form: How a value is written, as for `str.format`.
        x: The axis below the bars.
        distance: From one text to the next, on that axis.
    """
    texts = [form.format(value) for value in values]
    room = PLOT_WIDTH * distance / (x.high - x.low)
    return texts if max(map(len, texts)) * DIGIT_WIDTH <= room else []
