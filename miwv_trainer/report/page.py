"""The page of a report: one HTML file that loads nothing from elsewhere and runs no script that a dataset holds."""

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from miwv_trainer.config import MIWVConfig
from miwv_trainer.own_scores import describe_score
from miwv_trainer.report.charts import build_charts
from miwv_trainer.report.layers import Chart
from miwv_trainer.report.page_data import build_data
from miwv_trainer.report.round_facts import count_moves, find_finite, find_miwv_threshold
from miwv_trainer.report.svg import draw_legend, draw_svg
from miwv_trainer.report.texts import PoolTexts
from miwv_trainer.rounds.messages import describe_proxy, describe_source, format_duration
from miwv_trainer.rounds.stored_config import restore_config
from miwv_trainer.selection.choose import compute_overlap
from miwv_trainer.selection.scores import MIWV_MEANING, get_score
from miwv_trainer.storage.atomic import write_text
from miwv_trainer.storage.stored_round import StoredRound

FOLDER, PAGE = "report", "index.html"
# Of what is put into the template: the page as a whole stays below 10 MB.
MOST_BYTES = 9_600_000
PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
# Shown in the settings by their own lines, or of no interest.
LISTED_ELSEWHERE = ("fraction", "score", "selection_budget", "sampler_seed")


def write_page(output: Path, rounds: Sequence[StoredRound], texts: PoolTexts | None = None) -> tuple[Path, list[Chart]]:
    """
    Writes `report/index.html` under `output`. Returns its path and the charts that are on it.

    Args:
        output: Folder of the run.
        rounds: Its finished rounds.
        texts: The pool's texts; None leaves them out of the table.

    Raises:
        OSError: the page could not be written.
    """
    charts, missing = build_charts(rounds)
    warning = rounds[-1].summary.get("exemplar_warning")
    if warning is not None:
        missing = [warning, *missing]
    path = output / FOLDER / PAGE
    write_text(path, build_page(rounds, charts, missing, texts))
    return path, charts


def build_page(
    rounds: Sequence[StoredRound], charts: Sequence[Chart], missing: Sequence[str], texts: PoolTexts | None
) -> str:
    """The page's HTML. `missing` are sentences about exemplars that tell little and about charts that are left out."""
    current = rounds[-1]
    style, script = _read_template("report.css"), _read_template("report.js")
    parts = {
        # The hashes allow the page's own style and script alone. A text that got out of its place would not run.
        "policy": f"default-src 'none'; style-src '{_hash_inline(style)}'; script-src '{_hash_inline(script)}'; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "subtitle": escape(_describe_run(current)),
        "figures": _build_tiles(current),
        "settings": _build_settings(current),
        "lead": "".join(
            f'<p class="lead">{escape(each)}</p>' for each in [*_explain_scores(current), *_tell_origins(rounds)]
        ),
        "charts": "".join(_build_figure(chart) for chart in charts),
        "missing": "".join(f'<p class="note">{escape(sentence)}</p>' for sentence in missing),
        "rounds": _build_rounds_table(rounds),
    }
    bytes_used = sum(len(part.encode()) for part in parts.values())
    parts["data"], notes = build_data(rounds, texts, MOST_BYTES - bytes_used)
    parts["notes"] = " ".join(escape(note) for note in notes)
    # In one pass: what is put in is not searched, so that "{{data}}" in a dataset stays as it is.
    return PLACEHOLDER.sub(lambda found: parts[found[1]], _read_template("report.html"))


def _read_template(name: str) -> str:
    return (files("miwv_trainer.report") / "templates" / name).read_text(encoding="utf-8")


