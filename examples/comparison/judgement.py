"""Compares the arms: at equal selection, at equal cost and with the full set, on one set of evaluation samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from comparison.arms import FULL, RANDOM, UNTRAINED
from comparison.plan import Plan
from comparison.results import Result
from comparison.statistics import Difference, average, choose_rates, compute_difference

TUNED = "tuned"


@dataclass(frozen=True)
class Judged:
    """
    One arm at one learning rate, or at the one that suits it best.

    Args:
        losses: `(seeds,)` of its runs.
        same_size: Against random draws of as many samples or tokens; None for those.
        same_cost: Against random draws that cost as much in all; None for arms that are not scored.
        full: Against the full set; None for that.
        size_ratio: Its compute as a multiple of that of random draws of the same size; NaN for those.
        cost_ratio: Its compute as a multiple of that of the random draws at its cost.
        rates: The learning rates it was trained at: one, or those that were chosen for each half of the samples.
        results: Its runs.
    """

    arm: str
    losses: np.ndarray
    same_size: Difference | None
    same_cost: Difference | None
    full: Difference | None
    size_ratio: float
    cost_ratio: float
    rates: tuple[float, ...]
    results: list[Result]

    @property
    def is_baseline(self) -> bool:
        """Whether it is the full set or a random draw."""
        identity = self.results[0].identity
        return "arm" in identity or "target" in identity or identity.get("score") == RANDOM

    @property
    def is_scored(self) -> bool:
        """Whether the model has forwarded tokens to select it."""
        return any(result.scoring_tokens for result in self.results)

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    @property
    def compute(self) -> float:
        """Mean of all tokens forwarded, a trained one counted three times."""
        return float(np.mean([result.compute for result in self.results]))


class Losses:
    """The losses of all runs on one set of samples, without samples that some run could not be evaluated on."""

    def __init__(self, results: Sequence[Result], name: str, weights: np.ndarray) -> None:
        self.results = list(results)
        self.name = name
        found = np.asarray([result.losses[name] for result in results])
        self.is_judged = np.isfinite(found).all(axis=0) & (weights > 0)
        self.weights = weights[self.is_judged].astype(np.float64)

    def find(self, arm: str, rate: float) -> list[Result]:
        """The runs of an arm, by seed."""
        found = [result for result in self.results if result.arm == arm and result.rate == rate]
        return sorted(found, key=lambda result: result.seed)

    def array(self, results: Sequence[Result]) -> np.ndarray:
        """`(runs, samples)` losses."""
        return np.asarray([result.losses[self.name] for result in results])[:, self.is_judged]

    @property
    def untrained(self) -> float:
        """The loss of the model that all runs begin with."""
        return float(average(self.array(self.find(UNTRAINED, 0.0)), self.weights)[0])

    def take(self, arm: str, rates: Sequence[float]) -> tuple[np.ndarray, tuple[float, ...], list[Result]]:
        """
        `(seeds, samples)` losses of an arm; of several rates, the tuned ones. The rates, and the runs they are of.

        Empty where the arm has not been run at all rates.
        """
        runs = [self.find(arm, rate) for rate in rates]
        seeds = min(map(len, runs))
        if not seeds:
            return np.empty((0, int(self.is_judged.sum()))), (), []
        arrays = np.stack([self.array(found[:seeds]) for found in runs])
        losses, chosen = choose_rates(arrays, self.weights)
        used = sorted(set(chosen))
        return losses, tuple(rates[index] for index in used), [run for index in used for run in runs[index][:seeds]]


def judge(losses: Losses, plan: Plan, rates: Sequence[float]) -> list[Judged]:
    """All arms that have runs, lowest loss first."""
    taken = {arm.name: losses.take(arm.name, rates) for arm in plan.arms}
    taken = {name: found for name, found in taken.items() if found[2]}
    full = dict.fromkeys(taken, FULL)
    judged = []
    for name, (array, chosen, results) in taken.items():
        judged.append(
            Judged(
                arm=name,
                losses=average(array, losses.weights),
                same_size=_pair(taken, name, plan.same_size, losses.weights),
                same_cost=_pair(taken, name, plan.same_cost, losses.weights),
                full=_pair(taken, name, full, losses.weights),
                size_ratio=_ratio(taken, name, plan.same_size.get(name, RANDOM)),
                cost_ratio=_ratio(taken, name, plan.same_cost.get(name)),
                rates=chosen,
                results=results,
            )
        )
    return sorted(judged, key=lambda one: one.loss)


Taken = Mapping[str, tuple[np.ndarray, tuple[float, ...], list[Result]]]


def _pair(taken: Taken, name: str, against: Mapping[str, str], weights: np.ndarray) -> Difference | None:
    """The difference to another arm, over the seeds that both have."""
    other = against.get(name)
    if other is None or other == name or other not in taken:
        return None
    ours, theirs = taken[name][0], taken[other][0]
    seeds = min(len(ours), len(theirs))
    return compute_difference(ours[:seeds], theirs[:seeds], weights)


def _ratio(taken: Taken, name: str, other: str | None) -> float:
    """The compute of an arm as a multiple of another one's."""
    if other is None or other == name or other not in taken:
        return float("nan")
    ours, theirs = (float(np.mean([result.compute for result in taken[one][2]])) for one in (name, other))
    return ours / theirs if theirs else float("nan")
