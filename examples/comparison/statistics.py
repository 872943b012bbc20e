"""One test of a difference between two arms, with the variances of seeds and of held-out samples together.

Losses are `(seeds, samples)`: of each seed's run, the mean loss of each held-out response. The loss of a run is their
weighted mean. The weights are numbers of response tokens, or 1 for each sample.

The variance over seeds is that of adapter, order and draws. Three seeds of one arm say little about it, so it is pooled
over all arms of a kind (`pool_variances`). The variance over samples is that of the choice of held-out samples. Their
sum is the variance of the difference, and Welch and Satterthwaite's formula gives its degrees of freedom.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, norm
from scipy.stats import t as student

LEVEL = 0.05
POWER = 0.8
COMPARISONS = 4000  # simulated to find the power; the result is then known to about 1 %


@dataclass(frozen=True)
class Variance:
    """An estimated variance and its degrees of freedom. Both are NaN if there is no estimate."""

    value: float
    freedom: float


@dataclass(frozen=True)
class Difference:
    """
    How much higher the loss of one arm is than that of another.

    Args:
        mean: Over the seeds that both have and over the samples.
        seeds: Number of seeds that both have.
        parts: The variances of `mean` that are due to our seeds, to theirs, and to the choice of held-out samples.
            Nothing for a single seed.
        tried: Number of differences that are judged together.
        adjusted: The p-value after Holm's correction for `tried` differences; NaN for a single seed.
    """

    mean: float
    seeds: int
    parts: tuple[Variance, ...]
    tried: int = 1
    adjusted: float = math.nan

    @property
    def variance(self) -> Variance:
        """Of `mean`."""
        return add_variances(self.parts)

    @property
    def p_value(self) -> float:
        """Two-sided, of this difference alone; NaN for a single seed."""
        error = math.sqrt(self.variance.value)
        if error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * student.sf(abs(self.mean) / error, self.variance.freedom))

    @property
    def half(self) -> float:
        """Half the width of the 95 % interval, not adjusted for the number of differences; NaN for a single seed."""
        return compute_half_width(self.parts, LEVEL)

    @property
    def half_of_seeds(self) -> float:
        """What `half` would be with all the samples that there could be."""
        return self._compute_half_of(self.parts[:2])

    @property
    def half_of_samples(self) -> float:
        """What `half` would be with ever more seeds."""
        return self._compute_half_of(self.parts[2:])

    def _compute_half_of(self, parts: tuple[Variance, ...]) -> float:
        # With less freedom than the whole, a part alone would have the wider interval.
        half = compute_half_width(parts, LEVEL)
        return half if math.isnan(half) else min(half, self.half)

    @property
    def word(self) -> str:
        """`"lower"` or `"higher"` where the adjusted p-value is below 0.05, else `"not shown"`."""
        if not self.adjusted < LEVEL:
            return "not shown"
        return "lower" if self.mean < 0 else "higher"

    @property
    def smallest(self) -> float:
        """The smallest difference that would have been shown, whatever the others are that are judged with it."""
        return compute_half_width(self.parts, LEVEL / self.tried)

    @property
    def reliably_shown(self) -> float:
        """
        The true difference that would be shown in four of five comparisons with these variances.

        Found by simulation, because another comparison estimates other variances, and so has another threshold. An
        estimate of few degrees of freedom is below the true variance more often than above it, which is made up for.
        NaN for a single seed.
        """
        if not self.variance.value > 0:
            return self.variance.value
        values, freedoms = np.array([(part.value, part.freedom) for part in self.parts]).T[:, :, None]
        values = values * freedoms / chi2.median(freedoms)
        estimates = values * np.random.default_rng(0).chisquare(freedoms, (len(values), COMPARISONS)) / freedoms
        total, error = estimates.sum(axis=0), math.sqrt(values.sum())
        freedom = total**2 / (estimates**2 / freedoms).sum(axis=0)
        thresholds = student.isf(LEVEL / 2 / self.tried, freedom) * np.sqrt(total)

        def miss(difference: float) -> float:
            return float(norm.sf((thresholds - difference) / error).mean()) - POWER

        return float(brentq(miss, 0.0, float(thresholds.max()) + 10 * error))


def add_variances(parts: Sequence[Variance]) -> Variance:
    """The variance of a sum of independent parts, with Welch and Satterthwaite's degrees of freedom."""
    if not parts:
        return Variance(math.nan, math.nan)
    total = sum(part.value for part in parts)
    squares = sum(part.value**2 / part.freedom for part in parts if part.value > 0)
    return Variance(total, total**2 / squares if squares else math.inf)


def compute_half_width(parts: Sequence[Variance], level: float) -> float:
    """Half the width of Student's interval that leaves out `level`; NaN without parts."""
    variance = add_variances(parts)
    return float(student.isf(level / 2, variance.freedom)) * math.sqrt(variance.value)


