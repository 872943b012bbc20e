"""A resumed run goes on with the selection and the order it had, and scores nothing twice."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from miwv_trainer import MIWVCallback, MIWVDataSampler, attach, last_complete_checkpoint
from miwv_trainer.compat import is_at_least
from miwv_trainer.storage.store import Store
from tests.helpers.launch import NEEDS_RESUME_ON_RANKS, ROOT, launch
from tests.helpers.resumed import STEPS, STEPS_AN_EPOCH, STRATEGIES, Run, config_of, stamps, weights_of
from tests.helpers.trainers import NotingTrainer, noting_trainer, trained

LOADERS: dict[str, dict[str, Any]] = {
    "0 workers": {},
    "2 workers": {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 1},
}
# When each round is scored, and the epoch and position from which on it is in force, worked out by hand: with 5 steps
# made of 8, the loader without workers holds the sixth batch, so the seventh (position 12) is the first free one; two
# workers with a batch each hold the seventh and eighth as well, so there the next epoch is.
PLACES = {
    ("no", "0 workers"): [(0, 0, 0)],
    ("no", "2 workers"): [(0, 0, 0)],
    ("epoch", "0 workers"): [(0, 0, 0), (8, 1, 0), (16, 2, 0)],
    ("epoch", "2 workers"): [(0, 0, 0), (8, 1, 0), (16, 2, 0)],
    ("steps", "0 workers"): [(0, 0, 0), (5, 0, 12), (10, 1, 6), (15, 2, 0), (20, 2, 10)],
    ("steps", "2 workers"): [(0, 0, 0), (5, 1, 0), (10, 1, 10), (15, 2, 0), (20, 2, 14)],
}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """A run without an interruption, with a checkpoint at every step. Tests resume copies of its folder."""

    @cache
    def train(strategy: str, loader: str = "0 workers") -> Run:
        return Run(tmp_path_factory.mktemp("whole"), config=config_of(strategy), **LOADERS[loader])

    return train


def check_resumes(whole: Run, folder: Path, strategy: str, loader: str, steps: list[int]) -> None:
    config, options = config_of(strategy), LOADERS[loader]
    assert whole.places() == PLACES[strategy, loader]
    assert [len(batch) for batch in whole.order] == [2] * STEPS
    # Otherwise the order could go on by chance.
    selections = [current.selection.tolist() for current in whole.callback.rounds]
    assert len({tuple(selection) for selection in selections}) >= min(3, len(selections))
    logged = [(number, step) for number, (step, _, _) in enumerate(whole.places())]
    assert whole.logged_rounds() == logged
    for step in steps:
        before = stamps(folder, step)
        last = Run(folder, folder / f"checkpoint-{step}", config, **options)
        assert last.order == whole.order[step:], f"resumed at step {step}"
        assert last.has_the_weights_of(whole), f"resumed at step {step}"
        assert last.places() == whole.places()
        assert [current.selection.tolist() for current in last.callback.rounds] == selections
        assert last.logged_rounds() == logged  # none twice, although those before the checkpoint were logged by then
        assert stamps(folder, step) == before, f"a round was scored again on resuming at step {step}"


# The edges of epochs, the steps at which rounds are scored and take effect, and those beside them.
TELLING = [1, 4, 5, 6, 8, 13, 20, 22]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resuming_goes_on_as_if_nothing_had_happened(
    whole_run: Callable[..., Run], tmp_path: Path, strategy: str, loader: str
) -> None:
    steps = {"no": [3, 8], "epoch": [5, 8, 17], "steps": TELLING}[strategy]
    whole = whole_run(strategy, loader)
    folder = whole.copy_folder(tmp_path)
    check_resumes(whole, folder, strategy, loader, steps if loader == "0 workers" else steps[2::3])


@pytest.mark.slow
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resuming_at_every_single_step(
    whole_run: Callable[..., Run], tmp_path: Path, strategy: str, loader: str
) -> None:
    whole = whole_run(strategy, loader)
    check_resumes(whole, whole.copy_folder(tmp_path), strategy, loader, list(range(1, STEPS)))


def test_another_seed_gives_another_order(whole_run: Callable[..., Run], tmp_path: Path) -> None:
    order = whole_run("epoch").order[:STEPS_AN_EPOCH]
    other = Run(
        tmp_path, config=config_of("epoch", sampler_seed=99), max_steps=STEPS_AN_EPOCH, save_strategy="no"
    ).order
    assert sorted(sum(order, [])) == sorted(sum(other, []))
    assert order != other


@pytest.mark.parametrize(("accumulation", "workers"), [(1, 0), (3, 0), (1, 2), (2, 2)])
def test_a_round_takes_effect_at_the_first_step_that_no_loader_can_have_drawn(
    tmp_path: Path, accumulation: int, workers: int
) -> None:
    """Independent of the library's arithmetic: the order has the old selection before the place, the new one after."""
    run = Run(
        tmp_path,
        config=config_of("steps", rescore_steps=2),
        count=96,
        num_train_epochs=1,
        gradient_accumulation_steps=accumulation,
        save_strategy="no",
        dataloader_num_workers=workers,
    )
    order = sum(run.order, [])
    assert len(order) == len(set(order)) == 48  # one epoch, none twice
    places = [current.summary["takes_effect"] for current in run.callback.rounds[1:]]
    assert places[0]["steps_after_scoring"] == -(-(1 + 2 * workers) // accumulation)
    first = places[0]["position"]
    assert first == (2 + places[0]["steps_after_scoring"]) * 2 * accumulation
    old, new = (set(current.selection.tolist()) for current in run.callback.rounds[:2])
    assert old != new
    assert set(order[:first]) <= old
    assert set(order[first : places[1]["position"]]) <= new
    # A round is not worth its cost where no step is left that would train on it.
    lag, steps = places[0]["steps_after_scoring"], run.trainer.state.max_steps
    scored = [current.summary["global_step"] for current in run.callback.rounds]
    assert scored == [0, *(step for step in range(2, steps, 2) if step + lag < steps)]


def test_a_loader_with_more_workers_keeps_the_places_that_are_written_down(
    whole_run: Callable[..., Run], tmp_path: Path
) -> None:
    whole = whole_run("steps")
    folder = whole.copy_folder(tmp_path)
    resumed = Run(folder, folder / "checkpoint-6", config_of("steps"), **LOADERS["2 workers"])
    assert resumed.places()[:2] == PLACES["steps", "0 workers"][:2]
    assert resumed.places()[2:] == PLACES["steps", "2 workers"][2:]
    assert resumed.order[:5] == whole.order[6:11]  # up to where the next round would have taken effect
    # The other way round the look-ahead that was written down is kept, so that nothing changes.
    whole = whole_run("steps", "2 workers")
    folder = whole.copy_folder(tmp_path / "fewer")
    resumed = Run(folder, folder / "checkpoint-6", config_of("steps"))
    assert resumed.places() == PLACES["steps", "2 workers"]
    assert resumed.order == whole.order[6:]


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_run_that_died_between_its_checkpoint_and_the_next_round(
    whole_run: Callable[..., Run], tmp_path: Path, strategy: str, is_there: bool
) -> None:
    """Under `steps` such a checkpoint is one that was saved on a signal, before the callback's own turn."""
    whole, step = whole_run(strategy), 8 if strategy == "epoch" else 5
    folder = whole.copy_folder(tmp_path)
    if strategy == "steps":
        forget_last_round(folder / "checkpoint-5")
    file = folder / "miwv" / "round-001" / "scores.parquet"
    written = file.stat().st_mtime_ns
    if not is_there:
        shutil.rmtree(file.parent)
    resumed = Run(folder, folder / f"checkpoint-{step}", config_of(strategy))
    assert resumed.order == whole.order[step:]
    assert resumed.has_the_weights_of(whole)
    assert resumed.places() == whole.places()
    assert (file.stat().st_mtime_ns == written) == is_there


def test_a_round_of_other_weights_at_the_same_step_is_not_taken_for_the_next(
    whole_run: Callable[..., Run], tmp_path: Path
) -> None:
    whole = whole_run("epoch")
    folder = whole.copy_folder(tmp_path)
    path = folder / "checkpoint-8" / "model.safetensors"
    weights = load_file(path)
    save_file({name: value * 1.05 for name, value in weights.items()}, path, metadata={"format": "pt"})
    resumed = Run(folder, folder / "checkpoint-8", config_of("epoch"))
    one, other = (run.callback.rounds[1] for run in (whole, resumed))
    assert one.column("miwv").tolist() != other.column("miwv").tolist()
    assert other.column("miwv").tolist() == Store(folder).read_round(1).column("miwv").tolist()
    assert (folder / "miwv" / "previous-0" / "round-001").is_dir()


def test_rounds_ahead_of_the_checkpoint_are_read_where_training_comes_to_them_again(
    whole_run: Callable[..., Run], tmp_path: Path
) -> None:
    whole = whole_run("steps")
    folder = whole.copy_folder(tmp_path)
    written = stamps(folder)
    resumed = Run(folder, folder / "checkpoint-3", config_of("steps"))
    assert len(written) > 3 and resumed.order == whole.order[3:] and resumed.has_the_weights_of(whole)
    assert stamps(folder) == written
    assert not list((folder / "miwv").glob("previous-*"))


def test_rounds_ahead_that_are_not_come_to_again_are_moved_aside_at_the_end(
    whole_run: Callable[..., Run], tmp_path: Path
) -> None:
    folder = whole_run("epoch").copy_folder(tmp_path)
    resumed = Run(folder, folder / "checkpoint-3", config_of("no"))
    assert len(resumed.callback.rounds) == 1
    assert Store(folder).list_rounds() == [0]
    assert (folder / "miwv" / "previous-0" / "round-002").is_dir()


def forget_last_round(checkpoint: Path) -> None:
    edit_state(checkpoint, lambda values: values["history"].pop())


def edit_state(checkpoint: Path, change: Any) -> None:
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text())
    change(state["stateful_callbacks"]["MIWVCallback"]["attributes"]["run_state"])
    path.write_text(json.dumps(state))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of four steps, scored once, of which tests resume copies."""
    folder = tmp_path_factory.mktemp("finished")
    Run(folder, config=config_of("no"), max_steps=4)
    return folder


@pytest.fixture
def run_folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_checkpoint_whose_rounds_are_gone_is_refused_with_the_place_and_the_way_out(run_folder: Path) -> None:
    elsewhere = run_folder.parent / "elsewhere"
    words = r"resumes at step 2, but round 0, .* is not in .*elsewhere/miwv \(rounds there: none\). Set `scores_dir`"
    with pytest.raises(FileNotFoundError, match=words):
        Run(elsewhere, run_folder / "checkpoint-2", config_of("no"))
    resumed = Run(elsewhere, run_folder / "checkpoint-2", config_of("no", scores_dir=str(run_folder)), max_steps=4)
    assert len(resumed.order) == 2


def test_a_checkpoint_whose_later_round_is_gone_is_refused(whole_run: Callable[..., Run], tmp_path: Path) -> None:
    folder = whole_run("epoch").copy_folder(tmp_path)
    shutil.rmtree(folder / "miwv" / "round-001")
    words = r"at step 10, but round 1, .* is not in .*miwv \(rounds there: 0, 2\)"
    with pytest.raises(FileNotFoundError, match=words):
        Run(folder, folder / "checkpoint-10")


def test_a_round_that_another_run_wrote_is_refused(run_folder: Path) -> None:
    kept = shutil.copytree(run_folder / "checkpoint-2", run_folder.parent / "kept" / "checkpoint-2")
    edit_state(kept, lambda values: values["history"][0].update(selection="0" * 16))
    with pytest.raises(ValueError, match=r"round-000 is not the round that the checkpoint at step 2 .*selects other"):
        Run(run_folder, kept, config_of("no"))


def test_a_checkpoint_from_before_attach_is_refused(tmp_path: Path) -> None:
    plain = noting_trainer(tmp_path, save_strategy="steps", save_steps=1, max_steps=2)
    plain.train()
    with pytest.raises(ValueError, match=r"at step 1 was written without the MIWVCallback: .*load them as the model"):
        Run(tmp_path, tmp_path / "checkpoint-1", config_of("no"))


def test_a_checkpoint_from_a_run_without_the_callback_in_between_is_refused(run_folder: Path) -> None:
    plain = noting_trainer(run_folder, per_device_train_batch_size=2, save_strategy="steps", save_steps=1, max_steps=6)
    plain.train(resume_from_checkpoint=str(run_folder / "checkpoint-4"))
    with pytest.raises(ValueError, match=r"at step 6 carries the MIWV state of step 4.*Resume from .* at step 4"):
        Run(run_folder, run_folder / "checkpoint-6", config_of("no"))


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"fraction": 0.25}, {}, "with fraction = 0.5, but this run has fraction = 0.25. Resume with the fraction of"),
    ({"sampler_seed": 99}, {}, r"sampler_seed = 3, but .* sampler_seed = 99 \(the seed.*\). Set `sampler_seed=3`"),
    ({}, {"seed": 4}, "sampler_seed = 3, but this run has sampler_seed = 4"),
    (
        {},
        {"train_sampling_strategy": "sequential"},
        "train_sampling_strategy = 'random', but .* = 'sequential'. Set `train_sampling_strategy='random'`",
    ),
    ({"embedder": "model"}, {}, "with embedder = 'tfidf', but this run has embedder = 'model'"),
    ({"scoring_max_length": 256}, {}, "with context = 512, but this run has context = 256"),
    ({"allow_identical_exemplars": True}, {}, "allow_identical_exemplars = False, but .* = True"),
    (
        {"score": "influence", "exemplars_per_sample": 2},
        {},
        "with exemplars_per_sample = 1, but this run has exemplars_per_sample = 2",
    ),
    ({}, {"count": 33}, r"with pool = '\w+', but this run has pool = '\w+' \(the pool's token ids \(dataset, token"),
    pytest.param(
        {},
        {"per_device_train_batch_size": 4},
        "batch = 2, but .* effective_batch = 4 .*number of processes is 2",
        marks=pytest.mark.skipif(
            not is_at_least("transformers", "5.0"), reason="transformers 4 resumes with the checkpoint's batch size"
        ),
    ),
    ({}, {"gradient_accumulation_steps": 2}, "effective_batch = 2, but this run has effective_batch = 4"),
    ({}, {"ignore_data_skip": True}, r"again \(the checkpoint at step 2 lies within one\)"),
    ({}, {"restore_callback_states_from_checkpoint": True}, "needs a configuration and a sampler.*Set it to False"),
]


@pytest.mark.parametrize(("config", "arguments", "words"), REFUSED)
def test_another_training_is_refused_with_both_values(
    run_folder: Path, config: dict[str, Any], arguments: dict[str, Any], words: str
) -> None:
    error = TypeError if "restore_callback_states_from_checkpoint" in arguments else ValueError
    if "train_sampling_strategy" in arguments and not is_at_least("transformers", "5.2"):
        pytest.skip("transformers has no sequential strategy before 5.2")
    with pytest.raises(error, match=words):
        Run(run_folder, run_folder / "checkpoint-2", config_of("no", **config), **arguments)
    assert trained == []
    assert not list((run_folder / "miwv").glob("previous-*"))


def test_another_template_is_another_pool(run_folder: Path) -> None:
    from miwv_trainer import tokenize
    from tests.helpers.tiny import CHATML, tiny_dataset, tiny_tokenizer

    trainer = noting_trainer(run_folder, per_device_train_batch_size=2)
    other = tiny_tokenizer(chat_template=CHATML.replace("You help.", "You help well."))
    rendered = tokenize(tiny_dataset(32), other).remove_columns(["instruction", "input", "output"])
    trainer.train_dataset = rendered.add_column("position", range(32))
    attach(trainer, config_of("no"))
    with pytest.raises(ValueError, match=r"with pool = .*chat template.*Resume with the pool of the run that wrote it"):
        trainer.train(resume_from_checkpoint=str(run_folder / "checkpoint-2"))


def test_another_number_of_steps_an_epoch_is_refused(tmp_path: Path) -> None:
    Run(tmp_path, config=config_of("no"), count=30, max_steps=1)  # 15 samples, two at a time
    with pytest.raises(ValueError, match=r"steps_per_epoch = 8, but .* = 7 .*same batch sizes and"):
        Run(tmp_path, tmp_path / "checkpoint-1", config_of("no"), count=30, dataloader_drop_last=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values.update(version=3), "format version 3, but this miwv_trainer reads version 2"),
        (lambda values: values.pop("history"), r"state is damaged \('history'\)"),
        (lambda values: values.pop("look_ahead"), "state is damaged .*look_ahead"),
        (lambda values: values.update(history=[]), r"state is damaged \(rounds \[\]\)"),
        (lambda values: values["history"][0].update(round=1), r"state is damaged \(rounds \[1\]\)"),
    ],
)
def test_a_state_that_cannot_be_read_is_refused(run_folder: Path, change: Any, words: str) -> None:
    edit_state(run_folder / "checkpoint-2", change)
    with pytest.raises(ValueError, match=words):
        Run(run_folder, run_folder / "checkpoint-2", config_of("no"))


def test_restoring_callbacks_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="restore_callback_states_from_checkpoint=True.*Set it to False"):
        Run(tmp_path, config=config_of("no"), restore_callback_states_from_checkpoint=True)
    assert not (tmp_path / "miwv").exists()


def test_exemplars_that_are_gone_come_from_the_round_and_not_from_the_model_that_has_learnt(tmp_path: Path) -> None:
    config = config_of("epoch", embedder="model")
    whole = Run(tmp_path, config=config)
    for path in (tmp_path / "miwv").glob("e*.*"):
        path.unlink()
    resumed = Run(tmp_path, tmp_path / "checkpoint-7", config)
    assert resumed.order == whole.order[7:]
    one, other = (np.asarray(run.callback.rounds[1].column("exemplar")) for run in (whole, resumed))
    assert np.array_equal(one, other)


class StopAfter(TrainerCallback):
    """Tells the Trainer to save and stop after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_save = state.global_step == self.step


