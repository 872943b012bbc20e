"""Response loss and perplexity of a corpus and of its samples, computed from the losses of the samples."""

import math

import datasets
import evaluate

_DESCRIPTION = """
Mean negative log-likelihood per response token over a corpus, in nats, and its exponential, the perplexity. Samples are
weighted by their number of response tokens, so the result does not depend on how they were batched. The perplexity of
each sample and their unweighted mean are returned too, under the names of evaluate's own `perplexity`.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of float): mean negative log-likelihood per response token of each sample.
    references (list of int): number of response tokens of each sample.
Returns:
    response_loss (float), perplexity (float), response_tokens (int), perplexities (list of float), mean_perplexity
    (float). A loss above 709 has an infinite perplexity, because its exponential exceeds the largest float.
Raises:
    ValueError: there is no response token, a number of tokens is negative, or a loss is NaN.
Examples:
    >>> metric = evaluate.load(metric_path("response_loss"))
    >>> metric.compute(predictions=[1.0, 2.0], references=[3, 1])["response_loss"]
    1.25
"""


class ResponseLoss(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, float | list[float]]:
        for sample, (mean, count) in enumerate(zip(predictions, references, strict=True)):
            if math.isnan(mean) or count < 0:
                raise ValueError(
                    f"Sample {sample} has a loss of {mean} over {count} response tokens; leave out what has no "
                    "loss, and give numbers of tokens that are not negative."
                )
        tokens = sum(references)
        if tokens == 0:
            raise ValueError("A corpus without a response token has no loss; give at least one sample that has some.")
        # fsum does not round in between: the result is the same whatever order the processes' samples arrive in.
        loss = math.fsum(mean * count for mean, count in zip(predictions, references, strict=True)) / tokens
        perplexities = [_compute_perplexity(mean) for mean in predictions]
        return {
            "response_loss": loss,
            "perplexity": _compute_perplexity(loss),
            "response_tokens": tokens,
            "perplexities": perplexities,
            "mean_perplexity": sum(perplexities) / len(perplexities),
        }


def _compute_perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
