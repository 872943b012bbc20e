"""ROUGE-L of generated responses."""

import evaluate
from rouge_score import rouge_scorer

from miwv_trainer.metrics._references import FEATURES, average_best

_DESCRIPTION = """
ROUGE-L (Lin 2004): the F-measure of the longest common subsequence of words of a generation and its reference, in lower
case, computed by Google's rouge_score. The best of several references counts. The result is the mean over the samples.
rouge_score takes only a to z and digits as parts of words, so texts in other scripts score 0 even where they are equal.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): generated responses.
    references (list of list of str): for each generation, its references.
    use_stemmer (bool, defaults to False): whether words are compared by their Porter stems.
Returns:
    rougeL (float), from 0 to 1.
Raises:
    ValueError: there is no generation, or one has no reference.
Examples:
    >>> metric = evaluate.load(metric_path("rouge_l"))
    >>> metric.compute(predictions=["the cat sat"], references=[["the cat sat down"]])
    {'rougeL': 0.8571428571428571}
"""


class RougeL(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=FEATURES,
        )

    def _compute(
        self, predictions: list[str], references: list[list[str]], use_stemmer: bool = False
    ) -> dict[str, float]:
        scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=use_stemmer)

        def f_measure(generated: str, reference: str) -> float:
            # rouge_score takes the reference first, unlike the metrics of `evaluate`.
            return scorer.score(reference, generated)["rougeL"].fmeasure

        return {"rougeL": average_best(predictions, references, f_measure)}
