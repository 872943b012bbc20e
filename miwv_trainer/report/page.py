"""The page of a report: one HTML file that asks nothing of any other, and runs nothing that a dataset holds."""

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from miwv_trainer.config import MIWVConfig
from miwv_trainer.report.charts import Chart, charts_of, moved, threshold_in_miwv
from miwv_trainer.report.drawing import svg
from miwv_trainer.report.explanations import SELECTED, Explanations, config_of, explain_selection
from miwv_trainer.report.texts import CUT, as_json, encodable, packed, shortened, sizes_of
from miwv_trainer.rounds.messages import duration
from miwv_trainer.selection.choose import overlap
from miwv_trainer.selection.scores import score_of
from miwv_trainer.storage.atomic import write_text
from miwv_trainer.storage.store import StoredRound

FOLDER, PAGE = "report", "index.html"
BYTES = 9_600_000
BYTES_OF_ROUNDS = 12_000_000  # before they are packed
RATIO = 3  # about how many bytes of text go into one, packed
ROWS = 60_000
DIGITS = 3
PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
Texts = tuple[Sequence[str], Sequence[str]]


def write_page(output: Path, rounds: Sequence[StoredRound], texts: Texts | None = None) -> tuple[Path, list[Chart]]:
    """
    Writes `report/index.html` under `output`. Returns its path and the charts that are on it.

    Args:
        texts: The pool's prompts and responses, in pool order.
    """
    charts, missing = charts_of(rounds)
    path = output / FOLDER / PAGE
    write_text(path, page(rounds, charts, missing, texts))
    return path, charts


def page(rounds: Sequence[StoredRound], charts: Sequence[Chart], missing: Sequence[str], texts: Texts | None) -> str:
    current = rounds[-1]
    style, script = _template("report.css"), _template("report.js")
    parts = {
        "policy": f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'",
        "style": style,
        "script": script,
        "subtitle": escape(_subtitle(current)),
        "figures": _figures(current),
        "settings": _settings(current),
        "charts": "".join(_figure(chart) for chart in charts),
        "missing": "".join(f'<p class="note">{escape(sentence)}</p>' for sentence in missing),
        "rounds": _rounds_table(rounds),
    }
    used = sum(len(part.encode()) for part in parts.values())
    data, notes = _data(rounds, texts, BYTES - used)
    parts["notes"] = " ".join(escape(note) for note in notes)
    parts["data"] = data
    return PLACEHOLDER.sub(lambda found: parts[found[1]], _template("report.html"))


