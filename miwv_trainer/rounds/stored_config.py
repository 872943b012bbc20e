"""The configuration that a stored round was selected by."""

from typing import Any

from miwv_trainer.choices import CHOICES, PRESETS, SELECTION_FIELDS
from miwv_trainer.config import MIWVConfig
from miwv_trainer.own_scores import StoredScore
from miwv_trainer.storage.stored_round import StoredRound


def restore_config(current: StoredRound, **changes: Any) -> MIWVConfig:
    """
    The configuration that a round was selected by, with some fields changed.

    Args:
        current: The round.
        changes: Fields of `MIWVConfig`. A `preset` among them replaces the round's own.

    Raises:
        ValueError: a change is impossible, by itself or together with what the round was selected by.
    """
    # An error in the changes alone must not blame the round, as the error below does.
    MIWVConfig(**changes)
    stored = current.summary.get("config", {})
    kept = {name: stored[name] for name in SELECTION_FIELDS if name in stored}
    if kept.get("score", MIWVConfig.score) not in CHOICES["score"]:
        kept["score"] = StoredScore(kept["score"])
    if changes.keys() & {"score", "score_column"}:
        # Another score takes the place of both: the stored column belongs to the stored score.
        kept.pop("score", None)
        kept.pop("score_column", None)
    if "preset" in changes:
        # A stored value does not tell whether it was given. One at its default, or of the earlier preset, was not.
        defaults, earlier = MIWVConfig().to_dict(), PRESETS[stored.get("preset", "none")]
        kept = {name: value for name, value in kept.items() if value not in (defaults[name], earlier.get(name))}
    others = {"fraction": current.summary["fraction"], "sampler_seed": stored.get("sampler_seed")}
    try:
        return MIWVConfig(**{**kept, **others, **changes})
    except ValueError as error:
        raise ValueError(
            f"{error} Settings that are not given are those of round {current.number}; to undo one, give its default."
        ) from error
