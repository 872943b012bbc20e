"""Results of `compare.py` as tables, a plot and a page."""

import datetime
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from miwv_trainer import __version__

TITLES = {"samples": "Equal numbers of samples", "tokens": "Equal numbers of response tokens"}
COLUMNS = (
    "selection", "samples", "response tokens", "times seen", "held-out loss", "against random",
    "against the full set", "ROUGE-L", "exact match",
)  # fmt: skip
FULL, RANDOM, UNTRAINED = "full set", "random", "untrained"
EXPLANATION = """
All arms of both tables train for the same {steps}. The last batch of an epoch is smaller where the batch size does not
divide the selection, so small selections see fewer samples in the same number of steps than the full set does. "MIWV
rescored" trains on its last selection for the last {late} of these steps.

Losses are in nats per response token of the held-out samples: mean ± standard deviation over {seeds} seeds. Differences
are paired by seed and given with their 95 % interval (Student's t, {degrees} degrees of freedom). They are called lower
or higher where the interval excludes zero. The interval covers the choice of the seed (adapter, order and random
draws), not that of the held-out samples. ROUGE-L and exact match are computed on greedy answers to held-out prompts,
cut at a fixed number of tokens. Use them to compare arms; their absolute values say little.
"""


@dataclass(frozen=True)
class Result:
    """
    One run.

    Args:
        arm: Name of the selection.
        budget: Whether arms select equal numbers of `"samples"` or `"tokens"`; empty where nothing is selected.
        seed: Seed of the adapter, of the order and of random draws.
        samples: Number of selected samples.
        tokens: Number of their response tokens.
        epochs: How often each of them was trained on, on average.
        loss: Held-out loss in nats per response token.
        exact_match: Share of generations that equal their reference; NaN without generations.
        rouge_l: ROUGE-L of the generations, from 0 to 1; NaN without generations.
        seconds: Time of training and evaluation.
    """

    arm: str
    budget: str
    seed: int
    samples: int
    tokens: int
    epochs: float
    loss: float
    exact_match: float
    rouge_l: float
    seconds: float

    @property
    def name(self) -> str:
        budget = f", equal {self.budget}" if self.budget else ""
        return f"{self.arm}{budget}, seed {self.seed}" if self.arm != UNTRAINED else self.arm


def read_results(path: Path, described: dict[str, Any], data: dict[str, str]) -> list[Result]:
    """
    Results that an earlier call has written; none where it has written no file.

    Args:
        path: The file.
        described: The options that decide the results.
        data: Fingerprints of the pool and of the held-out samples.

    Raises:
        SystemExit: the results come from other options or samples.
    """
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, value in described.items():
        before = found["settings"].get(name)
        if before != value:
            option = "--" + name.replace("_", "-")
            raise SystemExit(f"{path} was made with {option} {before}, not {value}: give that, or another --output.")
    if found.get("data") != data:
        raise SystemExit(f"{path} was made with other samples, though of the same name: give another --output.")
    return [Result(**line) for line in found["results"]]


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Replaces the file as a whole, so that a comparison that is killed while it writes loses no results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".json.new")
    written.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(written, path)


def compute_difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean of the differences of the pairs, and half the width of its 95 % interval; NaN for a single pair."""
    differences = np.subtract(ours, theirs)
    count = len(differences)
    if count < 2:
        return float(differences.mean()), math.nan
    return float(differences.mean()), float(student.ppf(0.975, count - 1) * differences.std(ddof=1) / math.sqrt(count))


def describe_difference(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The difference with its interval, and whether the interval excludes zero."""
    mean, half = compute_difference(ours, theirs)
    if math.isnan(half):
        return f"{mean:+.4f}"
    word = "lower" if mean + half < 0 else "higher" if mean - half > 0 else "not shown"
    return f"{mean:+.4f} ± {half:.4f} ({word})"


def list_losses(results: Sequence[Result], arm: str, budget: str) -> list[float]:
    """Losses of an arm's runs, by seed. The full set belongs to both budgets."""
    found = [result for result in results if result.arm == arm and result.budget in ("", budget)]
    return [result.loss for result in sorted(found, key=lambda result: result.seed)]


