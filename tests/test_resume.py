"""A resumed run goes on with the selection and the order it had, and scores nothing twice."""

from pathlib import Path
from typing import Any

import pytest
import torch

from miwv_trainer import MIWVConfig, attach
from tests.test_attach import noting_trainer, trained

CONFIG = MIWVConfig(fraction=0.5, embedder="tfidf", rescore_strategy="epoch")
STEPS = 8  # two epochs of four batches


def run(folder: Path, checkpoint: Path | None = None, config: MIWVConfig = CONFIG, **overrides: Any) -> Any:
    trained.clear()
    trainer = noting_trainer(folder, save_strategy="steps", save_steps=1, learning_rate=1e-2, **overrides)
    callback = attach(trainer, config)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    weights = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    return [positions for _, positions in trained], weights, callback


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_at_every_step_goes_on_as_if_nothing_had_happened(tmp_path: Path, workers: int) -> None:
    order, weights, callback = run(tmp_path, dataloader_num_workers=workers)
    files = [current.folder / "scores.parquet" for current in callback.rounds]
    stamps = [path.stat().st_mtime_ns for path in files]
    for step in range(1, STEPS):
        later, later_weights, resumed = run(tmp_path, tmp_path / f"checkpoint-{step}", dataloader_num_workers=workers)
        assert later == order[step:]
        assert all(torch.equal(value, later_weights[name]) for name, value in weights.items())
        assert [current.summary["global_step"] for current in resumed.rounds] == [0, 4]
        # Round 0 had been scored whatever the step; round 1 is scored again only where it lies ahead.
        assert files[0].stat().st_mtime_ns == stamps[0]
        if step >= 4:
            assert files[1].stat().st_mtime_ns == stamps[1]
        stamps = [path.stat().st_mtime_ns for path in files]


def test_another_seed_gives_another_order(tmp_path: Path) -> None:
    order, _, _ = run(tmp_path / "a")
    other, _, _ = run(tmp_path / "b", config=MIWVConfig(**{**vars(CONFIG), "sampler_seed": 99}))
    assert sorted(sum(order[:4], [])) == sorted(sum(other[:4], []))
    assert order != other


def test_a_checkpoint_whose_rounds_are_gone_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"resumes at step 2, but .*holds no round scored by then"):
        run(tmp_path / "elsewhere", tmp_path / "run" / "checkpoint-2")


def test_a_checkpoint_whose_later_round_is_gone_is_refused(tmp_path: Path) -> None:
    import shutil

    run(tmp_path)
    shutil.rmtree(tmp_path / "miwv" / "round-001")
    with pytest.raises(FileNotFoundError, match="resumes in epoch 1 at step 6, but .* holds no round of that epoch"):
        run(tmp_path, tmp_path / "checkpoint-6")


def test_resuming_with_another_fraction_is_refused_with_both_values(tmp_path: Path) -> None:
    run(tmp_path)
    other = MIWVConfig(**{**vars(CONFIG), "fraction": 0.25})
    with pytest.raises(ValueError, match=r"made with fraction = 0.5, but this run has fraction = 0.25"):
        run(tmp_path, tmp_path / "checkpoint-2", config=other)


def test_a_run_that_died_between_its_checkpoint_and_the_next_round_scores_that_round(tmp_path: Path) -> None:
    import shutil

    order, weights, callback = run(tmp_path)
    scores = callback.rounds[1].column("miwv")
    shutil.rmtree(tmp_path / "miwv" / "round-001")
    later, later_weights, resumed = run(tmp_path, tmp_path / "checkpoint-4")
    assert later == order[4:]
    assert resumed.rounds[1].column("miwv").tolist() == scores.tolist()
    assert all(torch.equal(value, later_weights[name]) for name, value in weights.items())
