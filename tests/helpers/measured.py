"""What is known of a few samples, written out by hand."""

from collections.abc import Sequence

import numpy as np

from miwv_trainer.selection.measured import Measured

NAN, INF = float("nan"), float("inf")


def measured(
    miwv: Sequence[float] | np.ndarray,
    tokens: Sequence[int] | np.ndarray | None = None,
    similarity: Sequence[float] | np.ndarray | None = None,
    draw: tuple[int, ...] = (0,),
) -> Measured:
    """Of a zero-shot loss of 2 everywhere; 10 response tokens and a similarity of 0.5 where none are given."""
    values = np.asarray(miwv, dtype=np.float32)
    count = len(values)
    return Measured(
        zero_shot_loss=np.full(count, 2, dtype=np.float32),
        one_shot_loss=values + np.float32(2),
        similarity=np.asarray([0.5] * count if similarity is None else similarity, dtype=np.float32),
        response_tokens=np.asarray([10] * count if tokens is None else tokens, dtype=np.int64),
        draw=draw,
        response_loss=values + np.float32(2.5),
        exemplars=(np.arange(count) + 1) % max(count, 1),
        given=np.arange(count, dtype=np.float32),
    )


def drawn(seed: int, count: int) -> Measured:
    """Random samples: MIWV in steps of 1/64, so that some tie, and every eighth without a loss."""
    generator = np.random.default_rng(seed)
    miwv = generator.integers(-64, 65, size=count) / 64
    miwv[generator.random(count) < 1 / 8] = np.nan
    return measured(miwv, generator.integers(1, 60, size=count), generator.random(count))