def _template(name: str) -> str:
    return (files("miwv_trainer.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a content security policy calls an inline style or script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _subtitle(current: StoredRound) -> str:
    summary, fingerprint = current.summary, current.summary["fingerprint"]
    config = fingerprint.get("model") or {}
    parts = [summary.get("dataset"), summary.get("model"), config.get("dtype"), f"layout {summary['layout']}"]
    return " · ".join(str(part) for part in parts if part)


def _figures(current: StoredRound) -> str:
    """The numbers that matter most, as tiles."""
    summary = current.summary
    miwv = current.column("miwv")
    miwv = miwv[np.isfinite(miwv)]
    count, samples = summary["number_selected"], summary["samples"]
    limit = threshold_in_miwv(current)
    tiles = [
        (f"{count:,}", f"of {samples:,} samples selected ({count / samples:.1%})"),
        (_number(limit), "MIWV at the threshold") if limit is not None else (config_of(current).score, "ranked by"),
    ]
    if len(miwv):
        tiles += [
            (_number(float(np.median(miwv))), "median MIWV"),
            (f"{(miwv > 0).mean():.0%}", "have a MIWV above 0"),
        ]
    tiles.append((f"{summary.get('unscorable', 0):,}", "could not be scored"))
    tiles.append((duration(summary["seconds"], digits=1), f"for {summary['tokens_forwarded']:,} tokens"))
    return "".join(f"<li><b>{escape(value)}</b> <span>{escape(what)}</span></li>" for value, what in tiles)


def _settings(current: StoredRound) -> str:
    """What the last round was scored and selected with, guards that are off left out."""
    summary, config = current.summary, config_of(current)
    fingerprint, given = summary["fingerprint"], summary.get("config", {})
    found: dict[str, Any] = {
        "score": config.score, "fraction": f"{config.fraction:g} of the {config.selection_budget}",
        "model": summary.get("model"), "model configuration": (fingerprint.get("model") or {}).get("config"),
        "dtype": (fingerprint.get("model") or {}).get("dtype"), "layout": summary["layout"],
        "dataset": summary.get("dataset"), "embedder": given.get("embedder"), "context": fingerprint.get("context"),
        "processes": summary.get("processes"), "rescore_strategy": given.get("rescore_strategy"),
    }  # fmt: skip
    plain = MIWVConfig().to_dict()
    for name, value in config.to_dict().items():
        if name not in ("fraction", "score", "selection_budget", "sampler_seed") and value != plain[name]:
            found[name] = value
    for guard, count in (summary.get("left_out") or {}).items():
        found[f"left out by {guard}"] = f"{count:,}"
    lines = (f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in found.items()
             if value is not None)  # fmt: skip
    return "".join(lines)


def _figure(chart: Chart) -> str:
    caption = f"<figcaption>{escape(chart.caption)}</figcaption>"
    return f'<figure id="chart-{chart.name}"><h3>{escape(chart.title)}</h3>{svg(chart)}{caption}</figure>'


def _rounds_table(rounds: Sequence[StoredRound]) -> str:
    lines = []
    for place, current in enumerate(rounds):
        summary = current.summary
        cells = [
            f"{summary['global_step']:,}", f"{summary['number_selected']:,}",
            f"{summary.get('scored', summary['samples']):,}", f"{summary['tokens_forwarded']:,}",
            f"{summary['seconds']:,.1f}", f"{summary['samples_per_second']:,.1f}",
        ]  # fmt: skip
        if place:
            before = rounds[place - 1]
            _, entered, left = moved(before, current)
            cells += [f"{overlap(current.selection, before.selection):.0%}", f"{entered:,}", f"{left:,}"]
        else:
            cells += ["–", "–", "–"]
        line = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{current.number}</th>{line}</tr>')
    return "".join(lines)


def _data(rounds: Sequence[StoredRound], texts: Texts | None, room: int) -> tuple[str, list[str]]:
    """The table's columns and texts, packed into at most `room` bytes, and what was left out of them."""
    notes = []
    found = [explain_selection(current) for current in rounds]
    count, last = len(rounds[-1].scores), rounds[-1]
    rows = _rows_shown(rounds, found[-1])
    if len(rows) < count:
        notes.append(
            f"The table holds {len(rows):,} of {count:,} samples: those that the last round selected, those that a "
            "round before it selected, and then those of highest rank. Other rounds are counted over these."
        )
    shared = {
        "index": rows.tolist(),
        "exemplar": last.column("exemplar")[rows].tolist(),
        "similarity": _numbers(last.column("similarity")[rows]),
        "promptTokens": last.column("prompt_tokens")[rows].tolist(),
        "responseTokens": last.column("response_tokens")[rows].tolist(),
    }
    of_rounds: list[bytes] = []
    for current, reasons in zip(reversed(rounds), reversed(found), strict=True):
        columns = as_json(_columns(current, reasons, rows))
        if of_rounds and sum(map(len, of_rounds)) + len(columns) > BYTES_OF_ROUNDS:
            notes.append(f"The table holds the last {len(of_rounds)} of {len(rounds)} rounds, to keep the page small.")
            break
        of_rounds.append(columns)
    start = b'{"shared":' + as_json(shared) + b',"rounds":[' + b",".join(reversed(of_rounds)) + b'],"texts":'
    if texts is None:
        notes.append("Texts are not shown, because the report was made without --dataset.")
        return packed(start + b"null}"), notes
    matters = _matters(rounds[-len(of_rounds) :])[rows]
    shown = [side[index] for side in texts for index in rows.tolist()]
    data, note = _with_texts(start, shown, np.tile(matters, 2), room)
    return data, [*notes, *note]


def _with_texts(start: bytes, texts: list[str], matters: np.ndarray, room: int) -> tuple[str, list[str]]:
    """The data with as much of the texts, prompts before responses, as fits; and how long they may be."""
    texts = [encodable(text) for text in texts]
    half, sizes, without = len(texts) // 2, sizes_of(texts), len(packed(start))
    budget = RATIO * room
    while True:
        cut, long, short = shortened(texts, sizes, matters, budget)
        data = packed(start + as_json({"prompt": cut[:half], "response": cut[half:]}) + b"}")
        if len(data) <= room or budget == 0:
            break
        budget = int(budget * 0.96 * max(0, room - without) / (len(data) - without))
    if not any(text.endswith(CUT) for text in cut):
        return data, []
    return data, [
        f"Long texts are cut, so that the page stays below 10 MB: at {long:,} bytes those of selected samples and of "
        f"their exemplars, at {short:,} bytes all others. They end in{CUT}; the search sees what is shown."
    ]


def _matters(rounds: Sequence[StoredRound]) -> np.ndarray:
    """`(N,)` which samples were selected in one of the rounds, or are the exemplar of one that was."""
    selected = np.any([current.column("selected").astype(bool) for current in rounds], axis=0)
    exemplars = rounds[-1].column("exemplar")[selected]
    selected[exemplars[exemplars >= 0]] = True
    return selected


def _rows_shown(rounds: Sequence[StoredRound], reasons: Explanations) -> np.ndarray:
    """`(n,)` ascending indices of the samples in the table: all, or the selected and those of highest rank."""
    ranks = np.where(reasons.ranks > 0, reasons.ranks, len(reasons.ranks) + 1)
    selected = [current.column("selected").astype(bool) for current in rounds]
    return np.sort(np.lexsort((ranks, ~np.any(selected, axis=0), ~selected[-1]))[:ROWS])


def _columns(current: StoredRound, reasons: Explanations, rows: np.ndarray) -> dict[str, Any]:
    score = score_of(config_of(current))
    ages = current.column("age")
    return {
        "number": current.number,
        "score": score.ranking_label,
        "ranked": reasons.ranked,
        "numberSelected": int(current.column("selected").sum()),
        "phrases": reasons.phrases,
        "selected": reasons.phrases.index(SELECTED),
        "reason": reasons.codes[rows].tolist(),
        "rank": reasons.ranks[rows].tolist(),
        "zeroShot": _numbers(current.column("zero_shot_loss")[rows]),
        "oneShot": _numbers(current.column("one_shot_loss")[rows]),
        "miwv": _numbers(current.column("miwv")[rows]),
        "ownScore": _numbers(reasons.scores[rows]) if score.column is None else None,
        "age": ages[rows].tolist() if (ages > 0).any() else None,
    }


def _numbers(values: np.ndarray) -> list[float | None] | None:
    """Rounded, None where there is no number, and None altogether where there is not one."""
    is_known = np.isfinite(values)
    if not is_known.any():
        return None
    rounded = np.round(values.astype(np.float64), DIGITS).tolist()
    return [value if known else None for value, known in zip(rounded, is_known.tolist(), strict=True)]


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")
