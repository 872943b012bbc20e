"""The metric modules, loaded by path without a hub."""

import functools
import json
import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch.nn.functional import cross_entropy

from miwv_trainer.compat import is_at_least
from miwv_trainer.metrics import metric_path
from tests.helpers.launch import fork_ranks


def test_response_loss_weighs_samples_by_their_response_tokens() -> None:
    metric = evaluate.load(metric_path("response_loss"))
    result = metric.compute(predictions=[1.0, 2.0, 4.0], references=[3, 1, 4])
    # (3 x 1 + 1 x 2 + 4 x 4) / 8
    of_samples = [math.e, math.e**2, math.e**4]
    assert result["perplexities"] == pytest.approx(of_samples)
    assert result["mean_perplexity"] == pytest.approx(sum(of_samples) / 3)
    assert {name: result[name] for name in ("response_loss", "perplexity", "response_tokens")} == {
        "response_loss": 2.625,
        "perplexity": math.exp(2.625),
        "response_tokens": 8,
    }


def test_response_loss_is_that_of_all_response_tokens_together() -> None:
    """As torch takes it over the labels of a padded batch."""
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 9, 11, dtype=torch.float64), torch.randint(0, 11, (6, 9))
    labels[torch.rand(6, 9) < 0.4] = -100
    counts = (labels != -100).sum(1)
    of_samples = [cross_entropy(row, label).item() for row, label in zip(logits, labels, strict=True)]
    result = evaluate.load(metric_path("response_loss")).compute(predictions=of_samples, references=counts.tolist())
    together = cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert result["response_loss"] == pytest.approx(together.item())
    assert result["perplexity"] == pytest.approx(together.exp().item())


@pytest.mark.parametrize(("loss", "count", "words"), [(math.nan, 3, "nan over 3"), (1.0, -2, "1.0 over -2")])
def test_a_loss_that_is_none_is_refused(loss: float, count: int, words: str) -> None:
    metric = evaluate.load(metric_path("response_loss"))
    with pytest.raises(ValueError, match=f"Sample 1 has a loss of {words} response tokens; leave out what has no loss"):
        metric.compute(predictions=[2.0, loss], references=[5, count])


def test_a_loss_beyond_what_a_float_holds_has_an_infinite_perplexity() -> None:
    result = evaluate.load(metric_path("response_loss")).compute(predictions=[800.0], references=[1])
    assert result["response_loss"] == 800.0 and result["perplexity"] == math.inf


def test_response_loss_does_not_depend_on_how_it_was_batched() -> None:
    whole, parts = evaluate.load(metric_path("response_loss")), evaluate.load(metric_path("response_loss"))
    parts.add_batch(predictions=[0.5], references=[2])
    parts.add_batch(predictions=[1.5, 3.0], references=[6, 1])
    assert parts.compute() == whole.compute(predictions=[0.5, 1.5, 3.0], references=[2, 6, 1])


def test_response_loss_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="without a response token has no loss"):
        evaluate.load(metric_path("response_loss")).compute(predictions=[1.0], references=[0])


def test_an_unknown_metric_is_refused_with_those_that_exist() -> None:
    available = "exact_match, response_loss, rouge_l, selection_overlap"
    with pytest.raises(ValueError, match=f"no metric 'bleu'; available: {available}"):
        metric_path("bleu")


def test_overlap_by_hand() -> None:
    metric = evaluate.load(metric_path("selection_overlap"))
    result = metric.compute(predictions=[[1, 2, 3, 4], [5, 6]], references=[[3, 4, 5], [6, 5]], pool_size=10)
    # 2 of 4 and 2 of 2; 2 of 5 and 2 of 2; 3 of 10 and 2 of 10
    assert result == {"overlap": 0.75, "jaccard": 0.7, "overlap_by_chance": 0.25}
    assert "overlap_by_chance" not in metric.compute(predictions=[[1]], references=[[2]])


def test_jaccard_is_sklearns() -> None:
    generator, metric = np.random.default_rng(2), evaluate.load(metric_path("selection_overlap"))
    one, other = (generator.permutation(50)[:count] for count in (20, 30))
    masks = [np.isin(np.arange(50), indices) for indices in (one, other)]
    assert metric.compute(predictions=[one], references=[other])["jaccard"] == jaccard_score(*masks)


