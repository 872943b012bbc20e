"""Rounds as text for a terminal and a log."""

from collections.abc import Sequence

import numpy as np

from miwv_trainer.report.round_facts import explain_missing_miwv
from miwv_trainer.rounds.messages import describe_proxy, describe_source
from miwv_trainer.selection.choose import compute_overlap
from miwv_trainer.storage.stored_round import StoredRound

HIGHEST, LOWEST = 5, 2
# Numbers and two prompts of this width take 125 columns.
PROMPT_WIDTH = 44


def format_scores(current: StoredRound, texts: Sequence[str] | None = None) -> str:
    """
    The five samples of highest and the two of lowest MIWV, with both losses, their own and their exemplars' prompts.

    Args:
        current: The round.
        texts: The pool's instructions, in pool order; None shows indices instead.
    """
    # By MIWV also where another score was selected by: the table shows what MIWV means, not the selection.
    miwv = current.column("miwv")
    ranked = np.argsort(-miwv, kind="stable")
    ranked = ranked[~np.isnan(miwv[ranked])]
    if not len(ranked):
        return explain_missing_miwv(current)
    highest = ranked[:HIGHEST]
    lowest = ranked[max(len(highest), len(ranked) - LOWEST) :]
    lines = [_format_line("index", "zero-shot", "one-shot", "MIWV", "prompt", "prompt of its exemplar")]
    lines += [_format_score_line(current, int(index), texts) for index in highest]
    if len(lowest):
        lines += ["   ..."] + [_format_score_line(current, int(index), texts) for index in lowest]
    return "\n".join(lines)


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


def _format_score_line(current: StoredRound, index: int, texts: Sequence[str] | None) -> str:
    exemplar = int(current.column("exemplar")[index])
    losses = (current.column(name)[index] for name in ("zero_shot_loss", "one_shot_loss", "miwv"))
    prompts = (_shorten_text(texts[i]) if texts is not None else f"sample {i}" for i in (index, exemplar))
    return _format_line(str(index), *(f"{loss:.3f}" for loss in losses), *prompts)


def _format_line(index: str, zero_shot: str, one_shot: str, miwv: str, prompt: str, exemplar: str) -> str:
    return f"{index:>6} {zero_shot:>9} {one_shot:>8} {miwv:>7}  {prompt:<{PROMPT_WIDTH}}  {exemplar}"


def _shorten_text(text: str) -> str:
    # A prompt may hold escape sequences, which would move the cursor or change colours: they are printed as text.
    words = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(text.split()))
    return words if len(words) <= PROMPT_WIDTH else words[: PROMPT_WIDTH - 3] + "..."
