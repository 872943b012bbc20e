"""Whether the exemplars that were found mean anything: what to look at, whatever embedder found them."""

from dataclasses import asdict, dataclass

import numpy as np

from miwv_trainer.data.pool import NO_EXEMPLAR

# Cosines that differ from 0, or from each other, by at most this are equal up to float32 rounding.
ALIKE = 1e-6
# In a smaller pool, a few samples are a large share by chance.
FEWEST_SAMPLES = 20
MOST_WITHOUT_SIMILARITY = 0.2
MOST_BEHIND_ONE = 0.3


@dataclass(frozen=True)
class ExemplarFacts:
    """
    What exemplars look like as a whole.

    Args:
        samples: Samples that have an exemplar.
        share_without_similarity: Share of them whose cosine to the exemplar is 0.
        share_behind_one: Share of them that have the commonest exemplar.
        commonest: Index of that exemplar.
        are_all_alike: Whether all cosines are the same.
    """

    samples: int
    share_without_similarity: float
    share_behind_one: float
    commonest: int
    are_all_alike: bool

    def to_dict(self) -> dict[str, float | int | bool]:
        """The facts for round.json."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def measure_exemplars(indices: np.ndarray, similarities: np.ndarray) -> ExemplarFacts | None:
    """
    Measures exemplars.

    Args:
        indices: `(N,)` index of each sample's exemplar, or -1.
        similarities: `(N,)` cosines, NaN where there is no exemplar.

    Returns:
        None where no sample has an exemplar.
    """
    has_exemplar = indices != NO_EXEMPLAR
    if not has_exemplar.any():
        return None
    cosines, counts = similarities[has_exemplar], np.bincount(indices[has_exemplar])
    return ExemplarFacts(
        samples=int(has_exemplar.sum()),
        share_without_similarity=float((np.abs(cosines) <= ALIKE).mean()),
        share_behind_one=float(counts.max() / has_exemplar.sum()),
        commonest=int(counts.argmax()),
        are_all_alike=bool(np.ptp(cosines) <= ALIKE),
    )


def explain_degenerate(facts: ExemplarFacts, embedder: str) -> str | None:
    """A warning with figures and what to do, where the exemplars tell little about the samples; else None."""
    if facts.samples < FEWEST_SAMPLES:
        return None
    found = []
    if facts.share_without_similarity > MOST_WITHOUT_SIMILARITY:
        found.append(f"{facts.share_without_similarity:.0%} of the samples have no similarity to any other (cosine 0)")
    elif facts.are_all_alike:
        found.append("all samples are equally similar to their exemplars")
    if facts.share_behind_one > MOST_BEHIND_ONE:
        found.append(f"{facts.share_behind_one:.0%} of the samples have one and the same exemplar, {facts.commonest}")
    if not found:
        return None
    return (
        f"The exemplars found by {embedder} tell little: {', and '.join(found)}. An exemplar then says little "
        "of its sample, and so does MIWV. Use an embedder that suits the pool's language and texts (docs/retrieval.md "
        'names some), or a `score` that needs no exemplars, such as "zero_shot_loss".'
    )
