"""A smaller model scores for the one in training; some samples are scored by both, and what they show is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import BertConfig, BertForSequenceClassification

from miwv_trainer import (
    MIWVCallback,
    MIWVConfig,
    MIWVDataSampler,
    attach,
    pool_from_rows,
    pool_from_tokenized,
    score_and_select,
)
from miwv_trainer.report.tables import format_rounds
from miwv_trainer.rounds.proxy import choose_spread, share_best
from miwv_trainer.storage.stored_round import StoredRound
from tests.helpers.tiny import tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.trainers import noting_trainer

COUNT = 32
VALUES = {"fraction": 0.25, "embedder": "tfidf"}
BY_ROWS = '`miwv score --model SMALL .*scores_from="FOLDER", match="rows"'


def small_model() -> Any:
    return tiny_model(tiny_config(num_hidden_layers=1, hidden_size=16, intermediate_size=32), seed=5)


def trained_by(folder: Path, scorer: Any, **values: Any) -> tuple[StoredRound, list[int]]:
    """The round of a training, and the tokens that its model forwarded in evaluation mode."""
    trainer = noting_trainer(folder, num_train_epochs=1)
    tokens: list[int] = []

    def note(module: Any, args: Any, inputs: dict[str, Any]) -> None:
        if not module.training:
            tokens.append(inputs["input_ids"].numel())

    trainer.model.register_forward_pre_hook(note, with_kwargs=True)
    callback = attach(trainer, MIWVConfig(**{**VALUES, **values}), scorer=scorer)
    trainer.train()
    return callback.rounds[0], tokens


def scored_by(model: Any, folder: Path) -> StoredRound:
    return score_and_select(model, pool_from_rows(tiny_dataset(COUNT), tiny_tokenizer()), MIWVConfig(**VALUES), folder)


def test_scores_are_the_smaller_models_and_a_few_samples_tell_how_far_both_agree(tmp_path: Path, caplog: Any) -> None:
    small = small_model()
    found, tokens = trained_by(tmp_path / "run", small, proxy_check=16, proxy_warn_below=1.0)
    by_small, by_model = scored_by(small, tmp_path / "small"), scored_by(tiny_model(), tmp_path / "model")
    np.testing.assert_allclose(found.column("miwv"), by_small.column("miwv"), atol=2e-5)
    assert found.selection.tolist() == by_small.selection.tolist() != by_model.selection.tolist()

    samples = choose_spread(by_small.column("miwv"), 16)
    both = [each.column("miwv")[samples] for each in (by_small, by_model)]
    proxy = found.summary["proxy"]
    assert proxy["samples"] == 16
    assert proxy["rank_correlation"] == pytest.approx(spearmanr(*both).statistic, abs=1e-6)
    best, best_of_model = (set(np.argsort(-each)[:4]) for each in both)  # a quarter of 16
    assert proxy["overlap"] == len(best & best_of_model) / 4
    assert sum(tokens) > 0 and proxy["seconds"] > 0 and proxy["seconds_of_model"] > 0
    told = f"on 16 samples rank correlation {proxy['rank_correlation']:.2f}"
    assert told in format_rounds([found])
    assert any("ranks the samples unlike the model in training" in each and told in each for each in caplog.messages)


@pytest.mark.parametrize("values", [{"score": "ifd"}, {"min_response_tokens": 9}], ids=str)
def test_what_no_model_may_select_is_not_among_the_best_of_either(values: dict[str, Any], tmp_path: Path) -> None:
    found, _ = trained_by(tmp_path / "run", small_model(), proxy_check=COUNT, **values)
    pool, best = pool_from_rows(tiny_dataset(COUNT), tiny_tokenizer()), []
    for name, model in (("small", small_model()), ("model", tiny_model())):
        current = score_and_select(model, pool, MIWVConfig(**VALUES, **values), tmp_path / name)
        scores = current.column("score")
        is_allowed = scores <= 1 if "score" in values else current.column("response_tokens") >= 9
        assert not is_allowed[np.argsort(-scores)[:8]].all()
        best.append(set(np.argsort(np.where(is_allowed, -scores, np.inf))[:8]))
    assert found.summary["proxy"]["overlap"] == len(best[0] & best[1]) / 8


def test_no_overlap_is_told_where_guards_leave_nothing_among_the_samples() -> None:
    nothing = np.array([], dtype=np.int64)
    assert share_best(nothing, np.array([1, 2])) is None and share_best(np.array([1, 2]), nothing) == 0


def test_a_scorer_is_a_loaded_model(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"`scorer` must be a loaded model .*, but got 'small'"):
        attach(noting_trainer(tmp_path), MIWVConfig(**VALUES), scorer="small")


def test_the_model_in_training_forwards_nothing_if_nothing_is_checked(tmp_path: Path) -> None:
    small = small_model().train()
    before = [parameter.clone() for parameter in small.parameters()]
    found, tokens = trained_by(tmp_path, small, proxy_check=0)
    assert not tokens and "proxy" not in found.summary
    assert small.training
    assert all(torch.equal(*pair) for pair in zip(before, small.parameters(), strict=True))


def test_a_model_agrees_with_itself_and_no_warning_is_made(tmp_path: Path, caplog: Any) -> None:
    found, _ = trained_by(tmp_path, tiny_model())
    proxy = found.summary["proxy"]
    assert proxy["samples"] == COUNT and proxy["overlap"] == 1 and proxy["rank_correlation"] == pytest.approx(1)
    assert not [each for each in caplog.messages if "unlike" in each]
    assert any("No tokenizer lies beside the `scorer`" in each for each in caplog.messages)


def test_samples_are_spread_over_the_ranking() -> None:
    scores = np.array([5.0, np.nan, 1.0, 4.0, 2.0, 3.0], dtype=np.float32)
    assert choose_spread(scores, 3).tolist() == [0, 2, 5]
    assert choose_spread(scores, 99).tolist() == [0, 2, 3, 4, 5]


def test_a_scorer_with_other_tokens_is_refused_and_one_with_the_same_is_not(tmp_path: Path) -> None:
    small = small_model()
    small.save_pretrained(tmp_path / "same")
    small.save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "same")
    tiny_tokenizer(special_tokens=["<|a|>", "<|b|>", "<|c|>"], eos_token="<|a|>").save_pretrained(tmp_path / "other")
    trainer = noting_trainer(tmp_path)
    with pytest.raises(
        ValueError,
        match="another vocabulary.*they differ in .* token ids in the pool; id .* is .* and .*" + BY_ROWS,
    ):
        attach(trainer, MIWVConfig(**VALUES), scorer=type(small).from_pretrained(tmp_path / "other"))
    attach(trainer, MIWVConfig(**VALUES), scorer=type(small).from_pretrained(tmp_path / "same"))


def test_too_few_samples_tell_nothing_of_a_smaller_model(tmp_path: Path, caplog: Any) -> None:
    """One that ranks exactly alike, as it is the same, must not be called unlike."""
    found, _ = trained_by(tmp_path, tiny_model(), proxy_check=1)
    assert found.summary["proxy"]["rank_correlation"] is None and found.summary["proxy"]["samples"] == 1
    assert "It is not known whether the smaller model ranks the samples like the model in training: on 1 sample no" in (
        caplog.text
    )
    assert "Give a larger `proxy_check`" in caplog.text and "unlike" not in caplog.text


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_smaller_model_without_a_finite_loss_is_named(tmp_path: Path) -> None:
    broken = small_model()
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(ValueError, match="Not one loss is finite: the `scorer` gives NaN"):
        trained_by(tmp_path, broken)


def test_models_of_other_kinds_are_refused_as_scorers_by_that_name(tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path)
    other = BertForSequenceClassification(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    for given, words in ((other, "is no causal language model.*"), (torch.nn.Linear(2, 2), "The model is a Linear.*")):
        with pytest.raises(ValueError, match=f"The `scorer` cannot score. .*{words}`AutoModelForCausalLM`") as refused:
            attach(trainer, MIWVConfig(**VALUES), scorer=given)
        assert "train without a selection" not in str(refused.value)


@pytest.mark.parametrize("score", ["random", "longest", np.zeros(COUNT)])
def test_a_scorer_is_refused_where_nothing_is_forwarded(tmp_path: Path, score: Any) -> None:
    with pytest.raises(ValueError, match="needs no loss, so that a `scorer` would forward nothing. Leave the `scorer`"):
        attach(noting_trainer(tmp_path), MIWVConfig(**VALUES, score=score), scorer=small_model())


def test_what_a_scorer_cannot_do_is_refused(tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path)
    with pytest.raises(ValueError, match="a `scorer` is not trained: it would give the same scores in every round"):
        attach(trainer, MIWVConfig(**VALUES, rescore_strategy="epoch"), scorer=small_model())
    with pytest.raises(ValueError, match="Both a `scorer` and `scores_from` are given"):
        attach(trainer, MIWVConfig(**VALUES, scores_from="a"), scorer=small_model())
    with pytest.raises(ValueError, match="`scorer`'s vocabulary has 50 entries.*" + BY_ROWS):
        attach(trainer, MIWVConfig(**VALUES), scorer=tiny_model(tiny_config(vocab_size=50)))
    split = small_model()
    split.lm_head.weight = torch.nn.Parameter(torch.empty(0))  # as ZeRO-3 leaves it
    with pytest.raises(ValueError, match="split over the ranks.*Load it before"):
        attach(trainer, MIWVConfig(**VALUES), scorer=split)
    with pytest.raises(ValueError, match="or has no weights on this one.*Load it before"):
        attach(trainer, MIWVConfig(**VALUES), scorer=small_model().to("meta"))
    with pytest.raises(ValueError, match="`proxy_check` must be a whole number of at least 0"):
        MIWVConfig(proxy_check=-1)


@pytest.mark.parametrize("values", [{"score": "ifd"}, {"score": "influence", "exemplars_per_sample": 2}])
def test_all_losses_that_a_score_needs_are_compared(values: dict[str, Any], tmp_path: Path) -> None:
    found, _ = trained_by(tmp_path, small_model(), proxy_check=24, **values)
    assert found.summary["proxy"]["samples"] > 8
    assert found.summary["proxy"]["rank_correlation"] is not None


def by_hand(folder: Path, scorer: Any, given: bool, **values: Any) -> Any:
    """A Trainer with a MIWVCallback that was made by hand, with a pool of its own or without."""
    trainer = noting_trainer(folder)
    pool = pool_from_tokenized(trainer.train_dataset, trainer.processing_class) if given else None
    sampler = MIWVDataSampler(COUNT, fraction=0.25, seed=1)
    trainer._get_train_sampler = lambda *_, **__: sampler
    config = MIWVConfig(**{**VALUES, "proxy_check": 0, **values})
    trainer.add_callback(MIWVCallback(config, sampler, pool, scorer=scorer))
    return trainer


@pytest.mark.parametrize("given", [True, False], ids=["own pool", "the Trainer's"])
def test_a_callback_by_hand_checks_its_scorer_too(given: bool, tmp_path: Path) -> None:
    small = small_model()
    small.save_pretrained(tmp_path / "other")
    tiny_tokenizer(special_tokens=["<|a|>", "<|b|>", "<|c|>"], eos_token="<|a|>").save_pretrained(tmp_path / "other")
    other = type(small).from_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="The `scorer` has another vocabulary than the Trainer's tokenizer"):
        by_hand(tmp_path / "run", other, given).train()
    with pytest.raises(ValueError, match="a `scorer` is not trained: it would give the same scores in every round"):
        by_hand(tmp_path / "run", small, given, rescore_strategy="epoch").train()
    with pytest.raises(TypeError, match=r"`scorer` must be a loaded model .*, but got 'small'"):
        by_hand(tmp_path / "run", "small", given).train()
    assert not list((tmp_path / "run").glob("miwv/round*"))
    by_hand(tmp_path / "run", small, given).train()


def test_a_scorer_forwards_nothing_after_the_first_round(tmp_path: Path) -> None:
    """It lies on the device in that round alone."""
    small, steps = small_model(), []
    trainer = noting_trainer(tmp_path, num_train_epochs=3)
    small.register_forward_pre_hook(lambda *_: steps.append(trainer.state.global_step))
    values = {"selection": "sample", "resample_each_epoch": True, "proxy_check": 8}
    callback = attach(trainer, MIWVConfig(**VALUES, **values), scorer=small)
    trainer.train()
    assert len(callback.rounds) == 3 and set(steps) == {0}
    assert ["proxy" in each.summary for each in callback.rounds] == [True, False, False]


def test_a_scorer_is_taken_out_of_its_wrapper(tmp_path: Path) -> None:
    found, _ = trained_by(tmp_path / "run", torch.nn.DataParallel(small_model()))
    by_small = scored_by(small_model(), tmp_path / "small")
    np.testing.assert_allclose(found.column("miwv"), by_small.column("miwv"), atol=2e-5)


def test_a_scorers_context_is_named_where_samples_do_not_fit_it(tmp_path: Path, caplog: Any) -> None:
    pool = pool_from_rows(tiny_dataset(COUNT), tiny_tokenizer())
    middle = int(np.median(pool.lengths)) + len(pool.preamble)
    too_long = int((len(pool.preamble) + pool.lengths >= middle).sum())
    assert 0 < too_long < COUNT
    trained_by(tmp_path / "some", tiny_model(tiny_config(max_position_embeddings=middle)), proxy_check=0)
    words = f"{too_long} with more tokens than the `scorer`'s context of {middle} leaves room for"
    assert words in caplog.text and f"none fits the {middle} tokens of the `scorer`'s context" in caplog.text
    with pytest.raises(
        ValueError, match="32 with more tokens than the `scorer`'s context of 9 .*, or a `scorer` with a"
    ):
        trained_by(tmp_path / "none", tiny_model(tiny_config(max_position_embeddings=9)))
    # A setting is no property of the smaller model.
    with pytest.raises(ValueError, match="32 with more tokens than the context of 9 leaves room for. Give samples"):
        trained_by(tmp_path / "set", small_model(), scoring_max_length=9)
