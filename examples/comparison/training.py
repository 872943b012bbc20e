"""One run: trains an adapter on what an arm selects, and evaluates it. The model is unchanged afterwards."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from adapter import make_adapter_trainer
from held_out import score_generations
from peft import PeftModel
from transformers import PreTrainedModel, PrinterCallback, Trainer

from comparison.arms import UNTRAINED
from comparison.plan import Orders, Run, describe_identity
from comparison.results import Result
from comparison.samples import HELD_OUT
from comparison.scoring import Scores, total_tokens
from comparison.setting import Setting
from comparison.sharing import is_rescored, is_taken_as_it_is
from miwv_trainer import attach, compute_response_losses

TRAINED_FOLDER = "trained"


class Trained(NamedTuple):
    """A trained model, what it was first trained on, and what that took."""

    model: PeftModel
    selection: np.ndarray
    steps: int
    tokens: int
    scoring_tokens: int


def make_run(setting: Setting, scores: Scores, run: Run) -> Result:
    """Trains and evaluates."""
    started = time.perf_counter()
    if run.arm.name == UNTRAINED:
        identity = describe_identity(run.arm)
        return Result(UNTRAINED, 0.0, 0, identity, 0, 0, 0, 0.0, 0, 0, **evaluate(setting, setting.model))
    is_dynamic = run.arm.settings is not None and is_rescored(setting.make_config(run.arm))
    trained = (train_rescored if is_dynamic else train_fixed)(setting, scores, run)
    selection, samples = trained.selection, setting.samples
    found = evaluate(setting, trained.model)
    trained.model.unload()
    return Result(
        arm=run.arm.name,
        rate=run.rate,
        seed=run.seed,
        identity=describe_identity(run.arm),
        samples=len(selection),
        tokens=int(samples.pool.response_tokens[selection].sum()),
        steps=trained.steps,
        seen=trained.steps * setting.arguments.batch_size / len(selection),
        trained_tokens=trained.tokens,
        scoring_tokens=trained.scoring_tokens,
        shares={name: samples.share(name, selection) for name in samples.faults},
        seconds=time.perf_counter() - started,
        **found,
    )


def evaluate(setting: Setting, model: PreTrainedModel | PeftModel) -> dict[str, Any]:
    """The loss of each evaluation sample, and how good generations are, as fields of a result."""
    losses = {
        name: [float(loss) for loss in compute_response_losses(model, samples.pool)]
        for name, samples in setting.evaluated.items()
    }
    rows, arguments = setting.evaluated[HELD_OUT].rows, setting.arguments
    if not arguments.generations:
        return {"losses": losses}
    prompts = rows.select(range(min(arguments.generations, len(rows))))
    found = score_generations(model, prompts, setting.tokenizer, arguments.max_new_tokens)
    return {"losses": losses, "exact_match": found["exact_match"], "rouge_l": found["rougeL"]}


def train_fixed(setting: Setting, scores: Scores, run: Run) -> Trained:
    """Trains on one selection: the Trainer gets the samples in the order in which it is to train them."""
    order = Orders(setting, scores).order(run.arm, run.seed)
    steps = len(order) // setting.arguments.batch_size
    trainer = make_trainer(setting, run, order, steps, train_sampling_strategy="sequential")
    trainer.train()
    # A selection may hold more samples than all steps train. The full set is named by what it is.
    selection = np.unique(order) if run.arm.settings is not None else scores.select(run.arm, run.seed)
    scored = scores.count_tokens(run.arm) if run.arm.settings is not None and run.arm.target is None else 0
    return Trained(trainer.model, selection, steps, trainer.state.num_input_tokens_seen, scored)


def train_rescored(setting: Setting, scores: Scores, run: Run) -> Trained:
    """
    Trains with further rounds, as `attach` does for any Trainer. The pool has been scored before the first step.

    A first selection that is the same for all seeds is copied. Where each seed draws its own, or the columns of the
    dataset decide, the Trainer selects from the losses of the arm's round, if that holds any.
    """
    folder, config = find_folder(setting, run), setting.make_config(run.arm)
    shutil.rmtree(folder, ignore_errors=True)
    if is_taken_as_it_is(config):
        shutil.copytree(scores.find_folder(run.arm), folder)
        (folder / "miwv" / "in-use.lock").unlink(missing_ok=True)
    elif np.isfinite(scores.read(run.arm).column("zero_shot_loss")).any():
        config = replace(config, scores_from=str(scores.find_folder(run.arm)), match="tokens")
    trainer = make_trainer(setting, run, np.arange(len(setting.samples.pool)), setting.steps)
    callback = attach(trainer, config)
    trainer.train()
    scoring_tokens = scores.count_tokens(run.arm) + total_tokens(callback.rounds[1:])
    tokens = trainer.state.num_input_tokens_seen
    return Trained(trainer.model, callback.rounds[0].selection, setting.steps, tokens, scoring_tokens)


def find_folder(setting: Setting, run: Run) -> Path:
    """Where the Trainer of a run writes to."""
    return setting.output / TRAINED_FOLDER / run.slug


def make_trainer(setting: Setting, run: Run, order: np.ndarray, steps: int, **more: Any) -> Trainer:
    """The Trainer of a run on the samples of `order`."""
    trainer = make_adapter_trainer(
        setting.model,
        setting.tokenizer,
        setting.samples.rows.select(order),
        find_folder(setting, run),
        run.seed,
        max_steps=steps,
        per_device_train_batch_size=setting.arguments.micro_batch_size,
        gradient_accumulation_steps=setting.arguments.batch_size // setting.arguments.micro_batch_size,
        learning_rate=run.rate,
        include_num_input_tokens_seen=True,
        **more,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
