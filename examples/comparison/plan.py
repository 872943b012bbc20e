"""Lists the runs of a comparison, and the random draws at the cost of the other arms."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from comparison.arms import RANDOM, UNTRAINED, Arm, find_random
from comparison.own_scores import describe_numbers
from comparison.schedule import TRAINED, BatchRule, count_tokens, fit_to_cost, order_samples
from comparison.scoring import Scores
from comparison.setting import Setting
from comparison.sharing import OF_THE_MODEL

NAMING_DRAWS = 10
REVISION = 2  # a part of the identity of results that an earlier version made otherwise
TOLERANCE = 0.1  # by which the compute of arms may differ that are held against one random draw


@dataclass(frozen=True)
class Run:
    """One training of an arm, or the evaluation of the untrained model."""

    arm: Arm
    rate: float
    seed: int

    @property
    def slug(self) -> str:
        """The name of its file."""
        return UNTRAINED if self.arm.name == UNTRAINED else f"{self.arm.slug}-rate-{self.rate:g}-seed-{self.seed}"

    @property
    def name(self) -> str:
        """As it is shown."""
        if self.arm.name == UNTRAINED:
            return UNTRAINED
        return f"{self.arm.name}, learning rate {self.rate:g}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """
    What is compared with what.

    Args:
        arms: All arms, those at equal cost included.
        same_size: For each arm, the random draws of as many samples or tokens.
        same_cost: For each arm that is scored, the random draws that cost as much.
    """

    arms: list[Arm]
    same_size: Mapping[str, str]
    same_cost: Mapping[str, str]

    @property
    def baselines(self) -> frozenset[str]:
        """The arms that the comparison made to hold others against: the full set and all random draws of its own."""
        return frozenset(arm.name for arm in self.arms if arm.is_baseline)

    def list_runs(self, seeds: int, rates: Sequence[float]) -> list[Run]:
        """
        All runs, seed by seed: a comparison that is stopped early then has results of every arm.

        Random draws at equal cost come last. They take longer than all others together may, and the table at equal
        selection is whole without them.
        """
        runs = [Run(arm, rate, seed) for seed in range(seeds) for rate in rates for arm in self.arms]
        return [Run(Arm(UNTRAINED, None), 0.0, 0), *sorted(runs, key=lambda run: run.arm.target is not None)]


def make_plan(setting: Setting, scores: Scores) -> Plan:
    """The arms, and for each arm that costs forwards the random draws at its cost, once the pool is scored."""
    orders = Orders(setting, scores)
    costs = {
        arm.name: scores.predict_compute(arm, orders.count_tokens(arm, seed=0))
        for arm in setting.arms
        if arm.settings is not None and scores.count_tokens(arm) > 0
    }
    random = next(arm for arm in setting.arms if arm.name == RANDOM)
    # For the names only, so of more seeds than are run: a single draw may be of short samples.
    base = TRAINED * sum(orders.count_tokens(random, seed) for seed in range(NAMING_DRAWS)) // NAMING_DRAWS
    passes = {arm.name: find_passes(setting, arm) for arm in setting.arms}
    controls, same_cost = make_controls(costs, base, passes)
    fraction = setting.arguments.fraction
    same_size = {arm.name: find_random(arm, setting.arms, fraction).name for arm in setting.arms if arm.name != RANDOM}
    return Plan([*setting.arms, *controls], same_size, same_cost)


def find_passes(setting: Setting, arm: Arm) -> float | None:
    """How often an arm sees a sample, by its own fraction; None if as often as by `--fraction`."""
    if arm.settings is None:
        return None
    # Of more samples than all steps train, those that are trained are seen once.
    own = max(1.0, count_passes(setting, setting.make_config(arm).fraction))
    return None if own == max(1.0, count_passes(setting, setting.arguments.fraction)) else own


def count_passes(setting: Setting, fraction: float) -> float:
    """How often all steps see a sample of a selection."""
    return setting.count / setting.count_selected(fraction)


def make_controls(
    costs: Mapping[str, int], base: int, passes: Mapping[str, float | None] | None = None
) -> tuple[list[Arm], dict[str, str]]:
    """
    Random draws at the cost of each arm. Arms that see a sample equally often, and whose costs differ by a tenth at
    most, are held against the same ones.

    The draws cost as much as the cheapest of these arms, so that chance is never given more than what it is held
    against.

    Args:
        costs: Predicted tokens of each arm, a trained one counted three times.
        base: Those of the random draws at equal selection.
        passes: From `find_passes`, for each arm.

    Returns:
        The arms, and for each name in `costs` the name of its arm.
    """
    controls: dict[float | None, list[Arm]] = {}
    assigned: dict[str, str] = {}
    for name, cost in sorted(costs.items(), key=lambda item: item[1]):
        seen = (passes or {}).get(name)
        alike = controls.setdefault(seen, [])
        if not alike or cost > (1 + TOLERANCE) * (alike[-1].target or 0):
            often = "" if seen is None else ", seen once" if seen == 1 else f", seen {seen:.3g} times"
            alike.append(Arm(f"random at {cost / base:.2g} times the cost{often}", {"score": RANDOM}, cost, seen))
        assigned[name] = alike[-1].name
    return [arm for alike in controls.values() for arm in alike], assigned


class Orders:
    """What each run trains, in which order: functions of the scores and the seed alone."""

    def __init__(self, setting: Setting, scores: Scores) -> None:
        self.setting = setting
        self.scores = scores

    def order(self, arm: Arm, seed: int) -> np.ndarray:
        """`(steps * batch,)` pool indices, of an arm that is scored again those of its first selection."""
        setting, lengths = self.setting, self.setting.samples.lengths
        batch = BatchRule(setting.arguments.batch_size, seed, setting.arguments.micro_batch_size)
        if arm.target is not None:
            usual = count_passes(setting, setting.arguments.fraction)
            passes = usual if arm.passes is None else arm.passes
            return fit_to_cost(self.draw_all(seed), arm.target, passes, lengths, batch)
        selection = self.scores.select(arm, seed)
        if arm.settings is None:
            return order_samples(selection, setting.count_selected(1.0), setting.count, lengths, batch)
        config = setting.make_config(arm)
        epoch, difficulty = setting.count_selected(config.fraction), self.scores.measure_difficulty(arm, seed)
        return order_samples(selection, epoch, setting.count, lengths, batch, config.epoch_order, difficulty)

    def draw_all(self, seed: int) -> np.ndarray:
        """`(N,)` the pool in the order in which random samples are drawn: the draws at equal size come first."""
        choice = self.scores.choose(next(arm for arm in self.setting.arms if arm.name == RANDOM), seed)
        rest = np.setdiff1d(np.arange(len(self.setting.samples.pool)), choice.ranked)  # without prompt or response
        return np.concatenate([choice.ranked, rest])

    def count_tokens(self, arm: Arm, seed: int) -> int:
        """Tokens of all forwards of the training."""
        lengths, forwarded = self.setting.samples.lengths, self.setting.arguments.micro_batch_size
        return count_tokens(self.order(arm, seed), lengths, forwarded)


def describe_identity(arm: Arm) -> dict[str, Any]:
    """What a stored result must have been made by."""
    if arm.target is not None:
        return {"target": arm.target} | ({} if arm.passes is None else {"passes": arm.passes})
    if arm.settings is None:
        return {"arm": "full set or untrained"}
    revision = {"revision": REVISION} if is_revised(arm.settings) else {}
    return {**arm.settings, **describe_numbers(arm.settings), **revision}


def is_revised(settings: Mapping[str, Any]) -> bool:
    """
    Whether results of an arm by an earlier version are not the arm's, so that they must not be mixed with others.

    That version trained an arm with an order by difficulty in a shuffled one, let all seeds draw the same first
    selection, and counted neither what the scores of another run have cost nor prompts that the model itself embeds.
    """
    draws_again = settings.get("resample_each_epoch", False) or settings.get("rescore_strategy", "no") != "no"
    is_sorted = settings.get("epoch_order", "shuffled") != "shuffled" and not draws_again
    is_drawn = settings.get("selection", "top") == "sample" and draws_again
    is_uncounted = settings.get("scores_from") is not None or settings.get("embedder") == OF_THE_MODEL
    return is_sorted or is_drawn or is_uncounted


def count_left(runs: Sequence[Run], orders: Orders) -> Iterator[tuple[str, int]]:
    """Name of the arm and tokens of each run that is left, for the time it will take."""
    tokens: dict[str, int] = {}
    for run in runs:
        if run.arm.name == UNTRAINED:
            continue
        if run.arm.name not in tokens:
            tokens[run.arm.name] = orders.count_tokens(run.arm, 0)
        yield run.arm.name, tokens[run.arm.name]