def make_rows(results: Sequence[Result], budget: str) -> list[list[str]]:
    """One row for each arm, lowest loss first."""
    table = []
    arms = dict.fromkeys(result.arm for result in results if result.budget in ("", budget) and result.arm != UNTRAINED)
    for arm in sorted(arms, key=lambda arm: float(np.mean(list_losses(results, arm, budget)))):
        ours = [result for result in results if result.arm == arm and result.budget in ("", budget)]
        losses = list_losses(results, arm, budget)
        table.append(
            [
                arm,
                f"{np.mean([result.samples for result in ours]):,.0f}",
                f"{np.mean([result.tokens for result in ours]):,.0f}",
                f"{np.mean([result.epochs for result in ours]):.1f}",
                format_spread(losses, 4),
                *("" if arm == other else compare_arms(results, arm, other, budget) for other in (RANDOM, FULL)),
                format_spread([result.rouge_l for result in ours], 3),
                f"{np.mean([result.exact_match for result in ours]):.3f}",
            ]
        )
    return table


def compare_arms(results: Sequence[Result], arm: str, other: str, budget: str) -> str:
    """How an arm differs from another one, over the seeds that both have."""
    ours, theirs = list_losses(results, arm, budget), list_losses(results, other, budget)
    count = min(len(ours), len(theirs))
    return describe_difference(ours[:count], theirs[:count]) if count else ""


def format_spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation."""
    if len(values) < 2:
        return f"{np.mean(values):.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def make_table(results: Sequence[Result], budget: str) -> list[list[str]]:
    """A head and the rows, without the columns about generations where there are none."""
    lines = [list(COLUMNS), *make_rows(results, budget)]
    has_generations = not all(math.isnan(result.rouge_l) for result in results)
    return lines if has_generations else [line[:-2] for line in lines]


def format_markdown(results: Sequence[Result], budget: str) -> str:
    head, *others = make_table(results, budget)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_tables(results: Sequence[Result]) -> str:
    """Both tables for a terminal."""
    parts = []
    for budget, title in TITLES.items():
        lines = make_table(results, budget)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        parts.append(f"{title}; untrained {get_untrained_loss(results):.4f}")
        parts += ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        parts.append("")
    return "\n".join(parts)


def get_untrained_loss(results: Sequence[Result]) -> float:
    return next((result.loss for result in results if result.arm == UNTRAINED), math.nan)


def build_page(results: Sequence[Result], facts: dict[str, Any]) -> str:
    """The page in Markdown."""
    seeds = len({result.seed for result in results if result.arm != UNTRAINED})
    minutes = sum(result.seconds for result in results) / 60
    lines = [
        "# Does it help to select?\n",
        f"- model: {facts['model']}, LoRA",
        f"- pool: {facts['pool']}",
        f"- measured: {datetime.date.today().isoformat()}, {describe_machine()}, miwv_trainer {__version__}",
        f"- training and evaluation: {minutes:.0f} min",
        f"- command: `{facts['command']}`",
        EXPLANATION.format(steps=facts["steps"], late=facts["late"], seeds=seeds, degrees=max(seeds - 1, 0)),
        "![held-out loss of each arm](comparison.png)\n",
    ]
    for budget, title in TITLES.items():
        lines += [
            f"## {title}\n",
            f"Untrained: {get_untrained_loss(results):.4f}.\n",
            format_markdown(results, budget) + "\n",
        ]
    return "\n".join(lines)


def describe_machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU thread(s), {platform.machine()}, torch {torch.__version__}"


def draw_losses(results: Sequence[Result], path: Path) -> None:
    """Draws each seed's held-out loss as a dot and each arm's mean as a bar, with one panel for each budget."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, len(TITLES), sharex=True)
    for panel, (budget, title) in zip(axes, TITLES.items(), strict=True):
        arms = [row[0] for row in make_rows(results, budget)][::-1]
        baseline = list_losses(results, RANDOM, budget)
        for height, arm in enumerate(arms):
            losses = list_losses(results, arm, budget)
            colour = "#c2410c" if arm.startswith("MIWV") else "#475569"
            panel.plot(losses, [height] * len(losses), "o", color=colour, alpha=0.6, markersize=5)
            panel.plot([np.mean(losses)], [height], "|", color=colour, markersize=18, markeredgewidth=2)
        if baseline:
            panel.axvline(float(np.mean(baseline)), color="#94a3b8", linewidth=1, linestyle="--", zorder=0)
        panel.set_yticks(range(len(arms)), arms)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("held-out loss (nats per response token)")
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
