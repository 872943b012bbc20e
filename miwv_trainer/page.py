"""A run as one HTML file: charts, rounds and every sample, with nothing loaded from elsewhere.

Texts of the pool reach the page as JSON and are shown as text only; a content security policy forbids the rest.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from miwv_trainer import __version__
from miwv_trainer.charts import Chart, score_name, scores_of, threshold
from miwv_trainer.config import MIWVConfig
from miwv_trainer.drawing import legend, to_svg
from miwv_trainer.guards import guarded, length_bands, ranking
from miwv_trainer.rendering import conversation, instruction_text
from miwv_trainer.rounds import measured_of
from miwv_trainer.selection import overlap
from miwv_trainer.store import StoredRound, write_text

TEXT_BYTES = {"selected": 2_000_000, "others": 4_000_000}
"""Of prompts and responses as JSON: beyond it the texts of these samples are cut, all at the same length."""
LONGEST_TEXT = 4000
DECIMALS = {"similarity": 3, "zero_shot_loss": 4, "one_shot_loss": 4, "miwv": 4, "score": 4}
SELECTED, BELOW = "selected", "below the threshold"
GUARDS = (
    "min_response_tokens", "min_similarity", "loss_band", "quantile_band", "length_bands", "selection_budget",
    "group_column", "diversity", "max_selected_similarity",
)  # fmt: skip
PASSING_OVER = GUARDS[4:]
"""Those that may leave a sample of higher score out for one of lower."""


def write_page(
    path: Path, rounds: Sequence[StoredRound], charts: Sequence[Chart], rows: Sequence[Mapping[str, Any]] | None
) -> Path:
    """
    Writes the page of a run's last round.

    Args:
        rounds: All rounds of the run, ascending.
        charts: What is drawn.
        rows: The pool's samples as they came, in pool order; without them samples are numbers.
    """
    current = rounds[-1]
    rest = (files("miwv_trainer") / "templates" / "report.html").read_text(encoding="utf-8")
    parts = {  # in the template's order, so that no text is searched for the mark of another
        "TITLE": escape(f"{score_name(current)} of {len(current.scores):,} samples"),
        "FACTS": _definitions(facts(current)),
        "ROUNDS": _rounds_table(rounds),
        "CHARTS": "".join(map(_figure, charts)),
        "VERSION": escape(__version__),
        "DATA": as_json(table(rounds, rows)),
    }
    page = ""
    for name, text in parts.items():
        before, rest = rest.split(f"<!--{name}-->")
        page += before + text
    write_text(path, page + rest)
    return path


def as_json(value: Any) -> str:
    """JSON that may stand in a `script` element: no character in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def facts(current: StoredRound) -> dict[str, str]:
    """What was scored and how, in words."""
    summary = current.summary
    config = summary["config"]
    found = {
        "selected": f"{summary['number_selected']:,} of {summary['samples']:,} samples, fraction {summary['fraction']}",
        "threshold": f"{score_name(current)} {threshold(current):.4f} and above",
        "round": f"{current.number}, after step {summary['global_step']:,}",
        "layout": summary["layout"],
        "embedder": config["embedder"],
        "arithmetic": summary["fingerprint"].get("model", {}).get("dtype", "no model was forwarded"),
    }
    default = MIWVConfig()
    differing = {name: config[name] for name in GUARDS if name in config and config[name] != getattr(default, name)}
    if differing:
        found["guards"] = ", ".join(f"{name}={value}" for name, value in differing.items())
    return found


