"""Scores the pool with the model as it is: once for all arms that can select from the same losses."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from comparison.arms import Arm
from comparison.dealing import deal
from comparison.schedule import TRAINED
from comparison.setting import Setting
from comparison.sharing import OF_THE_MODEL, Scoring, fits, has_own_score, needs_embeddings, read_stored, share_rounds
from comparison.sharing import is_rescored as is_rescored
from miwv_trainer import Choice, MIWVConfig, StoredRound, read_rounds, score_and_select, select_again
from miwv_trainer.rounds.inputs import read_measured
from miwv_trainer.selection.scores import compute_difficulty, get_score

FOLDER = "scores"


class Cost(NamedTuple):
    """Tokens that the first round of an arm has forwarded: for losses, and for embeddings by the model itself."""

    scored: int
    embedded: int


class Scores:
    """The rounds of a comparison, and what each arm selects from them."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.arms = [arm for arm in setting.arms if arm.settings is not None]

    @property
    def folder(self) -> Path:
        return self.setting.output / FOLDER

    @cached_property
    def scorings(self) -> dict[str, Scoring]:
        """For each arm, by name, the round that it selects from."""
        return share_rounds({arm.name: self.setting.make_config(arm) for arm in self.arms}, read_stored(self.folder))

    def score(self) -> None:
        """
        Scores all rounds, those that no other process scores, and returns when all are there.

        Raises:
            SystemExit: an arm's round cannot be scored, by `scores_from` of another pool for example; the message names
                the arm.
        """
        setting = self.setting
        rounds = list({scoring.slug: scoring for scoring in self.scorings.values()}.values())
        for scoring in deal(rounds, self.folder, self._is_scored):
            try:
                score_and_select(setting.model, setting.samples.pool, scoring.config, self.folder / scoring.slug)
            except (OSError, TypeError, ValueError) as error:
                arms = " and ".join(repr(name) for name, used in self.scorings.items() if used == scoring)
                raise SystemExit(f"The pool cannot be scored for the arm {arms}: {error}") from error

    def check_scored(self) -> None:
        """Raises `SystemExit` if an arm's round is not there."""
        missing = " and ".join(repr(name) for name, used in self.scorings.items() if not self._is_scored(used))
        if missing:
            raise SystemExit(f"The pool was not scored for the arm {missing}. Leave it out, or --page-only.")

    def _is_scored(self, scoring: Scoring) -> bool:
        found = read_stored(self.folder).get(scoring.slug)
        return found is not None and fits(found, scoring.config)

    def read(self, arm: Arm) -> StoredRound:
        """The round that an arm selects from."""
        return read_rounds(self.find_folder(arm))[0]

    def find_folder(self, arm: Arm) -> Path:
        """Where the round of an arm lies."""
        return self.folder / self.scorings[arm.name].slug

    def count_tokens(self, arm: Arm) -> int:
        """Tokens that the round of an arm has forwarded, or the run from which it took its losses."""
        return sum(self.count_cost(arm))

    def count_cost(self, arm: Arm) -> Cost:
        """The tokens of losses and those of embeddings."""
        try:
            return count_cost(self.read(arm), len(self.setting.samples.pool.preamble))
        except (FileNotFoundError, ValueError) as error:
            raise SystemExit(f"The cost of the scores of the arm {arm.name!r} cannot be counted: {error}") from error

    def select(self, arm: Arm, seed: int) -> np.ndarray:
        """The samples that an arm selects; all of them for the full set."""
        if arm.settings is None:
            return np.arange(len(self.setting.samples.pool))
        return self.choose(arm, seed).selection

    def choose(self, arm: Arm, seed: int) -> Choice:
        """What an arm selects, and how it ranks the whole pool."""
        try:
            return select_again(self.read(arm), self.setting.make_config(arm, seed), self.setting.samples.rows)
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise SystemExit(f"The arm {arm.name!r}: {error}") from error

    def measure_difficulty(self, arm: Arm, seed: int) -> np.ndarray | None:
        """`(k,)` how hard each sample that an arm selects is; None if its `epoch_order` does not ask for it."""
        config = self.setting.make_config(arm, seed)
        if config.epoch_order == "shuffled":
            return None
        choice = self.choose(arm, seed)
        # Of the user's own scores, the higher is the harder.
        is_own = has_own_score(config)
        difficulty = choice.scores if is_own else compute_difficulty(read_measured(self.read(arm)), get_score(config))
        return difficulty[choice.selection]

    def predict_compute(self, arm: Arm, trained: int) -> int:
        """Tokens of scoring, of later rounds too, and of training, a trained token counted three times."""
        config, cost = self.setting.make_config(arm), self.count_cost(arm)
        epoch_steps = self.setting.count_selected(config.fraction) // self.setting.arguments.batch_size
        later = count_later_rounds(config, self.setting.steps, epoch_steps)
        # Exemplars are found once, so that later rounds embed nothing.
        return round(cost.scored * (1 + later * config.rescore_budget)) + cost.embedded + TRAINED * trained


def count_cost(scored: StoredRound, preamble: int) -> Cost:
    """
    What a round has cost; where its losses are of another run, what they have cost there.

    Args:
        preamble: Tokens before each prompt.
    """
    origin = scored.summary.get("scores_from")
    if origin is not None:
        return count_cost(read_rounds(origin["folder"])[0], preamble)
    return Cost(count_scored(scored), count_embedded(scored, preamble))


def count_scored(scored: StoredRound) -> int:
    """Tokens that a round has forwarded, the refinement in float32 included."""
    return int(scored.summary["tokens_forwarded"]) + int(scored.summary["refined_tokens"])


def count_embedded(scored: StoredRound, preamble: int) -> int:
    """
    Tokens of the prompts, if the model itself has embedded them; padding is not known and left out.

    The library does not count them: a round's tokens are those of its losses.
    """
    config = {**MIWVConfig().to_dict(), **scored.summary["config"]}
    has_exemplars = (scored.column("exemplar") >= 0).any()
    if config["embedder"] != OF_THE_MODEL or not (has_exemplars or needs_embeddings(config)):
        return 0
    return int(np.minimum(scored.column("prompt_tokens") + preamble, scored.summary["fingerprint"]["context"]).sum())


def count_later_rounds(config: MIWVConfig, steps: int, epoch_steps: int) -> int:
    """Rounds that are scored during a training of so many steps, after the first."""
    if config.rescore_strategy == "no":
        return 0
    every = config.rescore_steps if config.rescore_strategy == "steps" else epoch_steps
    return (steps - 1) // (every or steps)  # after the last step, none is scored


def total_tokens(rounds: Iterable[StoredRound]) -> int:
    """Tokens that several rounds have forwarded."""
    return sum(map(count_scored, rounds))
