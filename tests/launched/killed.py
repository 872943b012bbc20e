"""A training that kills itself with SIGKILL at a point that is told, and goes on where it can. Run by test_killed.py.

    killed.py OUTPUT POINTS                 all runs fork from this one process
    killed.py OUTPUT --alone KILL_AT SCORE  one run on each rank; 0 never kills

SCORE is a key of SCORES.

Points are counted in events: forwards of the model (scoring and training), and files that are opened for writing,
renamed or removed. So they spread over embedding, searching, scoring, training, saving and rescoring.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from miwv_trainer import MIWVConfig, attach, last_complete_checkpoint, tokenize
from tests.helpers.own_scores import middle_miwv
from tests.helpers.tiny import tiny_dataset, tiny_model, tiny_tokenizer

COUNT, FRACTION, EPOCHS = 24, 0.5, 3
SCORES: dict[str, dict[str, Any]] = {
    "miwv": {},
    "column": {"score_column": "quality", "extra_losses": "both", "loss_band": [0.0, 0.9]},
    "function": {"score": middle_miwv, "extra_losses": "both"},
    "draws": {"selection": "sample", "rescore_strategy": "no", "resample_each_epoch": True},
}
WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")


class Events:
    """Counts what happens in this process, and kills it at one of them."""

    def __init__(self, kill_at: int, log: Path) -> None:
        self.kill_at, self.log, self.phase = kill_at, log, "embedding"
        self.phases: list[str] = []
        self.forwards = 0

    def note(self, kind: str) -> None:
        self.phases.append(self.phase)
        if len(self.phases) == self.kill_at:
            self.phases.append("dying")  # opening the log is an event too
            self.log.write_text(f"{self.phase}: {kind}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event in WRITES:
            self.note(event)
        elif event == "open" and isinstance(args[0], str) and isinstance(args[1], str) and args[1][0] in "wax":
            self.note("open")

    def forward(self, module: Any, args: Any) -> None:
        self.forwards += 1
        self.phase = "scoring" if self.phase == "embedding" else self.phase
        self.note("forward")


class Noting(Trainer):
    """Notes the pool positions of every batch that is trained, with its step."""

    seen: list[list[int]]

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        self.seen.append([self.state.global_step, *inputs.pop("position").tolist()])
        return super().training_step(model, inputs, num_items_in_batch)


class Phases(TrainerCallback):
    def __init__(self, events: Events) -> None:
        self.events = events

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.events.phase = "training"

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.events.phase = "saving"

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:
            self.events.phase = "rescoring"


class Collator(DataCollatorForSeq2Seq):
    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        positions = torch.tensor([feature.pop("position") for feature in features])
        for feature in features:
            del feature["quality"]
        return {**super().__call__(features, return_tensors), "position": positions}


def train(output: Path, kill_at: int, score: str = "miwv") -> None:
    """Trains, from the last whole checkpoint if there is one, and writes what came of it beside the checkpoints."""
    torch.manual_seed(0)
    events = Events(kill_at, output.with_suffix(".killed"))
    tokenizer, model = tiny_tokenizer(), tiny_model()
    model.register_forward_pre_hook(events.forward)
    trainer = Noting(
        model=model,
        args=TrainingArguments(
            output_dir=str(output),
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=4 // int(os.environ.get("WORLD_SIZE", "1")),
            learning_rate=1e-2,
            save_strategy="steps",
            save_steps=1,
            save_total_limit=2,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=tokenize(tiny_dataset(COUNT), tokenizer)
        .remove_columns(["instruction", "input", "output"])
        .add_column("position", list(range(COUNT)))
        .add_column("quality", [index * 7 % COUNT for index in range(COUNT)]),
        data_collator=Collator(tokenizer),
        processing_class=tokenizer,
        callbacks=[Phases(events)],
    )
    trainer.seen = []
    config = MIWVConfig(
        fraction=FRACTION,
        embedder="tfidf",
        tokens_per_batch=96,
        tokens_per_row=96,
        **{"rescore_strategy": "epoch", **SCORES[score]},
    )
    callback = attach(trainer, config)
    sys.addaudithook(events.audit)
    checkpoint = last_complete_checkpoint(output)
    trainer.train(resume_from_checkpoint=checkpoint)
    rank = trainer.args.process_index
    found = {
        "rank": rank,
        "world_size": trainer.args.world_size,
        "wrapper": type(trainer.model_wrapped).__name__,
        "checkpoint": checkpoint and Path(checkpoint).name,
        "phases": events.phases,
        "forwards": events.forwards,
        "trained": trainer.seen,
        "selections": [current.selection.tolist() for current in callback.rounds],
        "scores": [current.column("miwv").tolist() for current in callback.rounds],
        "weights": {name: value.flatten().tolist() for name, value in trainer.model.named_parameters()},
    }
    output.with_name(f"{output.name}-rank-{rank}.json").write_text(json.dumps(found))


def forked(run: Callable[[], None]) -> int:
    """Runs in a child and returns its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            run()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def spread(phases: list[str], points: int) -> list[int]:
    """So many events, counted from 1, as evenly as may be over the phases and within each."""
    names = sorted(set(phases))
    chosen = []
    for number, name in enumerate(names):
        events = [at for at, phase in enumerate(phases, start=1) if phase == name]
        share = points // len(names) + (number < points % len(names))
        chosen += [events[(len(events) - 1) * k // max(share - 1, 1)] for k in range(share)]
    return chosen


def main() -> None:
    output = Path(sys.argv[1])
    if sys.argv[2] == "--alone":
        train(output, int(sys.argv[3]), sys.argv[4])
        if dist.is_initialized():
            dist.destroy_process_group()
        return
    output.mkdir(parents=True)
    whole = output / "whole"
    statuses: dict[str, list[int]] = {"whole": [forked(lambda: train(whole, 0))]}
    phases = json.loads((output / "whole-rank-0.json").read_text())["phases"]
    for number, kill_at in enumerate(spread(phases, int(sys.argv[2]))):
        folder = output / f"point-{number}"
        killed = forked(lambda f=folder, k=kill_at: train(f, k))
        statuses[folder.name] = [killed, forked(lambda f=folder: train(f, 0)), kill_at]
    (output / "statuses.json").write_text(json.dumps(statuses))


if __name__ == "__main__":
    main()
