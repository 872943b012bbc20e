"""Comparisons as tables, in Markdown and for a terminal."""

import math
from collections.abc import Sequence

import numpy as np

from comparison.judgement import Judged, Pair
from comparison.statistics import Difference

Table = list[list[str]]


def format_difference(difference: Difference | None) -> str:
    """The mean, ± half of its interval, and what is shown."""
    if difference is None:
        return ""
    half = "" if math.isnan(difference.half) else f" ± {difference.half:.4f}"
    return f"{difference.mean:+.4f}{half} {difference.word}"


def format_spread(values: Sequence[float] | np.ndarray, digits: int) -> str:
    """Mean ± standard deviation."""
    if len(values) < 2:
        return f"{np.mean(values):.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def format_compute(one: Judged) -> str:
    """Thousands of tokens, and the multiple of what random draws of the same size take."""
    times = "" if math.isnan(one.size_ratio) else f" (×{one.size_ratio:.2g})"
    return f"{one.compute / 1000:,.0f}{times}"


def _format_cost(one: Judged) -> str:
    """How nearly equal the cost is: that of the arm as a multiple of that of the draws."""
    return "" if one.same_cost is None else f"; costs ×{one.cost_ratio:.2f}"


def make_table(judged: Sequence[Judged], shows_rates: bool = False, diverged: Sequence[str] = ()) -> Table:
    """By response tokens: a head, and a row for each arm. Columns in which there is nothing are left out."""
    return _leave_out_empty([_describe(one, shows_rates) for one in judged], diverged)


def make_sample_table(judged: Sequence[Judged], diverged: Sequence[str] = ()) -> Table:
    """The losses and differences by samples, lowest loss first."""
    return _leave_out_empty(
        [
            {
                "selection": one.arm,
                "held-out loss": format_spread(one.sample_losses, 4),
                "against random, equal selection": format_difference(one.same_size.samples if one.same_size else None),
                "against random, equal cost": format_difference(one.same_cost.samples if one.same_cost else None),
                "against the full set": format_difference(one.full.samples if one.full else None),
            }
            for one in sorted(judged, key=lambda one: float(one.sample_losses.mean()))
        ],
        diverged,
    )


def _leave_out_empty(lines: Sequence[dict[str, str]], diverged: Sequence[str]) -> Table:
    """A head, and a row for each line, without columns in which there is nothing; then arms that have diverged."""
    columns = lines[0] if lines else {"selection": "", "held-out loss": ""}
    head = [name for name in columns if any(line[name] for line in lines) or not lines]
    marked = [{"selection": arm, "held-out loss": "diverged"} for arm in diverged]
    return [head, *([line.get(name, "") for name in head] for line in (*lines, *marked))]


def _describe(one: Judged, shows_rates: bool) -> dict[str, str]:
    """One row, by column."""
    runs = one.results
    answers = {
        "ROUGE-L": format_spread([run.rouge_l for run in runs], 3),
        "exact match": f"{np.mean([run.exact_match for run in runs]):.3f}",
    }
    return {
        "selection": one.arm,
        "samples": f"{np.mean([run.samples for run in runs]):,.0f}",
        "response tokens": f"{np.mean([run.tokens for run in runs]):,.0f}",
        "times seen": f"{np.mean([run.seen for run in runs]):.1f}",
        **{name: f"{np.mean([run.shares[name] for run in runs]):.0%}" for name in runs[0].shares},
        "learning rate": ", ".join(f"{rate:g}" for rate in one.rates) if shows_rates else "",
        "total compute": format_compute(one),
        "held-out loss": format_spread(one.losses, 4),
        "against random, equal selection": format_difference(one.same_size.tokens if one.same_size else None),
        "against random, equal cost": format_difference(one.same_cost.tokens if one.same_cost else None)
        + _format_cost(one),
        "against the full set": format_difference(one.full.tokens if one.full else None),
        **{name: "" if "nan" in value else value for name, value in answers.items()},
    }


def format_markdown(table: Table) -> str:
    """The table in Markdown, the first column to the left and the others to the right."""
    head, *others = table
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_text(judged: Sequence[Judged]) -> str:
    """A narrow table for a terminal: cost, loss, and the comparisons with random draws, by tokens / by samples."""
    head = ["selection", "total compute", "loss", "equal selection", "equal cost"]
    lines = [head] + [
        [one.arm, format_compute(one), format_spread(one.losses, 4), *map(_shorten, (one.same_size, one.same_cost))]
        for one in judged
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _shorten(pair: Pair | None) -> str:
    """Both differences, and what they show."""
    return "" if pair is None else f"{pair.tokens.mean:+.4f} / {pair.samples.mean:+.4f} {pair.description}"
