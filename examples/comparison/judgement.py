"""Compares the arms: at equal selection, at equal cost and with the full set, on one set of evaluation samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from comparison.arms import FULL, RANDOM, UNTRAINED, Arm
from comparison.plan import Plan
from comparison.results import Result
from comparison.statistics import (
    Difference,
    Variance,
    adjust,
    average,
    choose_rates,
    compute_difference,
    pool_variances,
)

# A run has diverged if more than this share of samples has no finite loss. Samples of less are left out for all runs.
DIVERGED = 0.1


@dataclass(frozen=True)
class Pair:
    """One difference judged twice: by response tokens, as the training loss counts them, and by samples."""

    tokens: Difference
    samples: Difference

    @property
    def word(self) -> str:
        """`"lower"` or `"higher"` where both weightings show it."""
        return self.tokens.word if self.tokens.word == self.samples.word else "not shown"

    @property
    def description(self) -> str:
        """The word, and what one of the weightings shows alone."""
        words = {"by response tokens": self.tokens.word, "by samples": self.samples.word}
        shown = {weighting: word for weighting, word in words.items() if word != "not shown"}
        if self.word != "not shown" or not shown:
            return self.word
        only = " only" if len(shown) == 1 else ""
        return " and ".join(f"{word} {weighting}{only}" for weighting, word in shown.items())


@dataclass(frozen=True)
class Judged:
    """
    One arm at one learning rate, or at the one that suits it best.

    Args:
        losses: `(seeds,)` of its runs, by response tokens.
        sample_losses: `(seeds,)` by samples.
        same_size: Against random draws of as many samples or tokens; None for those.
        same_cost: Against random draws that cost as much in all; None for arms that are not scored.
        full: Against the full set; None for that.
        size_ratio: Its compute as a multiple of that of random draws of the same size; NaN for those.
        cost_ratio: Its compute as a multiple of that of the random draws at its cost.
        rates: The learning rates it was trained at: one, or those that were chosen for each half of the samples.
        results: Its runs.
        is_baseline: Whether the comparison made it to hold others against.
    """

    arm: str
    losses: np.ndarray
    sample_losses: np.ndarray
    same_size: Pair | None
    same_cost: Pair | None
    full: Pair | None
    size_ratio: float
    cost_ratio: float
    rates: tuple[float, ...]
    results: list[Result]
    is_baseline: bool = False

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


@dataclass(frozen=True)
class Taken:
    """
    The runs of an arm that are judged.

    Args:
        losses: `(seeds, samples)`, at several learning rates those that are tuned.
        seeds: Their numbers, ascending.
        rates: The learning rates they are of.
        results: The runs.
        draws_anew: Whether each seed trains other samples: by a draw, or because a run ends before it has seen all.
    """

    losses: np.ndarray
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    results: list[Result]
    draws_anew: bool

    def of(self, seeds: Sequence[int]) -> np.ndarray:
        """`(len(seeds), samples)` losses."""
        return self.losses[[self.seeds.index(seed) for seed in seeds]]


class Losses:
    """
    The losses of all runs on one set of samples.

    Runs that have diverged are left out, and so are samples that another run could not be evaluated on.

    Raises:
        SystemExit: no sample is left.
    """

    def __init__(self, results: Sequence[Result], name: str, weights: np.ndarray) -> None:
        self.name = name
        is_finite = np.isfinite(np.asarray([result.losses[name] for result in results])) & (weights > 0)
        # What the untrained model cannot be evaluated on (too long, say) tells nothing of the runs.
        usable = is_finite[[result.arm == UNTRAINED for result in results]].all(axis=0)
        has_diverged = (usable & ~is_finite).sum(axis=1) > DIVERGED * usable.sum()
        self.results = [result for result, left_out in zip(results, has_diverged, strict=True) if not left_out]
        self.diverged = [result for result, left_out in zip(results, has_diverged, strict=True) if left_out]
        self.is_judged = is_finite[~has_diverged].all(axis=0)
        if not self.is_judged.any():
            raise SystemExit(
                f"No sample of {name} has a finite loss in all runs. Give other samples or another --model."
            )
        self.weights = weights[self.is_judged].astype(np.float64)

    def find(self, arm: str, rate: float) -> list[Result]:
        """The runs of an arm, by seed. None if one of them has diverged: the others may be close to it."""
        if any(result.arm == arm and result.rate == rate for result in self.diverged):
            return []
        found = [result for result in self.results if result.arm == arm and result.rate == rate]
        return sorted(found, key=lambda result: result.seed)

    def array(self, results: Sequence[Result]) -> np.ndarray:
        """`(runs, samples)` losses."""
        return np.asarray([result.losses[self.name] for result in results])[:, self.is_judged]

    @property
    def untrained(self) -> tuple[float, float]:
        """The loss of the model that all runs begin with, by response tokens and by samples."""
        losses = self.array(self.find(UNTRAINED, 0.0))
        return float(average(losses, self.weights)[0]), float(losses.mean())

    @property
    def left_out(self) -> int:
        """Number of samples that are not judged."""
        return int((~self.is_judged).sum())

    def take(self, arm: Arm, rates: Sequence[float]) -> Taken | None:
        """
        The losses of an arm at the seeds it has at all rates, without rates at which it diverged.

        The rate is tuned by response tokens, as a training reports its loss. None if a rate has no runs.
        """
        diverged = {result.rate for result in self.diverged if result.arm == arm.name}
        left = [rate for rate in rates if rate not in diverged]
        runs = [{result.seed: result for result in self.find(arm.name, rate)} for rate in left]
        seeds = sorted(set.intersection(*map(set, runs))) if runs else []
        if not seeds:
            return None
        arrays = np.stack([self.array([found[seed] for seed in seeds]) for found in runs])
        losses, chosen = choose_rates(arrays, self.weights)
        used = sorted(set(chosen))
        results = [runs[index][seed] for index in used for seed in seeds]
        # Of a selection that is larger than all steps, each seed trains another part.
        is_part = any(result.seen < 1 for result in results) or len({result.tokens for result in results}) > 1
        draws_anew = is_drawn(arm) or is_part
        return Taken(losses, tuple(seeds), tuple(left[index] for index in used), results, draws_anew)

    def find_diverged(self, rates: Sequence[float]) -> list[Result]:
        """The runs at these rates that have diverged, by arm, rate and seed."""
        found = [result for result in self.diverged if result.rate in rates]
        return sorted(found, key=lambda result: (result.arm, result.rate, result.seed))


def is_drawn(arm: Arm) -> bool:
    """Whether each seed draws other samples."""
    if arm.settings is None:
        return False
    # The settings and not their configuration, in which the score may be an array.
    return arm.is_baseline or arm.settings.get("score") == RANDOM or arm.settings.get("selection") == "sample"


def judge(losses: Losses, plan: Plan, rates: Sequence[float]) -> list[Judged]:
    """All arms that have runs which have not diverged, lowest loss first."""
    taken = {arm.name: found for arm in plan.arms if (found := losses.take(arm, rates)) is not None}
    weightings = losses.weights, np.ones_like(losses.weights)
    columns: list[Mapping[str, str]] = [plan.same_size, plan.same_cost, dict.fromkeys(taken, FULL)]
    by_tokens, by_samples = ([judge_column(taken, column, one) for column in columns] for one in weightings)
    judged = []
    for name, found in taken.items():
        same_size, same_cost, full = (
            Pair(tokens[name], samples[name]) if name in tokens else None
            for tokens, samples in zip(by_tokens, by_samples, strict=True)
        )
        judged.append(
            Judged(
                arm=name,
                losses=average(found.losses, weightings[0]),
                sample_losses=average(found.losses, weightings[1]),
                same_size=same_size,
                same_cost=same_cost,
                full=full,
                size_ratio=_ratio(taken, name, plan.same_size.get(name, RANDOM)),
                cost_ratio=_ratio(taken, name, plan.same_cost.get(name)),
                rates=found.rates,
                results=found.results,
                is_baseline=name in plan.baselines,
            )
        )
    return sorted(judged, key=lambda one: one.loss)


def judge_column(taken: Mapping[str, Taken], against: Mapping[str, str], weights: np.ndarray) -> dict[str, Difference]:
    """The differences of all arms to what each is held against, over the seeds that both have, adjusted together."""
    over_seeds = estimate_variances(taken, weights)
    found: dict[str, Difference] = {}
    for name, ours in taken.items():
        other = against.get(name)
        if other is None or other == name or other not in taken:
            continue
        seeds = sorted({*ours.seeds} & {*taken[other].seeds})
        if seeds:
            variances = over_seeds[name], over_seeds[other]
            found[name] = compute_difference(ours.of(seeds), taken[other].of(seeds), weights, variances)
    return dict(zip(found, adjust(list(found.values())), strict=True))


def estimate_variances(taken: Mapping[str, Taken], weights: np.ndarray) -> dict[str, Variance]:
    """The variance over seeds of each arm's runs, pooled over those that draw anew and over those that do not."""
    variances: dict[str, Variance] = {}
    for draws_anew in (False, True):
        kind = {name: found for name, found in taken.items() if found.draws_anew == draws_anew}
        runs = [dict(zip(found.seeds, average(found.losses, weights).tolist(), strict=True)) for found in kind.values()]
        variances |= zip(kind, pool_variances(runs), strict=True)
    return variances


def _ratio(taken: Mapping[str, Taken], name: str, other: str | None) -> float:
    """The compute of an arm as a multiple of another one's."""
    if other is None or other == name or other not in taken:
        return float("nan")
    ours, theirs = (float(np.mean([result.compute for result in taken[one].results])) for one in (name, other))
    return ours / theirs if theirs else float("nan")
