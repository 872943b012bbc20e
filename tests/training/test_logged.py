"""Statistics of rounds in the Trainer's log, beside what the Trainer logs itself."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from scipy.stats import spearmanr
from trl import SFTConfig, SFTTrainer

from miwv_trainer import MIWVCallback, MIWVConfig, MIWVDataSampler, attach
from tests.helpers.resumed import Run, config_of
from tests.helpers.tiny import tiny_model
from tests.helpers.trainers import arguments, noting_trainer, prompt_completions, qwen_tokenizer


def of_rounds(trainer: Any) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if any(name.startswith("miwv/") for name in entry)]


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_a_round_takes_no_loss_out_of_the_log(strategy: str, tmp_path: Path) -> None:
    run = Run(tmp_path, config=config_of(strategy), logging_strategy="steps", logging_steps=1, save_strategy="no")
    assert len(of_rounds(run.trainer)) >= 3
    assert [entry["step"] for entry in run.trainer.state.log_history if "loss" in entry] == list(range(1, 25))


@pytest.mark.parametrize(
    ("strategy", "logging_steps"),
    [({"rescore_strategy": "epoch"}, 1), ({"rescore_strategy": "steps", "rescore_steps": 2}, 3)],
)
def test_metrics_of_sft_trainer_stay_in_its_own_entries(
    strategy: dict[str, Any], logging_steps: int, tmp_path: Path
) -> None:
    values = arguments(tmp_path).to_dict()
    kept = ("output_dir", "per_device_train_batch_size", "use_cpu", "disable_tqdm", "save_strategy")
    trainer = SFTTrainer(
        model=tiny_model(),
        args=SFTConfig(
            **{name: values[name] for name in kept},
            num_train_epochs=3,
            logging_steps=logging_steps,
            report_to="none",
            bf16=False,
            max_length=256,
        ),
        train_dataset=datasets.Dataset.from_list(prompt_completions(24)),
        processing_class=qwen_tokenizer(),
    )
    attach(trainer, MIWVConfig(fraction=0.5, embedder="tfidf", **strategy))
    trainer.train()
    assert len(of_rounds(trainer)) >= 3
    own = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in own] == list(range(logging_steps, 10, logging_steps))
    for entry in own:
        assert {"entropy", "num_tokens", "mean_token_accuracy"} <= set(entry)
    for entry in of_rounds(trainer):
        assert all(name.startswith("miwv/") or name in ("epoch", "step") for name in entry)


def test_statistics_reach_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = noting_trainer(tmp_path, report_to="tensorboard")
    attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf", rescore_strategy="epoch"))
    trainer.train()
    (file,) = tmp_path.rglob("events.out*")
    events = EventAccumulator(str(file))
    events.Reload()
    (name,) = [tag for tag in events.Tags()["scalars"] if tag.endswith("miwv/threshold")]
    assert [event.step for event in events.Scalars(name)] == [0, 2]


def test_statistics_go_through_the_trainers_log(tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path, logging_steps=100)
    trainer.train_dataset.info.builder_name, trainer.train_dataset.info.dataset_name = "parquet", "alpaca"  # as loaded
    callback = attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf", rescore_strategy="epoch"))
    trainer.train()
    logged = [line for line in trainer.state.log_history if "miwv/round" in line]
    assert [line["miwv/round"] for line in logged] == [0, 1]
    first, second = callback.rounds
    miwv = second.column("miwv")
    expected = {
        "threshold": miwv[second.selection].min(),
        "mean": miwv.mean(),
        "q05": np.quantile(miwv, 0.05),
        "q50": np.median(miwv),
        "q95": np.quantile(miwv, 0.95),
        "share_above_zero": (miwv > 0).mean(),
        "overlap": len(set(first.selection) & set(second.selection)) / 8,
        "rank_correlation": spearmanr(first.column("miwv"), miwv).statistic,
        "unscorable": 0,
        "scored": 32,
        "tokens": second.summary["tokens_forwarded"],
        "share_of_training": (first.summary["epochs"] + second.summary["epochs"]) / 2,
    }
    for name, value in expected.items():
        assert logged[1][f"miwv/{name}"] == pytest.approx(value, rel=1e-5), name
    assert logged[1]["step"] == 2 and "miwv/overlap" not in logged[0]
    assert second.summary["statistics"]["mean"] == pytest.approx(miwv.mean(), rel=1e-5)
    assert second.summary["dataset"] == "alpaca"  # the page shows it


def test_a_callback_made_by_hand_logs_nothing_unless_it_is_told_where(tmp_path: Path) -> None:
    for told in (False, True):
        trainer = noting_trainer(tmp_path / str(told), logging_steps=100)
        sampler = MIWVDataSampler(32, fraction=0.25)
        trainer._get_train_sampler = lambda *_, sampler=sampler: sampler
        callback = MIWVCallback(MIWVConfig(fraction=0.25, embedder="tfidf"), sampler)
        callback.log = trainer.log if told else None
        trainer.add_callback(callback)
        trainer.train()
        assert any("miwv/round" in line for line in trainer.state.log_history) == told
