"""Measurements as a table for a terminal and for a Markdown file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from miwv_trainer.scoring.losses import Losses

CAPTION = (
    "Ratio: row's seconds / this layout's. Of ceiling: the ceiling's seconds / this layout's. Tokens: forwarded, "
    "padding included. Memory: peak above what was in use before."
)


@dataclass(frozen=True)
class Line:
    """
    What was measured of one layout.

    Args:
        layout: Its name.
        seconds: Median over the repetitions.
        tokens: Tokens forwarded, padding included.
        flops: Floating-point operations, by `Work.flops`.
        peak_bytes: Most bytes in use above those before; None where the system does not report it.
        losses: The losses; None for the ceiling, which computes none.
    """

    layout: str
    seconds: float
    tokens: int
    flops: float
    peak_bytes: int | None
    losses: Losses | None


def make_cells(lines: Sequence[Line], peak_tflops: float | None = None) -> list[list[str]]:
    """The table's cells, titles first."""
    seconds = {line.layout: line.seconds for line in lines}
    titles = ["layout", "seconds", "tokens", "tokens/s", "ratio to row", "of ceiling", "peak memory"]
    rows = [titles + ["of peak FLOP/s"] * (peak_tflops is not None)]
    for line in lines:
        row, ceiling = seconds.get("row"), seconds.get("ceiling")
        texts = [
            line.layout,
            f"{line.seconds:.2f}",
            f"{line.tokens}",
            f"{line.tokens / line.seconds:.0f}",
            "-" if row is None else f"{row / line.seconds:.2f}",
            "-" if ceiling is None else f"{ceiling / line.seconds:.0%}",
            "-" if line.peak_bytes is None else f"{line.peak_bytes / 2**20:.0f} MiB",
        ]
        if peak_tflops is not None:
            texts.append(f"{line.flops / line.seconds / (peak_tflops * 1e12):.1%}")
        rows.append(texts)
    return rows


def compare_losses(lines: Sequence[Line]) -> list[str]:
    """How much each layout's losses differ from those of row-by-row scoring, or of the first layout without it."""
    scored = [(line.layout, line.losses) for line in lines if line.losses is not None]
    if len(scored) < 2:
        return ["Losses: not compared, since fewer than two layouts that score were run."]
    (reference, expected), *others = sorted(scored, key=lambda found: found[0] != "row")
    return [f"Losses of {name} against {reference}: {_describe_gap(losses, expected)}." for name, losses in others]


def _describe_gap(losses: Losses, expected: Losses) -> str:
    ours, theirs = (np.stack([found.zero_shot, found.one_shot]) for found in (losses, expected))
    if not np.array_equal(np.isnan(ours), np.isnan(theirs)):
        differing = int((np.isnan(ours) != np.isnan(theirs)).any(axis=0).sum())
        return f"DIFFERENT SAMPLES ARE SCORED ({differing} in one of the two only)"
    kept = ~np.isnan(losses.miwv) & ~np.isnan(expected.miwv)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.corrcoef(losses.miwv[kept], expected.miwv[kept])[0, 1] if kept.sum() > 1 else np.nan
    worst = np.nanmax(np.abs(ours - theirs))
    return f"largest difference {worst:.2g}, correlation of MIWV {correlation:.6f} ({int(kept.sum())} samples)"


def format_text(facts: Mapping[str, str], table: list[list[str]], notes: Sequence[str]) -> str:
    """Facts, aligned columns and notes for a terminal."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    head = [f"{name}: {value}" for name, value in facts.items()]
    body = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table]
    return "\n".join([*head, "", *body, "", *notes, CAPTION])


def format_markdown(facts: Mapping[str, str], table: list[list[str]], notes: Sequence[str]) -> str:
    """The same as a section of a Markdown file."""
    titles, *rows = [f"| {' | '.join(row)} |" for row in table]
    rule = "|---|" + "---:|" * (len(table[0]) - 1)
    head = [f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in facts.items()]
    title = f"### {facts['model']}, {facts['dtype']}, {facts['pool']}"
    return "\n".join([title, "", *head, "", titles, rule, *rows, "", *(f"- {note}" for note in notes), ""])
