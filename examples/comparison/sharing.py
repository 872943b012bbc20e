"""Which arms can select from the same round, and which rounds that are there fit what is needed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from comparison.arms import Arm
from miwv_trainer import MIWVConfig

# Fields that change nothing about what is forwarded. A field that is not named here gives its arm a round of its own.
SELECTING = (
    *("fraction", "selection_budget", "preset", "min_response_tokens", "quantile_band", "loss_band", "length_bands"),
    *("max_selected_similarity", "diversity", "diversity_candidates", "mmr_weight", "epoch_order", "sampler_seed"),
    *("rescore_strategy", "rescore_steps", "rescore_budget", "check_batches", "scores_dir"),
    *("selection", "temperature", "resample_each_epoch", "group_column", "score_column"),
)
# Fields that decide nothing before the first step.
LATER = ("rescore_strategy", "rescore_steps")
# Scores that are made of the same two losses of every sample.
OF_BOTH_LOSSES = ("miwv", "low_miwv", "residual_miwv", "one_shot_loss", "influence")
FREE = ("random", "longest")  # no loss; `extra_losses` may ask for some
BOTH = "both losses"
OF_THE_MODEL = "model"  # the embedder that forwards the prompts through the model itself
Values = Mapping[str, object]  # of a configuration by the names of its fields, as JSON holds them


@dataclass(frozen=True)
class Scoring:
    """A round that arms select from, known by the name of the first of them."""

    slug: str
    config: MIWVConfig


def read_stored(folder: Path) -> dict[str, Values]:
    """The configurations that the rounds in a folder were made with, by slug, the oldest round first."""
    found = {
        file.parents[2].name: json.loads(file.read_text(encoding="utf-8"))
        for file in folder.glob("*/miwv/round-000/round.json")
    }
    by_age = sorted(found, key=lambda slug: (found[slug].get("date", ""), slug))
    return {slug: found[slug]["config"] for slug in by_age}


def share_rounds(configs: Mapping[str, MIWVConfig], stored: Mapping[str, Values] | None = None) -> dict[str, Scoring]:
    """
    The round of each arm, by name.

    Arms of the same forwards share one. An arm that is scored again begins with a round that its own configuration has
    selected from, so rounds are made for those arms first. A round that is there is kept where it fits, so that the
    seeds of an arm rest on the same round, whatever arms are added. One that does not fit is left as it is: the round
    that is needed gets another slug.

    Args:
        stored: What `read_stored` has found.
    """
    stored = stored or {}
    made: dict[str, Scoring] = {}
    shared: dict[str, Scoring] = {}
    without = {name: leave_own_values_out(config) for name, config in configs.items()}
    for name, config in sorted(without.items(), key=lambda item: not is_rescored(item[1])):
        own = Arm(name, {}).slug
        fitting = [slug for slug, values in stored.items() if fits(values, config)]
        slug = own if own in fitting else next(iter(fitting), None)
        slug = slug or next((other for other, one in made.items() if fits(one.config.to_dict(), config)), None)
        slug = slug or find_free(own, {*stored, *made})
        shared[name] = made.setdefault(slug, Scoring(slug, config))
    return {name: shared[name] for name in configs}


def find_free(slug: str, taken: set[str]) -> str:
    """The slug, with a number behind it if it is taken."""
    names = [slug, *(f"{slug}-{number}" for number in range(2, len(taken) + 2))]
    return next(name for name in names if name not in taken)


def fits(made_with: Values, config: MIWVConfig) -> bool:
    """Whether an arm can begin with a round that was made with another configuration."""
    describe = describe_selection if is_rescored(config) else describe_forwards
    # Through JSON, as the round's own file holds it, and with the defaults of fields that an earlier version lacked.
    needed = json.loads(json.dumps(leave_own_values_out(config).to_dict()))
    return describe({**MIWVConfig().to_dict(), **made_with}) == describe(needed)


def is_rescored(config: MIWVConfig) -> bool:
    """Whether an arm's selection changes during training."""
    return config.rescore_strategy != "no" or config.resample_each_epoch


def has_own_score(config: MIWVConfig) -> bool:
    """Whether an arm is ranked by numbers of the user's: a column, an array or a function."""
    return config.score_column is not None or not isinstance(config.score, str)


def is_taken_as_it_is(config: MIWVConfig) -> bool:
    """
    Whether a Trainer of an arm that is scored again finds round 0 finished where the arm's round was copied.

    It does not where the selection depends on the seed of the run or on the user's numbers, nor where the model itself
    found the exemplars, because another model would find others.
    """
    depends = has_own_score(config) or config.score == "random" or config.selection == "sample"
    is_of_model = config.embedder == OF_THE_MODEL
    return not depends and config.group_column is None and config.rescore_budget == 1 and not is_of_model


def leave_own_values_out(config: MIWVConfig) -> MIWVConfig:
    """
    The configuration by which the pool is scored: without the user's own numbers, which count when an arm selects.

    A pool of token ids has no columns. A function is called with the losses that the round holds.
    """
    if not has_own_score(config):
        return replace(config, group_column=None)
    return replace(config, group_column=None, score="random", score_column=None, epoch_order="shuffled")


def describe_selection(values: Values) -> dict[str, object]:
    """What decides what a first round forwards and selects."""
    return {name: value for name, value in values.items() if name not in LATER}


def describe_forwards(values: Values) -> dict[str, object]:
    """What decides which sequences are forwarded for a round, and what it leaves behind."""
    losses = name_losses(values)
    # A round with exemplars keeps the embeddings by which they were found, another one those that its selection needs.
    needs = {"losses": losses, "embeddings": losses == BOTH or needs_embeddings(values)}
    others = (*SELECTING, "score", "extra_losses")
    return {name: value for name, value in values.items() if name not in others} | needs


def name_losses(values: Values) -> str:
    """The losses that a round holds: one name for all rounds that hold the same."""
    score, extra = values["score"], values["extra_losses"]
    if score in OF_BOTH_LOSSES or (score in FREE and extra == "both"):
        return BOTH
    return "zero_shot_loss, none" if score in FREE and extra == "zero_shot" else f"{score}, {extra}"


def needs_embeddings(values: Values) -> bool:
    """Whether the selection itself looks at the embeddings."""
    return values["diversity"] != MIWVConfig.diversity or values["max_selected_similarity"] != 1
