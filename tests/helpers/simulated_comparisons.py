"""Comparisons of nine arms that do not differ, to see what the judge of `examples/compare.py` shows of them.

Run it by hand for the table in docs/comparing.md; it takes a quarter of an hour:

    python -m tests.helpers.simulated_comparisons
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tests.helpers.launch import ROOT

sys.path.insert(0, str(ROOT / "examples"))

from comparison.judgement import Taken, judge_column
from comparison.statistics import Difference

ARMS, SAMPLES = 9, 150
CONTROLS = 4  # draws at equal cost, each with some of the samples of the draws at equal selection
ALIKE = 0.6  # correlation of draws with one seed
SHIFTED = "arm 3"  # the arm that differs where one does; its spread is about the mean of all
# Spread of each arm as a multiple of the mean: they differ by a factor of 20, as measured ones do.
UNEQUAL = (0.1, 0.1, 0.3, 0.5, 0.5, 1.0, 1.5, 1.7, 2.0)


@dataclass(frozen=True)
class Noise:
    """
    Standard deviations of the parts of a mean difference, of one seed.

    Args:
        draws, fixed: Over seeds, of random draws and of arms with a fixed selection.
        samples: Over the choice of samples, the same with each seed.
        passing: Over the choice of samples, another with each seed.
        is_equal: Whether arms of a kind have the same spread. Else the smallest draws have the widest one, and those
            of the arms are `UNEQUAL`.
    """

    draws: float
    fixed: float
    samples: float
    passing: float
    is_equal: bool = True


NOISE = {
    "seeds prevail": (1.0, 0.3, 0.1, 0.1),
    "both alike": (1.0, 0.5, 0.5, 0.3),
    "samples prevail": (0.3, 0.1, 0.6, 0.1),
    "fixed arms vary as draws": (1.0, 1.0, 0.2, 0.1),
}


def simulate(noise: Noise, seeds: int, generator: np.random.Generator, shift: float = 0.0) -> dict[str, Difference]:
    """The column "equal selection" of one comparison, of arms of which one may be lower by `shift`."""
    weights = np.exp(generator.normal(3.7, 0.8, SAMPLES)).round() + 2
    # A sum weighted by tokens varies as one of fewer samples; the shortest responses vary most.
    scale = np.sqrt(weights.sum() ** 2 / (weights**2).sum()) * (weights / np.median(weights)) ** -0.25

    def take(spread: float, deviations: np.ndarray, draws_anew: bool) -> Taken:
        lasting = noise.samples / np.sqrt(2) * generator.standard_t(6, SAMPLES) / np.sqrt(1.5)
        passing = noise.passing * generator.normal(size=(seeds, SAMPLES))
        losses = spread * deviations[:, None] + scale * (lasting + passing)
        return Taken(losses, tuple(range(seeds)), (0.1,), [], draws_anew)

    shared = generator.normal(size=seeds)
    taken = {}
    for index in range(1 + CONTROLS):
        deviations = np.sqrt(ALIKE) * shared + np.sqrt(1 - ALIKE) * generator.normal(size=seeds)
        spread = noise.draws if noise.is_equal or index == 0 else 0.65 * noise.draws
        taken["random" if index == 0 else f"random {index}"] = take(spread, deviations, draws_anew=True)
    for index in range(ARMS):
        spread = noise.fixed * (1.0 if noise.is_equal else UNEQUAL[index])
        taken[f"arm {index}"] = take(spread, generator.normal(size=seeds), draws_anew=False)
    taken[SHIFTED].losses[:] -= shift
    return judge_column(taken, {f"arm {index}": "random" for index in range(ARMS)}, weights)


def summarize(noise: Noise, seeds: int, comparisons: int, seed: int) -> dict[str, float]:
    """
    What many comparisons show.

    Returns:
        "coverage": share of intervals that hold the true difference; "least": that of the arm where it is the least;
        "any": share of comparisons in which any arm is shown though none differs; "power": share of comparisons that
        show the one arm that differs by the median of what they say is reliably shown.
    """
    generator = np.random.default_rng(seed)
    columns = [list(simulate(noise, seeds, generator).values()) for _ in range(comparisons)]
    covered = np.mean([[abs(one.mean) <= one.half for one in column] for column in columns], axis=0)
    any_shown = np.mean([any(one.word != "not shown" for one in column) for column in columns])
    index = list(simulate(noise, seeds, generator)).index(SHIFTED)
    reliable = float(np.median([column[index].reliably_shown for column in columns[:300]]))
    power = np.mean([simulate(noise, seeds, generator, reliable)[SHIFTED].word == "lower" for _ in range(comparisons)])
    least = float(covered.min())
    return {"coverage": float(covered.mean()), "least": least, "any": float(any_shown), "power": float(power)}


def list_cases() -> Iterator[tuple[str, int, Noise]]:
    """All cases of the table."""
    for is_equal in (True, False):
        for name, parts in NOISE.items():
            for seeds in (3, 5):
                yield f"{name}, {'equal' if is_equal else 'unequal'} spreads", seeds, Noise(*parts, is_equal)


def main() -> None:
    print(
        "| noise | seeds | coverage | least of an arm | any shown | power |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for name, seeds, noise in list_cases():
        found = " | ".join(f"{100 * share:.1f} %" for share in summarize(noise, seeds, 1500, seed=0).values())
        print(f"| {name} | {seeds} | {found} |", flush=True)


if __name__ == "__main__":
    main()
