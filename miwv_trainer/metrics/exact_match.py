"""Share of generated responses that equal a reference."""

import datasets
import evaluate

_DESCRIPTION = """
Share of generations that equal their reference, or one of several, after white space at both ends is taken off.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): generated responses.
    references (list of list of str): for each its references.
    ignore_case (bool, defaults to False): whether texts are compared in lower case.
Returns:
    exact_match (float), from 0 to 1.
Raises:
    ValueError: a generation without reference.
Examples:
    >>> metric = evaluate.load(metric_path("exact_match"))
    >>> metric.compute(predictions=["Paris", "a cat"], references=[["Paris", "In Paris"], ["a dog"]])
    {'exact_match': 0.5}
"""


class ExactMatch(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        texts = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("string"), "references": texts}),
        )

    def _compute(
        self, predictions: list[str], references: list[list[str]], ignore_case: bool = False
    ) -> dict[str, float]:
        matches = []
        for number, (generated, allowed) in enumerate(zip(predictions, references, strict=True)):
            if not allowed:
                raise ValueError(f"Generation {number} has no reference; give at least one for each.")
            texts = [text.strip().lower() if ignore_case else text.strip() for text in (generated, *allowed)]
            matches.append(texts[0] in texts[1:])
        return {"exact_match": sum(matches) / len(matches)}
