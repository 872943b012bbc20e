"""Why each sample of a stored round was selected or was not.

The round stores losses and what was selected, but not why: guards and ranks are computed again from the losses, by the
same functions that the round used. That takes 20 ms for 50,000 samples.
"""

from dataclasses import dataclass

import numpy as np

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import find_complete_samples
from miwv_trainer.rounds.inputs import read_measured
from miwv_trainer.rounds.stored_config import restore_config
from miwv_trainer.selection.guards import iterate_guards
from miwv_trainer.selection.measured import Measured
from miwv_trainer.selection.ranking import assign_length_bands, rank_samples
from miwv_trainer.selection.rescoring import NEVER_SCORED
from miwv_trainer.selection.scores import (
    get_draw_seed,
    get_score,
    has_losses,
    needs_exemplars,
    score_samples,
)
from miwv_trainer.storage.stored_round import StoredRound

SELECTED = "selected"
Reason = tuple[str, np.ndarray]  # a phrase, and `(N,)` bool: the samples to which it applies


@dataclass(frozen=True)
class Explanations:
    """
    A reason for each sample, and its rank.

    Args:
        phrases: All reasons, such as "left out by min_response_tokens=3".
        codes: `(N,)` the place in `phrases` of each sample's reason.
        ranks: `(N,)` place among the samples that pass the guards, from 1; 0 where a sample is not among them.
        scores: `(N,)` what was ranked, NaN where a sample has no score.
    """

    phrases: list[str]
    codes: np.ndarray
    ranks: np.ndarray
    scores: np.ndarray

    @property
    def number_ranked(self) -> int:
        return int((self.ranks > 0).sum())


def explain_selection(current: StoredRound) -> Explanations:
    """The first reason that applies to each sample. What was selected is read, not computed again."""
    config = restore_config(current)
    measured = read_measured(current, get_draw_seed(config, current.number))
    is_complete = find_complete_samples(current.column("prompt_tokens"), measured.response_tokens)
    scores = score_samples(measured, get_score(config), is_complete)
    is_selected = current.column("selected").astype(bool)

    is_candidate = ~np.isnan(scores)
    reasons: list[Reason] = [(SELECTED, is_selected), *_explain_missing_scores(current, scores, measured, config)]
    for guard, is_left_out in iterate_guards(scores, measured, config):
        reasons.append((f"left out by {guard}", is_left_out))
        is_candidate = is_candidate & ~is_left_out
    ranked = rank_samples(scores, assign_length_bands(is_candidate, measured.response_tokens, config.length_bands))
    ranks = np.zeros(len(scores), dtype=np.int64)
    ranks[ranked] = np.arange(1, len(ranked) + 1)
    # Diversity, near-duplicates and groups pass over samples that rank above the last selected one.
    is_drawn = config.selection == "sample"
    if is_selected.any() and not is_drawn:
        reasons.append((_explain_passing_over(config), is_candidate & (ranks < ranks[is_selected].max())))
    reasons.append(("not drawn" if is_drawn else "below the threshold", np.ones(len(scores), dtype=bool)))

    # The first reason wins: the last one applies to all, so that no sample stays without.
    codes = np.full(len(scores), -1, dtype=np.int64)
    for code, (_, applies) in enumerate(reasons):
        codes[applies & (codes < 0)] = code
    return Explanations([phrase for phrase, _ in reasons], codes, ranks, scores)


def _explain_passing_over(config: MIWVConfig) -> str:
    """Why a sample is not selected although one that ranks lower is."""
    if config.diversity != "none":
        return f"passed over by diversity={config.diversity}"
    if config.max_selected_similarity < 1:
        return f"too similar to a selected sample, max_selected_similarity={config.max_selected_similarity}"
    if config.group_column is not None:
        return f"below the threshold of its {config.group_column}"
    return "below the threshold"


def _explain_missing_scores(
    current: StoredRound, scores: np.ndarray, measured: Measured, config: MIWVConfig
) -> list[Reason]:
    """Reasons of samples without a score, in the order in which they apply."""
    is_missing = np.isnan(scores)
    prompts, responses = current.column("prompt_tokens"), current.column("response_tokens")
    reasons = [
        ("unscorable: no prompt", is_missing & (prompts == 0)),
        ("unscorable: no response", is_missing & (responses == 0)),
    ]
    context = current.summary["fingerprint"].get("context")
    if context is not None:
        # The round does not store the preamble's length, so a sample that is too long only together with the preamble
        # comes under a later reason.
        is_too_long = is_missing & (prompts + responses >= context)
        reasons.append((f"unscorable: no room in the context of {context}", is_too_long))
    if needs_exemplars(config):
        reasons.append(("unscorable: no exemplar", is_missing & (current.column("exemplar") < 0)))
    # A first round scores every sample that it can, and rounds of earlier versions all did.
    if current.number > 0 and "scored" in current.summary:
        reasons.append(("not scored yet", is_missing & (current.column("age") == NEVER_SCORED)))
    score = get_score(config)
    lacks_number = is_missing & has_losses(measured, score)
    if lacks_number.any() and score.missing is not None:
        reasons.append((f"unscorable: {score.missing}", lacks_number))
    return [*reasons, ("unscorable: no finite loss", is_missing)]