def average(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The loss of each run, `(seeds,)`, from `(seeds, samples)` losses and `(samples,)` weights."""
    return losses @ weights / weights.sum()


def pool_variances(arms: Sequence[Mapping[int, float]]) -> list[Variance]:
    """
    The variance of one run's loss over seeds, for each arm of a kind: that of all of them, or its own if it is larger.

    Arms of a kind may differ in their spread. The pooled variance alone would show differences of those with the widest
    one too often.

    Runs of different arms with one seed may deviate alike: draws at equal cost begin with the draws at equal selection.
    Such arms together tell less than their number says. So the degrees of freedom follow from the products of their
    deviations, as in Box's correction for repeated measures. They are those of a single arm if all deviate alike.

    Args:
        arms: The loss of each run, by seed.
    """
    seeds = sorted({seed for arm in arms for seed in arm})
    deviations = np.zeros((len(arms), len(seeds)))
    for row, arm in zip(deviations, arms, strict=True):
        row[[seeds.index(seed) for seed in arm]] = np.array(list(arm.values())) - np.mean(list(arm.values()))
    counted = float(sum(len(arm) - 1 for arm in arms))
    if not counted:
        return [Variance(math.nan, math.nan)] * len(arms)
    products = deviations @ deviations.T
    own, total = np.diag(products), float(np.trace(products))
    freedom = (len(seeds) - 1) * total**2 / float((products**2).sum()) if total else counted
    return [
        Variance(max(total / counted, float(squares) / max(len(arm) - 1, 1)), min(freedom, counted))
        for squares, arm in zip(own, arms, strict=True)
    ]


def compute_difference(
    ours: np.ndarray, theirs: np.ndarray, weights: np.ndarray, over_seeds: tuple[Variance, Variance]
) -> Difference:
    """
    The difference of two arms, paired by sample.

    Args:
        ours, theirs: `(seeds, samples)` of the same seeds and samples, all finite.
        weights: `(samples,)`.
        over_seeds: The variance over seeds of a run of each.
    """
    paired = ours - theirs
    seeds = len(paired)
    mean = float(average(paired, weights).mean())
    if seeds < 2:
        return Difference(mean, seeds, ())
    of_seeds = [Variance(one.value / seeds, one.freedom) for one in over_seeds]
    lasting, passing = split_sample_variance(paired, weights)
    # The passing part is within the variance over seeds, but of seeds that were pooled it may be more than that.
    missing = max(passing - sum(one.value for one in of_seeds), 0.0)
    return Difference(mean, seeds, (*of_seeds, Variance(lasting + missing, count_effective(weights) - 1)))


def split_sample_variance(paired: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """
    The variance of a mean difference over the choice of samples, in two parts.

    Args:
        paired: `(seeds, samples)` differences of at least two seeds.
        weights: `(samples,)`.

    Returns:
        What lasts with ever more seeds, and what passes because the difference of a sample varies from seed to seed.
        The second is a part of the variance over seeds too, and must not be counted twice.
    """
    seeds, count = paired.shape
    squares = (weights / weights.sum()) ** 2 * count / (count - 1)
    centred = paired - average(paired, weights)[:, None]
    passing = float(squares @ centred.var(axis=0, ddof=1)) / seeds
    both = float(squares @ centred.mean(axis=0) ** 2)
    return max(both - passing, 0.0), passing


def count_effective(weights: np.ndarray) -> float:
    """Of how many samples of equal weight the mean would vary as much."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def adjust(differences: Sequence[Difference]) -> list[Difference]:
    """
    Differences that are judged together, with Holm's correction.

    If none of them is there, the probability that any is shown is 0.05, however many they are. Those of a single seed
    cannot be shown and do not count.
    """
    tested = [index for index, one in enumerate(differences) if one.parts]
    adjusted, found = 0.0, list(differences)
    for rank, index in enumerate(sorted(tested, key=lambda index: differences[index].p_value)):
        adjusted = max(adjusted, min(1.0, (len(tested) - rank) * differences[index].p_value))
        found[index] = replace(differences[index], tried=len(tested), adjusted=adjusted)
    return found


def choose_rates(losses: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """
    Tunes the learning rate of one arm without judging it on the samples by which it was chosen.

    The samples are divided in two halves. In each half, the losses are taken from the rate that is best in the other
    half. So no rate profits from the noise of the samples it is judged on, and all samples are judged.

    Args:
        losses: `(rates, seeds, samples)`.
        weights: `(samples,)`.

    Returns:
        `(seeds, samples)` losses, and the indices of the rates chosen for the even and for the odd samples.
    """
    is_odd = np.arange(losses.shape[2]) % 2 == 1
    means = {odd: (losses.mean(axis=1) * weights)[:, is_odd == odd].sum(axis=1) for odd in (False, True)}
    for_even, for_odd = int(means[True].argmin()), int(means[False].argmin())
    return np.where(is_odd, losses[for_odd], losses[for_even]), (for_even, for_odd)