@pytest.mark.parametrize(
    ("selection", "pool_size", "words"),
    [
        ([3, 10], 10, "3 to 10, but indices begin at 0 and the pool has 10"),
        ([-1], None, "-1 to -1, but indices"),
    ],
)
def test_a_selection_from_outside_the_pool_is_refused(selection: list[int], pool_size: int | None, words: str) -> None:
    metric = evaluate.load(metric_path("selection_overlap"))
    with pytest.raises(ValueError, match=f"A selection names .*{words}"):
        metric.compute(predictions=[[1]], references=[selection], pool_size=pool_size)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("exact_match", "There is no generation to score; give at least one"),
        ("rouge_l", "There is no generation to score; give at least one"),
        ("selection_overlap", "There are no selections to compare; give at least one pair"),
        ("response_loss", "without a response token has no loss"),
    ],
)
def test_nothing_at_all_is_refused(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        evaluate.load(metric_path(name)).compute(predictions=[], references=[])


def test_overlap_by_chance_is_that_of_random_draws() -> None:
    generator, metric = np.random.default_rng(0), evaluate.load(metric_path("selection_overlap"))
    drawn = [[generator.permutation(40)[:count].tolist() for _ in range(2000)] for count in (6, 10)]
    result = metric.compute(predictions=drawn[0], references=drawn[1], pool_size=40)
    assert result["overlap_by_chance"] == 0.25
    assert result["overlap"] == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("selection, words", [([], "0 indices of 0 samples"), ([3, 3], "2 indices of 1 samples")])
def test_a_selection_that_is_none_is_refused(selection: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=f"at least one sample, and none twice, but got {words}"):
        evaluate.load(metric_path("selection_overlap")).compute(predictions=[selection], references=[[1]])


def test_exact_match_by_hand() -> None:
    metric = evaluate.load(metric_path("exact_match"))
    predictions = ["the cat sat", " Paris ", "a b", "PARIS"]
    references = [["the cat sat down", "a dog"], ["Rome", "Paris"], ["a  b"], ["Paris"]]
    assert metric.compute(predictions=predictions, references=references) == {"exact_match": 0.25}
    assert metric.compute(predictions=predictions, references=references, ignore_case=True) == {"exact_match": 0.5}


def test_rouge_l_by_hand() -> None:
    metric = evaluate.load(metric_path("rouge_l"))
    predictions, references = ["the cat sat", "a b c d", "PARIS"], [["a dog", "the cat sat down"], ["b d e"], ["Paris"]]
    # "the cat sat": 3 of 3 and 3 of 4; "b d" of "a b c d": 2 of 4 and 2 of 3.
    result = metric.compute(predictions=predictions, references=references)
    assert result["rougeL"] == pytest.approx((6 / 7 + 4 / 7 + 1) / 3)
    walking = {"predictions": ["he walks"], "references": [["he walked"]]}
    assert metric.compute(**walking)["rougeL"] == 0.5 and metric.compute(**walking, use_stemmer=True)["rougeL"] == 1.0


def test_rouge_l_is_the_longest_common_subsequence_of_words() -> None:
    generator, words = np.random.default_rng(1), ["red", "blue", "green", "one", "two"]
    texts = [" ".join(generator.choice(words, generator.integers(1, 9))) for _ in range(60)]
    predictions, references = texts[:30], texts[30:]
    result = evaluate.load(metric_path("rouge_l")).compute(
        predictions=predictions, references=[[text] for text in references]
    )
    expected = [f_measure(one.split(), other.split()) for one, other in zip(predictions, references, strict=True)]
    assert result["rougeL"] == pytest.approx(np.mean(expected))


def f_measure(one: list[str], other: list[str]) -> float:
    @functools.cache
    def common(i: int, j: int) -> int:
        if i == len(one) or j == len(other):
            return 0
        if one[i] == other[j]:
            return 1 + common(i + 1, j + 1)
        return max(common(i + 1, j), common(i, j + 1))

    return 2 * common(0, 0) / (len(one) + len(other))


@pytest.mark.parametrize("name", ["exact_match", "rouge_l"])
def test_a_generation_without_reference_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="Generation 1 has no reference"):
        evaluate.load(metric_path(name)).compute(predictions=["a", "b"], references=[["a"], []])


TWO_PROCESSES = """
import json, os, sys, evaluate
from miwv_trainer.metrics import metric_path
process, cache, batches = int(os.environ["RANK"]), sys.argv[1], json.loads(sys.argv[2])
for name, by_process in batches.items():
    metric = evaluate.load(metric_path(name), num_process=2, process_id=process, experiment_id=name, cache_dir=cache)
    predictions, references = by_process[process]
    metric.add_batch(predictions=predictions, references=references)
    print(json.dumps(metric.compute()), flush=True)
"""
BATCHES = {
    "response_loss": [([1.0], [3]), ([2.0, 4.0], [1, 4])],
    "exact_match": [(["a", "b"], [["a"], ["c"]]), (["d"], [["e", "d"]])],
    "rouge_l": [(["the cat"], [["the cat sat"]]), (["a b", "c"], [["b a"], ["c"]])],
    "selection_overlap": [([[1, 2]], [[2, 3]]), ([[5], [7, 8]], [[5], [9, 8]])],
}


@pytest.mark.skipif(
    not is_at_least("evaluate", "0.4.2"), reason="evaluate 0.4.1 looks for lock files that filelock has removed"
)
def test_batches_of_two_processes_make_one_corpus(tmp_path: Path) -> None:
    done = fork_ranks(2, "-c", TWO_PROCESSES, tmp_path, json.dumps(BATCHES))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("null") == len(BATCHES)  # of the second process
    together = [json.loads(line) for line in lines if line != "null"]
    assert len(together) == len(BATCHES)
    assert together[0]["response_loss"] == 2.625
    for found, (name, ((ours, expected), (theirs, others))) in zip(together, BATCHES.items(), strict=True):
        assert found == evaluate.load(metric_path(name)).compute(
            predictions=[*ours, *theirs], references=[*expected, *others]
        )
