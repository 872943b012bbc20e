"""Scores the pool with the model as it is: once for all arms that can select from the same losses."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from comparison.arms import Arm
from comparison.dealing import deal
from comparison.schedule import TRAINED
from comparison.setting import Setting
from miwv_trainer import Choice, MIWVConfig, StoredRound, read_rounds, score_and_select, select_again

FOLDER = "scores"
# Fields that change nothing about what is forwarded. A field that is not named here gives its arm a round of its own.
SELECTING = (
    *("fraction", "selection_budget", "preset", "min_response_tokens", "quantile_band", "loss_band", "length_bands"),
    *("max_selected_similarity", "diversity", "diversity_candidates", "mmr_weight", "epoch_order", "sampler_seed"),
    *("rescore_strategy", "rescore_steps", "rescore_budget", "check_batches", "scores_dir"),
    *("selection", "temperature", "resample_each_epoch", "group_column", "score_column"),
)
# Scores that are made of the same two losses of every sample.
OF_BOTH_LOSSES = ("miwv", "low_miwv", "residual_miwv", "one_shot_loss", "influence")


@dataclass(frozen=True)
class Scoring:
    """A round that arms select from, known by the name of the first of them."""

    slug: str
    config: MIWVConfig


class Scores:
    """The rounds of a comparison, and what each arm selects from them."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.arms = [arm for arm in setting.arms if arm.settings is not None]

    @cached_property
    def scorings(self) -> dict[str, Scoring]:
        """For each arm, by name, the round that it selects from."""
        return share_rounds({arm.name: self.setting.make_config(arm) for arm in self.arms})

    def score(self) -> None:
        """
        Scores all rounds, those that no other process scores, and returns when all are there.

        Raises:
            SystemExit: an arm's round cannot be scored, by `scores_from` of another pool for example; the message names
                the arm.
        """
        setting = self.setting
        rounds = list({scoring.slug: scoring for scoring in self.scorings.values()}.values())
        folder = setting.output / FOLDER
        for scoring in deal(rounds, folder, lambda one: len(self._read(one)) > 0):
            try:
                score_and_select(setting.model, setting.samples.pool, scoring.config, folder / scoring.slug)
            except (OSError, TypeError, ValueError) as error:
                arms = " and ".join(repr(name) for name, used in self.scorings.items() if used == scoring)
                raise SystemExit(f"The pool cannot be scored for the arm {arms}: {error}") from error

    def _read(self, scoring: Scoring) -> list[StoredRound]:
        folder = self.setting.output / FOLDER / scoring.slug
        return read_rounds(folder) if (folder / "miwv" / "round-000" / "round.json").is_file() else []

    def read(self, arm: Arm) -> StoredRound:
        """The round that an arm selects from."""
        return self._read(self.scorings[arm.name])[0]

    def count_tokens(self, arm: Arm) -> int:
        """Tokens that the round of an arm has forwarded."""
        return count_scored(self.read(arm))

    def select(self, arm: Arm, seed: int) -> np.ndarray:
        """The samples that an arm selects; all of them for the full set."""
        if arm.settings is None:
            return np.arange(len(self.setting.samples.pool))
        return self.choose(arm, seed).selection

    def choose(self, arm: Arm, seed: int) -> Choice:
        """What an arm selects, and how it ranks the whole pool."""
        try:
            return select_again(self.read(arm), self.setting.make_config(arm, seed), self.setting.samples.rows)
        except (KeyError, TypeError, ValueError) as error:
            raise SystemExit(f"The arm {arm.name!r}: {error}") from error

    def predict_compute(self, arm: Arm, trained: int) -> int:
        """Tokens of scoring, of later rounds too, and of training, a trained token counted three times."""
        config = self.setting.make_config(arm)
        epoch_steps = self.setting.count_selected(config.fraction) // self.setting.arguments.batch_size
        later = count_later_rounds(config, self.setting.steps, epoch_steps)
        return round(self.count_tokens(arm) * (1 + later * config.rescore_budget)) + TRAINED * trained


def count_scored(scored: StoredRound) -> int:
    """Tokens that a round has forwarded, the refinement in float32 included."""
    return int(scored.summary["tokens_forwarded"]) + int(scored.summary["refined_tokens"])


def count_later_rounds(config: MIWVConfig, steps: int, epoch_steps: int) -> int:
    """Rounds that are scored during a training of so many steps, after the first."""
    if config.rescore_strategy == "no":
        return 0
    every = config.rescore_steps if config.rescore_strategy == "steps" else epoch_steps
    return (steps - 1) // (every or steps)  # after the last step, none is scored


def share_rounds(configs: dict[str, MIWVConfig]) -> dict[str, Scoring]:
    """
    The round of each arm, by name.

    Arms of the same forwards share one. An arm that is scored again begins with a round that its own configuration has
    selected from, so rounds are made for those arms first.
    """
    made: list[Scoring] = []
    shared: dict[str, Scoring] = {}
    without = {name: leave_columns_out(config) for name, config in configs.items()}
    for name, config in sorted(without.items(), key=lambda item: not is_rescored(item[1])):
        describe = describe_selection if is_rescored(config) else describe_forwards
        match = next((other for other in made if describe(other.config) == describe(config)), None)
        if match is None:
            match = Scoring(Arm(name, {}).slug, config)
            made.append(match)
        shared[name] = match
    return {name: shared[name] for name in configs}


def is_rescored(config: MIWVConfig) -> bool:
    """Whether an arm's selection changes during training."""
    return config.rescore_strategy != "no" or config.resample_each_epoch


def leave_columns_out(config: MIWVConfig) -> MIWVConfig:
    """
    The configuration by which the pool is scored: a pool of token ids has no columns, so that those which an arm names
    are read when it selects.
    """
    if config.score_column is None:
        return replace(config, group_column=None)
    return replace(config, group_column=None, score="random", score_column=None)


def describe_selection(config: MIWVConfig) -> dict[str, object]:
    """What decides what a first round forwards and selects."""
    later = ("rescore_strategy", "rescore_steps")
    return {name: value for name, value in config.to_dict().items() if name not in later}


def describe_forwards(config: MIWVConfig) -> dict[str, object]:
    """What decides which sequences are forwarded for a round, and what it leaves behind."""
    both = config.score in OF_BOTH_LOSSES
    # A round with exemplars keeps the embeddings by which they were found, another one those that its selection needs.
    needs = {"score": "both losses" if both else config.score, "embeddings": both or config.needs_embeddings}
    return {name: value for name, value in config.to_dict().items() if name not in SELECTING} | needs


def total_tokens(rounds: Iterable[StoredRound]) -> int:
    """Tokens that several rounds have forwarded."""
    return sum(map(count_scored, rounds))
