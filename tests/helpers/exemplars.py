"""Samples, and their exemplars by comparing every pair in plain Python."""

import math
import re
from collections import Counter

import numpy as np

FAR = 10_000  # a context that nothing fills


def distinct(count: int) -> list[tuple[list[int], list[int]]]:
    return [([index], [index, index]) for index in range(count)]


def random_samples(count: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Uneven lengths, some copies, some without prompt or response."""
    generator = np.random.default_rng(seed)
    samples = [([index] * generator.integers(1, 9), [7] * generator.integers(1, 9)) for index in range(count)]
    for copy, original in ((5, 2), (11, 2), (20, 19)):
        samples[copy] = samples[original]
    samples[3], samples[8] = ([], [1, 2]), ([1, 2], [])
    return samples


def brute_force(vectors, samples, context, preamble: int = 0, allow_identical: bool = False) -> list[int]:
    """Equation 1 and its exclusions, one pair at a time in float64."""
    return [ranked[0] for ranked in brute_force_ranked(vectors, samples, context, 1, preamble, allow_identical)]


def brute_force_ranked(
    vectors, samples, context, count: int, preamble: int = 0, allow_identical: bool = False
) -> list[list[int]]:
    """The nearest `count` samples of each, -1 where there are fewer."""

    def length(index: int) -> int:
        return len(samples[index][0]) + len(samples[index][1])

    def cosine(i: int, j: int) -> float:
        norms = math.hypot(*vectors[i]) * math.hypot(*vectors[j])
        return sum(a * b for a, b in zip(vectors[i], vectors[j], strict=True)) / norms if norms else 0.0

    found = []
    for i in range(len(samples)):
        allowed = [
            j
            for j, (prompt, response) in enumerate(samples)
            if j != i and prompt and response and (allow_identical or samples[j] != samples[i])
        ]
        fitting = [j for j in allowed if preamble + length(i) + length(j) <= context]
        ranked = sorted(fitting or allowed, key=lambda j: (-round(cosine(i, j), 6), j))[:count]
        found.append(ranked + [-1] * (count - len(ranked)))
    return found


def tfidf_by_hand(texts: list[str]) -> list[list[float]]:
    """scikit-learn's documented default: counts times ln((1 + n) / (1 + df)) + 1."""
    counts = [Counter(re.findall(r"\b\w\w+\b", text.lower())) for text in texts]
    words = sorted({word for count in counts for word in count})
    frequency = {word: sum(word in count for count in counts) for word in words}
    return [
        [count[word] * (math.log((1 + len(texts)) / (1 + frequency[word])) + 1) for word in words] for count in counts
    ]
