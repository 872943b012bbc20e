"""Pools of given tokens, and clustered vectors."""

import numpy as np

from miwv_trainer.data.pool import Pool


def pool_of(samples: list[tuple[list[int], list[int]]], preamble: int = 0) -> Pool:
    """A pool of (prompt, response) pairs of token ids."""
    ids = [token for prompt, response in samples for token in prompt + response]
    mask = [flag for prompt, response in samples for flag in [False] * len(prompt) + [True] * len(response)]
    return Pool(
        preamble=np.zeros(preamble, dtype=np.int32),
        tokens=np.asarray(ids, dtype=np.int32),
        is_response=np.asarray(mask, dtype=bool),
        offsets=np.cumsum([0, *(len(prompt) + len(response) for prompt, response in samples)]),
    )


def clustered_pool(count: int = 4000, dim: int = 32) -> tuple[np.ndarray, list[tuple[list[int], list[int]]]]:
    """Vectors around `count / 20` centres; every tenth sample is a copy of the one before, every 97th unusable."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((count // 20, dim))
    vectors = centres[generator.integers(0, len(centres), count)] + 0.5 * generator.standard_normal((count, dim))
    samples = [([index] * generator.integers(1, 9), [7] * generator.integers(1, 9)) for index in range(count)]
    for index in range(10, count, 10):
        samples[index], vectors[index] = samples[index - 1], vectors[index - 1]
    for index in range(97, count, 97):
        samples[index] = ([], [1, 2])
    return vectors.astype(np.float32), samples
