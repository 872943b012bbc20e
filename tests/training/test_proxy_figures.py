"""The figures of a smaller model are those of this run's model in training, of what losses rank, and of like prices."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from miwv_trainer import Measured, MIWVConfig, attach, pool_from_rows, score_and_select
from miwv_trainer.report.tables import format_rounds
from miwv_trainer.rounds.identity import PROBES
from miwv_trainer.rounds.proxy import choose_spread
from miwv_trainer.storage.stored_round import StoredRound
from tests.helpers.tiny import tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.trainers import noting_trainer

COUNT = 32
# Tokens of the forward that checks a head.
HEAD = 4
VALUES: dict[str, Any] = {"fraction": 0.25, "embedder": "tfidf"}
UNLIKE = "The smaller model ranks the samples unlike"


def small_model() -> Any:
    return tiny_model(tiny_config(num_hidden_layers=1), seed=5)


def count_forwards(model: Any) -> list[int]:
    """Tokens of each forward in evaluation mode."""
    tokens: list[int] = []

    def note(module: Any, args: Any, inputs: dict[str, Any]) -> None:
        if not module.training:
            tokens.append(inputs["input_ids"].numel())

    model.register_forward_pre_hook(note, with_kwargs=True)
    return tokens


def train(folder: Path, model: Any, scorer: Any, **values: Any) -> StoredRound:
    trainer = noting_trainer(folder, num_train_epochs=1, model=model)
    callback = attach(trainer, MIWVConfig(**{**VALUES, **values}), scorer=scorer)
    trainer.train()
    (found,) = callback.rounds
    on_disk = json.loads((folder / "miwv" / "round-000" / "round.json").read_text())
    assert on_disk.get("proxy") == found.summary.get("proxy")
    return found


def read_figures(found: StoredRound) -> dict[str, object]:
    """Without prices and what the model is known by, which differ in the last bits."""
    figures = ("model", "asked", "compared", "samples", "overlap")
    proxy = found.summary["proxy"]
    return {name: proxy[name] for name in figures} | {"rank_correlation": round(proxy["rank_correlation"], 5)}


def test_another_trained_model_is_compared_anew_with_the_losses_of_a_finished_round(
    tmp_path: Path, caplog: Any
) -> None:
    first = train(tmp_path / "run", tiny_model(), small_model(), proxy_check=16)
    fresh = train(tmp_path / "fresh", tiny_model(seed=9), small_model(), proxy_check=16)
    assert first.summary["proxy"]["rank_correlation"] != fresh.summary["proxy"]["rank_correlation"]
    caplog.clear()
    small = small_model()
    by_small = count_forwards(small)
    found = train(tmp_path / "run", tiny_model(seed=9), small, proxy_check=16, proxy_warn_below=1.0)
    assert found.was_there and found.scores.equals(first.scores)
    # The samples by which it is known to be the same, and a check of its head.
    assert len(by_small) <= PROBES + 1
    assert read_figures(found) == read_figures(fresh)
    assert found.summary["proxy"]["seconds"] == first.summary["proxy"]["seconds"]
    assert any(each.startswith(UNLIKE) for each in caplog.messages)
    assert found.summary["date"] == first.summary["date"]

    # The same model again: nothing is compared anew, and a low correlation is told all the same.
    caplog.clear()
    again_model = tiny_model(seed=9)
    by_model = count_forwards(again_model)
    again = train(tmp_path / "run", again_model, small_model(), proxy_check=16, proxy_warn_below=1.0)
    assert again.was_there and again.summary == found.summary and len(by_model) <= PROBES + 1
    assert any(each.startswith(UNLIKE) for each in caplog.messages)


def test_another_number_of_samples_is_compared_anew(tmp_path: Path) -> None:
    first = train(tmp_path / "run", tiny_model(), small_model(), proxy_check=0)
    assert "proxy" not in first.summary
    for count in (16, COUNT):
        found = train(tmp_path / "run", tiny_model(), small_model(), proxy_check=count)
        fresh = train(tmp_path / f"fresh{count}", tiny_model(), small_model(), proxy_check=count)
        assert found.was_there and not fresh.was_there
        assert read_figures(found) == read_figures(fresh)
        assert found.summary["config"]["proxy_check"] == count
        # The forwards of the smaller model were made, and not timed, by the first run.
        assert found.summary["proxy"]["seconds"] is None and found.summary["proxy"]["seconds_of_model"] > 0
        assert f"the model would take {found.summary['proxy']['seconds_of_model']:.1f} s to" in format_rounds([found])


@pytest.mark.parametrize("is_scorer", [True, False])
def test_figures_of_an_earlier_run_are_left_out_where_nothing_is_compared(is_scorer: bool, tmp_path: Path) -> None:
    first = train(tmp_path, tiny_model(), small_model(), proxy_check=16)
    if is_scorer:
        found = train(tmp_path, tiny_model(), small_model(), proxy_check=0)
    else:  # What has scored is trained itself.
        found = train(tmp_path, small_model(), None)
    assert found.was_there and "proxy" not in found.summary
    assert found.scores.equals(first.scores)


def test_figures_without_a_fingerprint_are_of_an_unknown_model(tmp_path: Path) -> None:
    """Earlier releases wrote none."""
    fresh = train(tmp_path, tiny_model(), small_model(), proxy_check=16)
    file = tmp_path / "miwv" / "round-000" / "round.json"
    summary = json.loads(file.read_text())
    summary["proxy"] = {
        name: 0.5 if isinstance(value, float) else value
        for name, value in summary["proxy"].items()
        if name not in ("asked", "fingerprint", "compared")
    }
    file.write_text(json.dumps(summary))
    found = train(tmp_path, tiny_model(), small_model(), proxy_check=16)
    assert found.was_there and read_figures(found) == read_figures(fresh)
    assert found.summary["proxy"]["seconds"] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prices_are_of_the_forwards_of_the_pool_alone(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that each token moves by a second, so that probes, checks and refinement would show."""
    small, model = small_model().to(dtype), tiny_model()
    ticks = [count_forwards(each) for each in (small, model)]
    monkeypatch.setattr(time, "perf_counter", lambda: float(sum(map(sum, ticks))))
    found = train(tmp_path, model, small, proxy_check=16)
    proxy, summary = found.summary["proxy"], found.summary
    assert (summary["refined_tokens"] > 0) == (dtype == torch.bfloat16)
    assert proxy["seconds"] == pytest.approx(summary["tokens_forwarded"], abs=HEAD)
    assert sum(ticks[0]) > summary["tokens_forwarded"] + summary["refined_tokens"]
    # Both forward the same tokens of the pool, up to the trunks that a part of it repeats.
    assert proxy["seconds_of_model"] == pytest.approx(summary["tokens_forwarded"], rel=0.02)


