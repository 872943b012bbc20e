"""Intervals of differences and the smallest difference that a comparison can show, as pure functions.

Losses are `(seeds, samples)`: of each seed's run, the mean loss of each held-out response. The loss of a run is the
mean over all response tokens, so samples are weighted by their number of response tokens.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """
    How much higher the loss of one arm is than that of another.

    Args:
        mean: Over all seeds and response tokens.
        half: Half the width of Student's interval over seeds; NaN for a single seed.
        low, high: The interval over held-out samples (bootstrap).
        seeds: Number of seeds that both arms have.
    """

    mean: float
    half: float
    low: float
    high: float
    seeds: int

    @property
    def word(self) -> str:
        """`"lower"` or `"higher"` where both intervals exclude zero on the same side, else `"not shown"`."""
        if self.mean + self.half < 0 and self.high < 0:
            return "lower"
        return "higher" if self.mean - self.half > 0 and self.low > 0 else "not shown"

    @property
    def smallest(self) -> float:
        """The smallest difference that would have been shown: the larger half-width of the two intervals."""
        return max(self.half, (self.high - self.low) / 2)

    @property
    def reliably_shown(self) -> float:
        """The true difference that would be shown in four of five comparisons like this one."""
        if self.seeds < 2:
            return math.nan
        # The interval is quantile(0.975) standard errors wide on each side, and the estimate itself scatters.
        of_seeds = self.half * (1 + quantile(POWER, self.seeds) / quantile((1 + CONFIDENCE) / 2, self.seeds))
        normal = 1 + student.ppf(POWER, math.inf) / student.ppf((1 + CONFIDENCE) / 2, math.inf)
        return max(of_seeds, (self.high - self.low) / 2 * float(normal))


def quantile(probability: float, count: int) -> float:
    """Of Student's t with `count - 1` degrees of freedom."""
    return float(student.ppf(probability, count - 1))


def average(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The loss of each run, `(seeds,)`, from `(seeds, samples)` losses and `(samples,)` numbers of response tokens."""
    return losses @ weights / weights.sum()


def compute_difference(ours: np.ndarray, theirs: np.ndarray, weights: np.ndarray) -> Difference:
    """
    The difference of two arms, paired by seed and by sample.

    Args:
        ours, theirs: `(seeds, samples)` of the same seeds and samples, all finite.
        weights: `(samples,)` numbers of response tokens.
    """
    by_seed = average(ours - theirs, weights)
    low, high = bootstrap_interval((ours - theirs).mean(axis=0), weights)
    return Difference(float(by_seed.mean()), compute_half_width(by_seed), low, high, len(by_seed))


def compute_half_width(values: np.ndarray) -> float:
    """Half the width of Student's 95 % interval of the mean; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    return quantile((1 + CONFIDENCE) / 2, len(values)) * float(values.std(ddof=1)) / math.sqrt(len(values))


def bootstrap_interval(
    differences: np.ndarray, weights: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """
    The percentile interval of the weighted mean, from samples drawn again with replacement.

    Args:
        differences: `(samples,)` paired by sample.
        weights: `(samples,)` numbers of response tokens; a drawn sample brings its own.
    """
    count = len(differences)
    # How often each sample is drawn, instead of which: 10,000 draws of 1,000 samples are a matrix of 80 MB.
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    means = drawn @ (differences * weights) / (drawn @ weights)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


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
