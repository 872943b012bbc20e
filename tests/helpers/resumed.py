"""A training that stops, and goes on from a checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from miwv_trainer import MIWVConfig, attach
from tests.helpers.trainers import NotingTrainer, arguments, noting_trainer, rebuilt, trained

CONFIG = MIWVConfig(fraction=0.5, embedder="tfidf", rescore_strategy="epoch")


STEPS_AN_EPOCH, EPOCHS = 8, 3  # 16 of 32 samples, two at a time


STEPS = STEPS_AN_EPOCH * EPOCHS


STRATEGIES: dict[str, dict[str, Any]] = {
    "no": {"rescore_strategy": "no"},
    "epoch": {"rescore_strategy": "epoch"},
    "steps": {"rescore_strategy": "steps", "rescore_steps": 5},
}


def config_of(strategy: str, **overrides: Any) -> MIWVConfig:
    return MIWVConfig(**{**vars(CONFIG), **STRATEGIES[strategy], **overrides})


class Run:
    """A finished training run: the trained positions by batch, the final weights, the callback."""

    def __init__(
        self,
        folder: Path,
        checkpoint: Path | str | None = None,
        config: MIWVConfig = CONFIG,
        callbacks: tuple[TrainerCallback, ...] = (),
        count: int = 32,
        kind: type[NotingTrainer] = NotingTrainer,
        **overrides: Any,
    ) -> None:
        trained.clear()
        values = {
            "num_train_epochs": EPOCHS,
            "per_device_train_batch_size": 2,
            "save_strategy": "no" if checkpoint else "steps",
            "save_steps": 1,
            "learning_rate": 1e-2,
            "logging_strategy": "no",
        }
        plain = noting_trainer(folder, count=count)
        plain.args = arguments(folder, remove_unused_columns=False, **{**values, **overrides})
        self.trainer = rebuilt(kind, plain, eval_dataset=plain.train_dataset)
        for callback in callbacks:
            self.trainer.add_callback(callback)
            callback.trainer = self.trainer
        self.callback = attach(self.trainer, config)
        self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        self.order = [positions for _, positions in trained]
        # Under ZeRO-3 a parameter itself is empty; its part of this rank lies beside it.
        self.weights = {
            name: (value if value.numel() else value.ds_tensor).detach().clone()
            for name, value in self.trainer.model.named_parameters()
        }

    def copy_folder(self, target: Path) -> Path:
        """A copy of its output folder, with the times of its files, for another run to go on from."""
        return Path(shutil.copytree(self.trainer.args.output_dir, target / "copy"))

    def places(self) -> list[tuple[int, int, int]]:
        state = self.callback.state()["attributes"]["run_state"]
        return [(entry["global_step"], entry["epoch"], entry["position"]) for entry in state["history"]]

    def logged_rounds(self) -> list[tuple[int, int]]:
        """Number and step of each round in the Trainer's log."""
        entries = self.trainer.state.log_history
        return [(entry["miwv/round"], entry["step"]) for entry in entries if "miwv/round" in entry]

    def has_the_weights_of(self, other: "Run") -> bool:
        return all(torch.equal(value, other.weights[name]) for name, value in self.weights.items())


def stamps(folder: Path, step: int = STEPS) -> list[int]:
    """When the rounds in an output folder that had been scored by a step were written."""
    rounds = sorted((folder / "miwv").glob("round-*"))
    scored = [each for each in rounds if json.loads((each / "round.json").read_text())["global_step"] <= step]
    return [(each / "scores.parquet").stat().st_mtime_ns for each in scored]


def weights_of(run: Run) -> list[float]:
    """Some of each parameter."""
    some = [value.flatten()[:5].tolist() for value in run.weights.values()]
    assert all(some)
    return sum(some, [])