def given_column() -> np.ndarray:
    return np.random.default_rng(0).normal(size=COUNT).astype("float32")


def rank_by_length(measured: Measured) -> np.ndarray:
    """Reads no loss."""
    return -measured.response_tokens.astype("float32")


def rank_by_sum(measured: Measured) -> np.ndarray:
    """Reads losses."""
    return measured.zero_shot_loss + measured.one_shot_loss


OWN: dict[str, tuple[Any, str, str]] = {
    "array": (given_column(), "both", "MIWV"),
    "array, zero-shot": (given_column(), "zero_shot", "zero-shot loss"),
    "function without losses": (rank_by_length, "both", "MIWV"),
    "function of losses": (rank_by_sum, "both", "rank_by_sum"),
    "random": ("random", "both", "MIWV"),
}


@pytest.mark.parametrize("name", OWN)
def test_a_score_that_no_loss_changes_does_not_count_as_agreement(name: str, tmp_path: Path) -> None:
    score, extra, label = OWN[name]
    found = train(tmp_path / "run", tiny_model(), small_model(), score=score, extra_losses=extra, proxy_check=COUNT)
    pool = pool_from_rows(tiny_dataset(COUNT), tiny_tokenizer())
    values = []
    for place, model in enumerate((small_model(), tiny_model())):
        scored = score_and_select(model, pool, MIWVConfig(**VALUES), tmp_path / str(place))
        of_each = {
            "MIWV": scored.column("miwv"),
            "zero-shot loss": scored.column("zero_shot_loss"),
            "rank_by_sum": scored.column("zero_shot_loss") + scored.column("one_shot_loss"),
        }
        values.append(of_each[label])
    proxy = found.summary["proxy"]
    assert proxy["compared"] == label and proxy["samples"] == COUNT
    assert proxy["rank_correlation"] == pytest.approx(spearmanr(*values).statistic, abs=1e-6) and (
        proxy["rank_correlation"] < 0.9
    )
    best, best_of_model = (set(np.argsort(-each)[:8]) for each in values)
    assert proxy["overlap"] == len(best & best_of_model) / 8
    assert f"rank correlation {proxy['rank_correlation']:.2f} ({label})" in format_rounds([found])


def test_a_model_in_training_of_a_shorter_context_is_told_as_such(tmp_path: Path, caplog: Any) -> None:
    trained = tiny_model(tiny_config(max_position_embeddings=20))
    found = train(tmp_path, trained, small_model(), proxy_check=16)
    proxy = found.summary["proxy"]
    assert proxy["samples"] == 0 and proxy["rank_correlation"] is None and proxy["seconds_of_model"] is None
    words = "16 of 16 samples are too long for the model in training, whose context is 20 tokens"
    assert proxy["reason"] == words
    told = [each for each in caplog.messages if each.startswith("It is not known whether the smaller model")]
    assert len(told) == 1 and words in told[0] and "larger" not in told[0] and "would take" not in told[0]


def test_samples_are_spread_over_what_is_compared(tmp_path: Path) -> None:
    found = train(
        tmp_path / "run", tiny_model(), small_model(), score=given_column(), extra_losses="both", proxy_check=8
    )
    pool = pool_from_rows(tiny_dataset(COUNT), tiny_tokenizer())
    both = [
        score_and_select(model, pool, MIWVConfig(**VALUES), tmp_path / str(place)).column("miwv")
        for place, model in enumerate((small_model(), tiny_model()))
    ]
    samples = choose_spread(both[0], 8)
    expected = spearmanr(*(each[samples] for each in both)).statistic
    assert found.summary["proxy"]["rank_correlation"] == pytest.approx(expected, abs=1e-6)
