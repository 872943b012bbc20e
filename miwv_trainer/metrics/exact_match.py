"""Share of generated responses that equal a reference."""

import evaluate

from miwv_trainer.metrics._references import FEATURES, average_best

_DESCRIPTION = """
Share of generations that equal one of their references. White space at both ends is ignored.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): generated responses.
    references (list of list of str): for each generation, its references.
    ignore_case (bool, defaults to False): whether upper and lower case are the same.
Returns:
    exact_match (float), from 0 to 1.
Raises:
    ValueError: there is no generation, or one has no reference.
Examples:
    >>> metric = evaluate.load(metric_path("exact_match"))
    >>> metric.compute(predictions=["Paris", "a cat"], references=[["Paris", "In Paris"], ["a dog"]])
    {'exact_match': 0.5}
"""


class ExactMatch(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=FEATURES,
        )

    def _compute(
        self, predictions: list[str], references: list[list[str]], ignore_case: bool = False
    ) -> dict[str, float]:
        def is_equal(generated: str, reference: str) -> bool:
            if ignore_case:
                generated, reference = generated.lower(), reference.lower()
            # A tokenizer that puts a space before each word decodes a generation with one at its beginning.
            return generated.strip() == reference.strip()

        return {"exact_match": average_best(predictions, references, is_equal)}
