"""The picture of a comparison: losses of all runs, and differences to random draws with their intervals."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from comparison.arms import RANDOM
from comparison.judgement import Judged, Pair
from comparison.page import Section
from comparison.statistics import Difference

SCORED, OTHER, SIZE, COST = "#c2410c", "#475569", "#1d4ed8", "#b45309"


def draw_comparison(sections: Sequence[Section], path: Path) -> None:
    """Three panels for each section: the losses of all runs, and the differences by response tokens and by samples."""
    from matplotlib.figure import Figure

    tallest = max(len(section.judged) for section in sections)
    figure = Figure(figsize=(15, (1.3 + 0.34 * tallest) * len(sections)), layout="constrained")
    axes = figure.subplots(len(sections), 3, squeeze=False)
    for row, section in zip(axes, sections, strict=True):
        judged = list(section.judged)[::-1]
        draw_losses(row[0], judged, section.title)
        draw_differences(row[1], judged, "by response tokens", lambda pair: pair.tokens)
        draw_differences(row[2], judged, "by samples", lambda pair: pair.samples)
    figure.savefig(path, dpi=150)


def draw_losses(panel: Any, judged: Sequence[Judged], title: str) -> None:
    """A dot for each run, and a bar for each arm's mean."""
    for height, one in enumerate(judged):
        colour = SCORED if one.is_scored else OTHER
        panel.plot(one.losses, [height] * len(one.losses), "o", color=colour, alpha=0.6, markersize=5)
        panel.plot([one.loss], [height], "|", color=colour, markersize=16, markeredgewidth=2)
        if one.arm == RANDOM:
            panel.axvline(one.loss, color="#94a3b8", linewidth=1, linestyle="--", zorder=0)
    panel.set_yticks(range(len(judged)), [one.arm for one in judged])
    panel.set_ylim(-0.6, len(judged) - 0.4)
    panel.set_title(title, fontsize=10, loc="left")
    panel.set_xlabel("loss in nats per response token\ndots: seeds; bar: mean; dashed: random draws", fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)


def draw_differences(panel: Any, judged: Sequence[Judged], title: str, take: Callable[[Pair], Difference]) -> None:
    """For each arm its difference to random draws by one weighting, with its interval."""
    for height, one in enumerate(judged):
        if one.same_size is not None:
            draw_interval(panel, height + 0.14, take(one.same_size), SIZE, "o")
        if one.same_cost is not None:
            draw_interval(panel, height - 0.14, take(one.same_cost), COST, "D")
    panel.plot([], [], "o", color=SIZE, label="equal selection")
    panel.plot([], [], "D", color=COST, label="equal cost")
    panel.axvline(0, color="#94a3b8", linewidth=1, linestyle="--", zorder=0)
    panel.set_yticks(range(len(judged)), [""] * len(judged))
    panel.set_ylim(-0.6, len(judged) - 0.4)
    panel.set_title(title, fontsize=10, loc="left")
    panel.locator_params(axis="x", nbins=6)
    panel.set_xlabel("loss minus that of random draws\nline: 95 % interval; filled: shown", fontsize=9)
    panel.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    panel.spines[["top", "right"]].set_visible(False)


def draw_interval(panel: Any, height: float, difference: Difference, colour: str, marker: str) -> None:
    """A marker at the mean, filled where the difference is shown, and its interval; none of a single seed."""
    half = 0.0 if np.isnan(difference.half) else difference.half
    mean, is_shown = difference.mean, difference.word != "not shown"
    panel.plot([mean - half, mean + half], [height, height], color=colour, linewidth=1.5)
    panel.plot([mean], [height], marker, color=colour, markersize=5, markerfacecolor=colour if is_shown else "white")