def _hash_inline(text: str) -> str:
    """The name of an inline style or script in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _describe_run(current: StoredRound) -> str:
    summary, fingerprint = current.summary, current.summary["fingerprint"]
    # A Trainer's dataset may have no name, and rounds without forwards have no model.
    model = fingerprint.get("model") or {}
    # Of a folder its last part: a page is passed on, and a path of this machine says nothing elsewhere.
    names = filter(None, (summary.get("dataset"), summary.get("model")))
    named = [Path(name).name if Path(name).is_absolute() else name for name in names]
    layout = f"layout {summary['layout']}" if summary["tokens_forwarded"] else None
    parts = [*named, model.get("dtype"), layout]
    return " · ".join(str(part) for part in parts if part)


def _explain_scores(current: StoredRound) -> list[str]:
    """What was ranked, and what MIWV is where the page shows it beside another score."""
    meaning = get_score(restore_config(current)).meaning
    is_other = MIWV_MEANING not in meaning and bool(find_finite(current, "miwv").any())
    return [meaning, *([MIWV_MEANING] if is_other else [])]


def _tell_origins(rounds: Sequence[StoredRound]) -> list[str]:
    """Whose losses those are that the model in training did not make."""
    told = []
    for each in rounds:
        if "proxy" in each.summary:
            told.append(f"Round {each.number} is scored by a smaller model: {describe_proxy(each.summary['proxy'])}.")
        if "scores_from" in each.summary:
            told.append(f"Round {each.number}: {describe_source(each)}.")
    return told


def _build_tiles(current: StoredRound) -> str:
    """The numbers that matter most."""
    summary = current.summary
    miwv = current.column("miwv")[find_finite(current, "miwv")]
    count, samples = summary["number_selected"], summary["samples"]
    threshold = find_miwv_threshold(current)
    tiles = [(f"{count:,}", f"of {samples:,} samples selected ({count / samples:.1%})")]
    if threshold is not None:
        tiles.append((_format_number(threshold), "MIWV at the threshold"))
    else:
        config = restore_config(current)
        tiles.append((get_score(config).label, "ranked by" if config.selection == "top" else "ranked by, then drawn"))
    if len(miwv):
        tiles.append((_format_number(float(np.median(miwv))), "median MIWV"))
        tiles.append((f"{(miwv > 0).mean():.0%}", "have a MIWV above 0"))
    tiles.append((f"{summary.get('unscorable', 0):,}", "without a score"))
    # Of this round alone: read as the time of the whole run, it would be too little.
    time, tokens = format_duration(summary["seconds"], digits=1), f"{summary['tokens_forwarded']:,} tokens"
    tiles.append((time, f"for {tokens} of round {current.number}"))
    return "".join(f"<li><b>{escape(value)}</b> <span>{escape(label)}</span></li>" for value, label in tiles)


def _build_settings(current: StoredRound) -> str:
    """What the last round was scored and selected with; guards that are off are left out."""
    summary, config = current.summary, restore_config(current)
    fingerprint, given = summary["fingerprint"], summary.get("config", {})
    model = fingerprint.get("model") or {}
    settings: dict[str, object] = {
        "score": describe_score(config.score),
        "fraction": f"{config.fraction:g} of the {config.selection_budget}",
        "model": summary.get("model"),
        "model configuration": model.get("config"),
        "dtype": model.get("dtype"),
        "layout": summary["layout"],
        "attention": summary.get("attention"),
        "dataset": summary.get("dataset"),
        "embedder": given.get("embedder"),
        "context": fingerprint.get("context"),
        "processes": summary.get("processes"),
        "rescore_strategy": given.get("rescore_strategy"),
    }
    defaults = MIWVConfig().to_dict()
    for name, value in config.to_dict().items():
        if name not in LISTED_ELSEWHERE and value != defaults[name]:
            settings[name] = value
    for guard, count in (summary.get("left_out") or {}).items():
        settings[f"left out by {guard}"] = f"{count:,}"
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in settings.items()
        if value is not None
    )


def _build_figure(chart: Chart) -> str:
    drawn, caption = draw_legend(chart) + draw_svg(chart), f"<figcaption>{escape(chart.caption)}</figcaption>"
    return f'<figure id="chart-{chart.name}"><h3>{escape(chart.title)}</h3>{drawn}{caption}</figure>'


def _build_rounds_table(rounds: Sequence[StoredRound]) -> str:
    lines = []
    for place, current in enumerate(rounds):
        summary = current.summary
        cells = [
            f"{summary['global_step']:,}",
            f"{summary['number_selected']:,}",
            f"{summary.get('scored', summary['samples']):,}",  # earlier versions scored all and did not say so
            f"{summary['tokens_forwarded']:,}",
            f"{summary['seconds']:,.1f}",
            f"{summary['samples_per_second']:,.1f}",
        ]
        if place:
            before = rounds[place - 1]
            moves = count_moves(before, current)
            share = compute_overlap(current.selection, before.selection)
            cells += [f"{share:.0%}", f"{moves.entered:,}", f"{moves.left:,}"]
        else:
            cells += ["–", "–", "–"]
        line = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{current.number}</th>{line}</tr>')
    return "".join(lines)


def _format_number(value: float) -> str:
    # The minus sign is as wide as a digit; a hyphen at the beginning of a number is easily overlooked.
    return f"{value:.3f}".replace("-", "−")
