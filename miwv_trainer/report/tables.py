"""Rounds as text for a terminal and a log."""

from collections.abc import Sequence

import numpy as np

from miwv_trainer.report.explanations import SELECTED, explain_selection
from miwv_trainer.report.round_facts import explain_missing_miwv
from miwv_trainer.rounds.messages import describe_proxy, describe_source
from miwv_trainer.rounds.stored_config import restore_config
from miwv_trainer.selection.choose import compute_overlap
from miwv_trainer.selection.scores import get_score
from miwv_trainer.storage.stored_round import StoredRound

HIGHEST, LOWEST = 5, 2
LOSSES = ("zero_shot_loss", "one_shot_loss", "miwv")
LABEL_WIDTH = 14  # of a score that is none of these
# Numbers and two prompts of this width take 125 columns.
PROMPT_WIDTH = 44


def format_scores(current: StoredRound, texts: Sequence[str] | None = None) -> str:
    """
    The five samples that rank highest and the two that rank lowest, with both losses, MIWV, their own and their
    exemplars' prompts. They are ranked as the round has ranked them; by MIWV if its score was random. Samples that a
    guard leaves out are not among them.

    Args:
        current: The round.
        texts: The pool's instructions, in pool order; None shows indices instead.
    """
    score = get_score(restore_config(current))
    ranked = _rank_candidates(current, by_miwv=score.is_random)
    missing = [] if np.isfinite(current.column("miwv")).any() else [explain_missing_miwv(current)]
    if not len(ranked):
        return explain_missing_miwv(current)
    label = None if score.is_random or score.column in LOSSES else score.label[:LABEL_WIDTH]
    highest = ranked[:HIGHEST]
    lowest = ranked[max(len(highest), len(ranked) - LOWEST) :]
    heads = ["index", "zero-shot", "one-shot", "MIWV", *([label] if label is not None else [])]
    lines = [*missing, _format_line(heads, "prompt", "prompt of its exemplar")]
    names = [*LOSSES, *(["score"] if label is not None else [])]
    lines += [_format_score_line(current, int(index), names, texts) for index in highest]
    if len(lowest):
        lines += ["   ..."] + [_format_score_line(current, int(index), names, texts) for index in lowest]
    return "\n".join(lines)


def _rank_candidates(current: StoredRound, by_miwv: bool) -> np.ndarray:
    """`(r,)` indices of the samples that pass the guards, best first: by the round's own ranking, or by MIWV."""
    ranks, miwv = explain_selection(current).ranks, current.column("miwv")
    order = np.argsort(-miwv if by_miwv else ranks, kind="stable")
    return order[(ranks[order] > 0) & (~np.isnan(miwv[order]) | (not by_miwv))]


def format_left_out(current: StoredRound) -> str:
    """One line about the samples that are not ranked, with the number of each reason; empty if all are."""
    explained = explain_selection(current)
    is_left_out = (explained.ranks == 0) & (explained.codes != explained.phrases.index(SELECTED))
    if not is_left_out.any():
        return ""
    counts = np.bincount(explained.codes[is_left_out], minlength=len(explained.phrases)).tolist()
    listed = [f"{count} {phrase}" for phrase, count in zip(explained.phrases, counts, strict=True) if count]
    return f"{is_left_out.sum()} of {len(is_left_out)} samples are not ranked: {'; '.join(listed)}"


def format_rounds(rounds: Sequence[StoredRound]) -> str:
    """One line a round: what it cost, what it selected, and how much of that the round before had selected."""
    lines = []
    for position, current in enumerate(rounds):
        summary = current.summary
        line = (
            f"round {current.number} (step {summary['global_step']}): {summary['number_selected']} of "
            f"{summary['samples']} selected, {summary['tokens_forwarded']} tokens in {summary['seconds']:.0f} s"
        )
        if summary.get("refined_samples"):
            again, seconds = summary["refined_samples"], summary["refined_seconds"]
            line += f" ({again} near the threshold again in float32: {seconds:.0f} s)"
        if "proxy" in summary:
            line += f", by a smaller model ({describe_proxy(summary['proxy'])})"
        if "scores_from" in summary:
            line += f", {describe_source(current)}"
        if position > 0:
            before = rounds[position - 1]
            both = len(np.intersect1d(current.selection, before.selection))
            share = compute_overlap(current.selection, before.selection)
            line += f", {both} of them selected in round {before.number} too ({share:.0%})"
        lines.append(line)
    return "\n".join(lines)


def _format_score_line(current: StoredRound, index: int, names: Sequence[str], texts: Sequence[str] | None) -> str:
    exemplar = int(current.column("exemplar")[index])
    numbers = [float(current.column(name)[index]) for name in names]
    shown = ["-" if np.isnan(number) else f"{number:.3f}" for number in numbers]
    prompts = [
        "none" if i < 0 else _shorten_text(texts[i]) if texts is not None else f"sample {i}" for i in (index, exemplar)
    ]
    return _format_line([str(index), *shown], *prompts)


def _format_line(cells: Sequence[str], prompt: str, exemplar: str) -> str:
    widths = (6, 9, 8, 7, LABEL_WIDTH)
    numbers = " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
    return f"{numbers}  {prompt:<{PROMPT_WIDTH}}  {exemplar}"


def _shorten_text(text: str) -> str:
    # A prompt may hold escape sequences, which would move the cursor or change colours: they are printed as text.
    words = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(text.split()))
    return words if len(words) <= PROMPT_WIDTH else words[: PROMPT_WIDTH - 3] + "..."
