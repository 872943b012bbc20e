"""The metric modules, loaded by path without a hub."""

import math

import evaluate
import pytest

from miwv_trainer.metrics import metric_path


def test_response_loss_weighs_samples_by_their_response_tokens() -> None:
    metric = evaluate.load(metric_path("response_loss"))
    result = metric.compute(predictions=[1.0, 2.0, 4.0], references=[3, 1, 4])
    # (3 x 1 + 1 x 2 + 4 x 4) / 8
    assert result == {"response_loss": 2.625, "perplexity": math.exp(2.625), "response_tokens": 8}


def test_response_loss_does_not_depend_on_how_it_was_batched() -> None:
    whole, parts = evaluate.load(metric_path("response_loss")), evaluate.load(metric_path("response_loss"))
    parts.add_batch(predictions=[0.5], references=[2])
    parts.add_batch(predictions=[1.5, 3.0], references=[6, 1])
    assert parts.compute() == whole.compute(predictions=[0.5, 1.5, 3.0], references=[2, 6, 1])


def test_response_loss_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="without a response token has no loss"):
        evaluate.load(metric_path("response_loss")).compute(predictions=[1.0], references=[0])


def test_an_unknown_metric_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="no metric 'bleu'; available: response_loss"):
        metric_path("bleu")
