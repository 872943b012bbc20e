"""Why each sample of a round was selected or was not, from what the round has stored."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from miwv_trainer.config import PRESETS, SELECTION_FIELDS, MIWVConfig
from miwv_trainer.rounds.round import measured_of
from miwv_trainer.selection.guards import iterate_guards, length_bands, ranking
from miwv_trainer.selection.scores import needs_exemplars, score_of, score_samples, seed_of_draw
from miwv_trainer.storage.store import StoredRound

SELECTED = "selected"
NEVER = -1


@dataclass(frozen=True)
class Explanations:
    """
    Args:
        phrases: What can be said of a sample.
        codes: `(N,)` which of the phrases holds.
        ranks: `(N,)` place among the samples that pass the guards, from 1; 0 where a sample is not among them.
        scores: `(N,)` what was ranked, NaN where a sample has none.
    """

    phrases: list[str]
    codes: np.ndarray
    ranks: np.ndarray
    scores: np.ndarray

    @property
    def ranked(self) -> int:
        return int((self.ranks > 0).sum())


def config_of(current: StoredRound, **changes: Any) -> MIWVConfig:
    """
    What the round was selected by, but for the changes. A `preset` among them replaces the round's own.

    Raises:
        ValueError: a change is impossible, by itself or beside what the round was selected by.
    """
    MIWVConfig(**changes)  # what is wrong with the changes alone is not to be blamed on the round
    stored = current.summary.get("config", {})
    kept = {name: stored[name] for name in SELECTION_FIELDS if name in stored}
    if "preset" in changes:
        # A stored value does not tell whether it was given. One at its default, or of the earlier preset, was not.
        defaults, earlier = MIWVConfig().to_dict(), PRESETS[stored.get("preset", "none")]
        kept = {name: value for name, value in kept.items() if value not in (defaults[name], earlier.get(name))}
    others = {"fraction": current.summary["fraction"], "sampler_seed": stored.get("sampler_seed")}
    try:
        return MIWVConfig(**{**kept, **others, **changes})
    except ValueError as error:
        raise ValueError(
            f"{error} Round {current.number} was selected so, and what is not given stays as it was: give a field's "
            "default to undo it."
        ) from error


def explain_selection(current: StoredRound) -> Explanations:
    """The first reason that applies to each sample; the selection is the stored one."""
    config = config_of(current)
    measured = measured_of(current, seed_of_draw(config, current.number))
    is_complete = (measured.response_tokens > 0) & (current.column("prompt_tokens") > 0)
    scores = score_samples(measured, score_of(config), is_complete)
    is_selected = current.column("selected").astype(bool)

    may = ~np.isnan(scores)
    found: list[tuple[str, np.ndarray]] = [(SELECTED, is_selected), *_unscorable(current, scores, config)]
    for guard, those in iterate_guards(scores, measured, config):
        found.append((f"left out by {guard}", those))
        may = may & ~those
    ranked = ranking(scores, length_bands(may, measured.response_tokens, config.length_bands))
    ranks = np.zeros(len(scores), dtype=np.int64)
    ranks[ranked] = np.arange(1, len(ranked) + 1)
    if is_selected.any():
        found.append((_passed_over(config), may & (ranks < ranks[is_selected].max())))
    found.append(("below the threshold", np.ones(len(scores), dtype=bool)))

    codes = np.full(len(scores), -1, dtype=np.int64)
    for number, (_, those) in enumerate(found):
        codes[those & (codes < 0)] = number
    return Explanations([phrase for phrase, _ in found], codes, ranks, scores)


def _passed_over(config: MIWVConfig) -> str:
    """Why a sample is not selected although one that ranks lower is."""
    if config.diversity != "none":
        return f"passed over by diversity={config.diversity}"
    if config.max_selected_similarity < 1:
        return f"too like a selected one, max_selected_similarity={config.max_selected_similarity}"
    if config.group_column is not None:
        return f"below the threshold of its {config.group_column}"
    return "below the threshold"


def _unscorable(current: StoredRound, scores: np.ndarray, config: MIWVConfig) -> list[tuple[str, np.ndarray]]:
    missing = np.isnan(scores)
    prompts, responses = current.column("prompt_tokens"), current.column("response_tokens")
    found = [
        ("unscorable: no prompt", missing & (prompts == 0)),
        ("unscorable: no response", missing & (responses == 0)),
    ]
    context = current.summary["fingerprint"].get("context")
    if context is not None:  # the preamble's tokens are not stored: those close to the context count as too long too
        found.append((f"unscorable: no room in the context of {context}", missing & (prompts + responses >= context)))
    if needs_exemplars(config):
        found.append(("unscorable: no exemplar", missing & (current.column("exemplar") < 0)))
    if current.number > 0 and "scored" in current.summary:  # a first round scores all that it can
        found.append(("not scored yet", missing & (current.column("age") == NEVER)))
    return [*found, ("unscorable: no finite loss", missing)]
