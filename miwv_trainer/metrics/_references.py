"""Compares generated responses with their references."""

from collections.abc import Callable

import datasets

FEATURES = datasets.Features(
    {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
)


def average_best(predictions: list[str], references: list[list[str]], score: Callable[[str, str], float]) -> float:
    """
    Mean over the generations of each one's highest score against its references.

    Args:
        predictions: Generated responses.
        references: For each generation, its references.
        score: Takes a generation and a reference.

    Raises:
        ValueError: there is no generation, or one has no reference.
    """
    if not predictions:
        raise ValueError("There is no generation to score; give at least one.")
    best = []
    for number, (generated, own_references) in enumerate(zip(predictions, references, strict=True)):
        if not own_references:
            raise ValueError(f"Generation {number} has no reference; give at least one for each.")
        best.append(max(score(generated, reference) for reference in own_references))
    return sum(best) / len(best)