JIT = "JITCheckpointCallback"


class Signalled(TrainerCallback):
    """
    Asks for a checkpoint as SIGTERM does, without the Trainer's grace period of seconds, behind one of its hooks.

    Behind the optimizer step it is saved in the same step's `on_step_end`, before the MIWVCallback's; behind
    `on_step_end`, when the next step begins.
    """

    def __init__(self, hook: str, step: int) -> None:
        self.hook, self.step = hook, step

    def ask(self, hook: str, step: int) -> None:
        if (hook, step) == (self.hook, self.step):
            (callback,) = [one for one in self.trainer.callback_handler.callbacks if type(one).__name__ == JIT]
            callback.jit_manager._enable_checkpoint()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ask("on_optimizer_step", state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ask("on_step_end", state.global_step)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ask("on_train_begin", state.global_step)


def test_training_that_is_told_to_stop_is_not_held_up_by_a_round(whole_run: Callable[..., Run], tmp_path: Path) -> None:
    config, whole = config_of("steps"), whole_run("steps")
    stopped = Run(tmp_path, config=config, callbacks=(StopAfter(5),), save_strategy="no")
    assert len(stopped.order) == 5 and len(stopped.callback.rounds) == 1
    resumed = Run(tmp_path, tmp_path / "checkpoint-5", config)
    assert resumed.order == whole.order[5:]
    assert resumed.has_the_weights_of(whole)


@pytest.mark.skipif(not is_at_least("transformers", "5.0"), reason="transformers 4 saves no checkpoint on a signal")
@pytest.mark.parametrize(
    ("strategy", "hook", "step"),
    [
        ("no", "on_train_begin", 0),
        ("steps", "on_optimizer_step", 5),
        ("steps", "on_step_end", 6),
        ("epoch", "on_optimizer_step", 8),
        ("epoch", "on_step_end", 11),
    ],
)
def test_a_checkpoint_that_was_saved_on_a_signal_goes_on(
    whole_run: Callable[..., Run], tmp_path: Path, strategy: str, hook: str, step: int
) -> None:
    config, whole = config_of(strategy), whole_run(strategy)
    cut = Run(
        tmp_path, config=config, callbacks=(Signalled(hook, step),), save_strategy="no", enable_jit_checkpoint=True
    )
    assert len(cut.order) < len(whole.order)
    checkpoint = last_complete_checkpoint(tmp_path)
    assert checkpoint == str(tmp_path / f"checkpoint-{step}")
    before = stamps(tmp_path, step)
    assert before
    resumed = Run(tmp_path, checkpoint, config)
    assert stamps(tmp_path, step)[: len(before)] == before
    assert resumed.order == whole.order[step:]
    assert resumed.has_the_weights_of(whole)


class BestAtNine(NotingTrainer):
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        return {"eval_loss": abs(self.state.global_step - 9.0)}


def test_few_checkpoints_and_a_best_one_that_is_not_the_last(tmp_path: Path) -> None:
    """The best checkpoint survives the rotation, and training goes on from it as from any other."""
    config = config_of("steps")
    options: dict[str, Any] = {
        "save_total_limit": 2,
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
    }
    whole = Run(tmp_path, config=config, kind=BestAtNine, **options)
    left = sorted(int(path.name.partition("-")[2]) for path in tmp_path.glob("checkpoint-*"))
    best = int(str(whole.trainer.state.best_model_checkpoint).rpartition("-")[2])
    assert left == [best, STEPS] == [9, 24]
    resumed = Run(tmp_path, tmp_path / "checkpoint-9", config, kind=BestAtNine, save_strategy="steps", **options)
    assert resumed.order == whole.order[best:]
    assert resumed.places() == whole.places()
    assert resumed.has_the_weights_of(whole)
    # Nothing is left to be scored or trained from the last one.
    finished = Run(tmp_path, last_complete_checkpoint(tmp_path), config)
    assert finished.order == [] and len(finished.callback.rounds) == len(whole.callback.rounds)


def test_training_twice_in_one_process_begins_twice(tmp_path: Path) -> None:
    run = Run(tmp_path, config=config_of("steps"), max_steps=8, save_strategy="no")
    first = run.callback.rounds[0].column("miwv")
    run.trainer.train()
    assert len(run.callback.rounds) == 2 and run.places() == [(0, 0, 0), (5, 0, 12)]
    assert not np.array_equal(run.callback.rounds[0].column("miwv"), first)


def test_a_run_whose_first_round_was_interrupted_begins_again_in_the_same_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook: the cell is stopped while round 0 is scored, and run again."""
    trainer = noting_trainer(tmp_path)
    callback = attach(trainer, config_of("no"))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(type(trainer.model), "forward", interrupt)
        trainer.train()
    assert callback.rounds == [] and callback.state()["attributes"] == {"run_state": None}
    trainer.train()
    assert len(callback.rounds) == 1 and trainer.state.global_step == 8


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_callback_that_was_added_during_the_training_says_so(tmp_path: Path) -> None:
    class AddLate(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.add_callback(MIWVCallback(config_of("no"), MIWVDataSampler(32, 0.5, trainer.args.seed)))

    trainer = noting_trainer(tmp_path)
    trainer.add_callback(AddLate())
    with pytest.raises(RuntimeError, match=r"added to a Trainer that is training already.* Add it before `train\(\)`"):
        trainer.train()


def test_a_loader_that_draws_further_ahead_than_it_says_is_refused_before_the_round(tmp_path: Path) -> None:
    class Greedy(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                self.kept = iter(sampler)  # another iterator that runs through the epoch
                for _ in range(14):
                    next(self.kept)

    callback = Greedy()
    with pytest.raises(RuntimeError, match=r"round 1 was to .* at position 12 of epoch 0, .*drawn beyond that"):
        trainer = noting_trainer(tmp_path, per_device_train_batch_size=2)
        trainer.add_callback(callback)
        sampler = attach(trainer, config_of("steps")).sampler
        trainer.train()
    assert not (tmp_path / "miwv" / "round-001").exists()


def test_the_state_before_training_is_that_of_nothing() -> None:
    callback = MIWVCallback(config_of("no"), MIWVDataSampler(32, 0.5))
    assert callback.state()["attributes"] == {"run_state": None}


# One process with batches of two and two of them a step, or two processes with one batch of two each: four samples a
# step either way, of 16 in an epoch.
ONE: dict[str, Any] = {"gradient_accumulation_steps": 2, "learning_rate": 5e-3}
TWO: dict[str, Any] = {"learning_rate": 5e-3}
LAUNCHED = ROOT / "tests" / "launched" / "resume.py"


def by_step(ranks: list[list[list[int]]], accumulation: int = 1) -> list[list[int]]:
    """The samples of each step: of each of its batches in turn, those of every rank."""
    batches = [sum(batch, []) for batch in zip(*ranks, strict=True)]
    return [sum(batches[start : start + accumulation], []) for start in range(0, len(batches), accumulation)]


def launched(backend: str, output: Path, *runs: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """What each run gave on each of two ranks."""
    done = launch(backend, 2, LAUNCHED, str(output), *(json.dumps(described) for described in runs))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    ranks = [json.loads((output / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert {result["world_size"] for rank in ranks for result in rank} == {2}
    return [list(results) for results in zip(*ranks, strict=True)]


@NEEDS_RESUME_ON_RANKS
def test_another_number_of_processes_goes_on_with_the_same_batches(tmp_path: Path) -> None:
    config = config_of("steps", rescore_steps=3)
    one, two = tmp_path / "one", tmp_path / "two"
    alone = Run(one, config=config, **ONE)
    order = by_step([alone.order], 2)
    assert alone.places() == [(0, 0, 0), (3, 1, 0), (6, 1, 12), (9, 2, 8)]
    assert len({tuple(current.selection.tolist()) for current in alone.callback.rounds}) > 1

    widened, together, resumed = launched(
        "ddp",
        tmp_path,
        {"folder": str(one), "checkpoint": str(one / "checkpoint-6"), **TWO},
        {"folder": str(two), **TWO},
        {"folder": str(two), "checkpoint": str(two / "checkpoint-7"), **TWO},
    )
    assert {result["wrapper"] for result in widened} == {"DistributedDataParallel"}
    assert by_step([result["order"] for result in widened]) == order[6:]
    assert by_step([result["order"] for result in together]) == order
    assert by_step([result["order"] for result in resumed]) == order[7:]
    for results in (widened, together, resumed):
        for result in results:
            assert [tuple(place) for place in result["places"]] == alone.places()
            # A sum over ranks is rounded otherwise than one over accumulated batches.
            np.testing.assert_allclose(result["weights"], weights_of(alone), atol=1e-4)
    assert resumed[0]["weights"] == together[0]["weights"]

    narrowed = Run(two, last_complete_checkpoint(two), config, **ONE)
    assert narrowed.order == []
    narrowed = Run(two, two / "checkpoint-5", config, **ONE)
    assert by_step([narrowed.order], 2) == order[5:]
    np.testing.assert_allclose(weights_of(narrowed), weights_of(alone), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["zero2", "zero3"])
def test_deepspeed_goes_on_and_refuses_another_number_of_processes_itself(tmp_path: Path, backend: str) -> None:
    folder = tmp_path / "run"
    checkpoint = {"folder": str(folder), "checkpoint": str(folder / "checkpoint-7"), **TWO}
    whole, resumed = launched(backend, tmp_path, {"folder": str(folder), **TWO}, checkpoint)
    assert {result["wrapper"] for result in whole} == {"DeepSpeedEngine"}
    orders = [by_step([result["order"] for result in results]) for results in (whole, resumed)]
    assert len(orders[0]) == 12 and orders[1] == orders[0][7:]
    assert resumed[0]["weights"] == whole[0]["weights"]
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-12")

    done = launch(backend, 1, LAUNCHED, str(tmp_path), json.dumps({**checkpoint, **ONE}))
    assert done.returncode != 0
    assert "checkpoint being loaded used a DP world size of 2 but the current world size is 1" in done.stderr