def table(rounds: Sequence[StoredRound], rows: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    """The samples of the last round, a list a column."""
    current = rounds[-1]
    why, ranks = reasons(current)
    names = sorted(set(why), key=why.index)
    columns: dict[str, list[Any]] = {
        "exemplar": current.column("exemplar").tolist(),
        "prompt_tokens": current.column("prompt_tokens").tolist(),
        "response_tokens": current.column("response_tokens").tolist(),
        "age": current.column("age").tolist(),
        "rank": ranks.tolist(),
        "reason": [names.index(reason) for reason in why],
    }
    for name, decimals in DECIMALS.items():
        values = np.round(current.column(name).astype(np.float64), decimals)
        columns[name] = [value if np.isfinite(value) else None for value in values.tolist()]
    chosen = [[each.number for each, those in zip(rounds, flags, strict=True) if those] for flags in _selected(rounds)]
    columns["rounds"] = [" ".join(map(str, numbers)) for numbers in chosen]
    if columns["score"] == columns["miwv"] or not any(score is not None for score in columns["score"]):
        del columns["score"]
    if not any(age > 0 for age in columns["age"]):
        del columns["age"]
    if len(rounds) == 1:
        del columns["rounds"]
    data: dict[str, Any] = {"reasons": names, "score": score_name(current), "columns": columns, "cut": {}}
    if rows is not None:
        prompts = [instruction_text(row) or "" for row in rows]
        responses = [response_text(row) for row in rows]
        texts: list[list[str]] = [prompts, responses]
        for name, those in (("selected", current.column("selected")), ("others", ~current.column("selected"))):
            data["cut"][name], texts = shortened(texts, np.flatnonzero(those), TEXT_BYTES[name])
        columns["prompt"], columns["response"] = texts
    return data


def reasons(current: StoredRound) -> tuple[list[str], np.ndarray]:
    """
    Why each sample was selected or not, and its `(N,)` rank by score among those that the guards let through, from 1;
    0 for all others.
    """
    config = MIWVConfig(**_known_fields(current.summary["config"]))
    scores, measured = scores_of(current), measured_of(current)
    why = np.full(len(scores), "", dtype=object)
    why[np.isnan(scores)] = "no finite loss, or no room for an example in the context"
    why[(current.column("response_tokens") == 0) & np.isnan(scores)] = "no response"
    why[(current.column("prompt_tokens") == 0) & np.isnan(scores)] = "no prompt"
    may = ~np.isnan(scores)
    for guard, those in guarded(scores, measured, config):
        why[those] = f"left out by {guard}"
        may &= ~those
    ranked = ranking(scores, length_bands(may, measured.response_tokens, 1))
    ranks = np.zeros(len(scores), dtype=np.int64)
    ranks[ranked] = np.arange(1, len(ranked) + 1)
    is_selected = current.column("selected")
    last = ranks[is_selected].max(initial=0)
    how = ", ".join(f"{name}={getattr(config, name)}" for name in _passing_over(config))
    why[may] = np.where(ranks[may] > last, BELOW, f"passed over by {how}" if how else BELOW)
    why[is_selected] = SELECTED
    return why.tolist(), ranks


def response_text(row: Mapping[str, Any]) -> str:
    """What the assistant says in a sample, all turns together."""
    messages, given = conversation(row)
    return "\n\n".join(message["content"] for message in messages[given:] if message["role"] == "assistant")


def shortened(columns: Sequence[Sequence[str]], those: np.ndarray, budget: int) -> tuple[int, list[list[str]]]:
    """
    Texts cut at a number of characters, the greatest at which all of `those` take at most `budget` bytes as JSON.

    Args:
        columns: Lists of N texts.
        those: Indices of the samples whose texts are meant; the others stay as they are.

    Returns:
        That number, 0 where nothing is cut, and the texts, an ellipsis where one is cut.
    """
    meant = [[column[index] for index in those] for column in columns]
    longest = max((len(text) for column in meant for text in column), default=0)
    if longest <= LONGEST_TEXT and _bytes(meant, longest) <= budget:
        return 0, [list(column) for column in columns]
    low, high = 1, min(longest, LONGEST_TEXT)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _bytes(meant, middle) <= budget else (low, middle - 1)
    cut = [list(column) for column in columns]
    for column in cut:
        for index in those:
            column[index] = _cut(column[index], low)
    return low, cut


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "…"


def _bytes(columns: Sequence[Sequence[str]], length: int) -> int:
    return len(as_json([[_cut(text, length) for text in column] for column in columns]).encode())


def _selected(rounds: Sequence[StoredRound]) -> list[list[bool]]:
    return np.stack([each.column("selected") for each in rounds], axis=1).tolist()


def _passing_over(config: MIWVConfig) -> list[str]:
    """What of a configuration may have passed over a sample."""
    default = MIWVConfig()
    return [name for name in PASSING_OVER if getattr(config, name) != getattr(default, name)]


def _known_fields(described: Mapping[str, Any]) -> dict[str, Any]:
    """What of a stored configuration says what was selected."""
    return {name: described[name] for name in ("score", *GUARDS) if name in described}


def _definitions(found: Mapping[str, str]) -> str:
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(text))}</dd></div>" for name, text in found.items())


def _rounds_table(rounds: Sequence[StoredRound]) -> str:
    head = ("round", "step", "selected", "of them in the round before", "tokens forwarded", "seconds", "samples/s")
    lines = ["<tr>" + "".join(f'<th scope="col">{name}</th>' for name in head) + "</tr>"]
    for position, current in enumerate(rounds):
        summary = current.summary
        kept = "" if position == 0 else f"{overlap(current.selection, rounds[position - 1].selection):.0%}"
        seconds = summary["seconds"]
        cells = [
            str(current.number), f"{summary['global_step']:,}", f"{summary['number_selected']:,}", kept,
            f"{summary['tokens_forwarded']:,}", f"{seconds:,.0f}",
            f"{summary['samples_per_second']:,.1f}" if summary["samples_per_second"] else "",
        ]  # fmt: skip
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "".join(lines)


def _figure(chart: Chart) -> str:
    caption = f"<p>{escape(chart.caption)}</p>" if chart.caption else ""
    title = f"<figcaption><h3>{escape(chart.title)}</h3>{legend(chart)}</figcaption>"
    return f'<figure id="{chart.key}">{title}{to_svg(chart)}{caption}</figure>'
