"""Generated responses beside their references."""

from collections.abc import Callable

import datasets

FEATURES = datasets.Features(
    {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
)


def mean_of_best(predictions: list[str], references: list[list[str]], score: Callable[[str, str], float]) -> float:
    """
    Mean over the generations of the highest score with one of their references.

    Args:
        score: Of a generation and a reference.

    Raises:
        ValueError: no generation, or one without reference.
    """
    if not predictions:
        raise ValueError("There is no generation to score; give at least one.")
    best = []
    for number, (generated, allowed) in enumerate(zip(predictions, references, strict=True)):
        if not allowed:
            raise ValueError(f"Generation {number} has no reference; give at least one for each.")
        best.append(max(score(generated, text) for text in allowed))
    return sum(best) / len(best)
