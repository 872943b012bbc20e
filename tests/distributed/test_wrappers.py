"""However the Trainer holds its model, the module inside is scored, and nothing about it has changed afterwards."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.state import AcceleratorState, DistributedType
from torch import nn
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from miwv_trainer import MIWVConfig, attach
from miwv_trainer.compat import is_at_least
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.distributed.world import World
from miwv_trainer.distributed.wrappers import check_parallelism
from miwv_trainer.rounds.exemplars import find_exemplars
from miwv_trainer.rounds.identity import TrainingPoint
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring.rows import make_zero_shot_row
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.storage.store import Store
from tests.helpers.held import facts, live_bytes
from tests.helpers.tiny import tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.trainers import NotingTrainer, by_epoch, lora, noting_trainer, rebuilt

WORLD = World(0, 1, torch.device("cpu"))
CONFIG = MIWVConfig(fraction=0.5, embedder="tfidf", rescore_strategy="epoch")
# All samples, so that rounds choose nothing and the training is the same with any number of them.
ALL = MIWVConfig(fraction=1.0, embedder="tfidf", rescore_strategy="epoch")
ONCE = MIWVConfig(fraction=1.0, embedder="tfidf")
NEEDS_SEQUENCE_PARALLELISM = pytest.mark.skipif(
    not is_at_least("accelerate", "1.12"), reason="accelerate has no sequence parallelism before 1.12"
)


def plain_loss(model: Any, pool: Any, sample: int) -> float:
    row = make_zero_shot_row(pool, sample)
    ids = torch.from_numpy(row.ids.astype(np.int64))[None]
    labels = torch.full_like(ids, -100)
    labels[0, row.targets] = ids[0, row.targets]
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids, labels=labels).loss.item()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


class Copies(TrainerCallback):
    """The model at the beginning of the second epoch, as trained and as its optimizer would show it for evaluation."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            return
        model, optimizer = kwargs["model"], kwargs["optimizer"].optimizer
        self.trained = copy.deepcopy(model)
        optimizer.eval()
        self.shown = copy.deepcopy(model)
        optimizer.train()
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), self.trained.parameters(), strict=True):
                parameter.copy_(value)


def test_a_round_sees_the_averaged_weights_of_a_schedule_free_optimizer(tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path, optim="schedule_free_adamw", lr_scheduler_type="constant", learning_rate=1e-2)
    copies = Copies()
    trainer.add_callback(copies)
    callback = attach(trainer, CONFIG)
    trainer.train()
    losses = callback.rounds[1].column("zero_shot_loss")
    for sample in range(0, 32, 5):
        shown = plain_loss(copies.shown, callback.pool, sample)
        assert losses[sample] == pytest.approx(shown, abs=1e-5)
        assert abs(plain_loss(copies.trained, callback.pool, sample) - shown) > 1e-3


class EvaluatedTrainer(NotingTrainer):
    """Takes the positions out of the batches of an evaluation too."""

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs.pop("position")
        return super().prediction_step(model, inputs, *args, **kwargs)


# The Trainer's evaluation leaves a schedule-free optimizer with its averages, until the next step.
@pytest.mark.parametrize("evaluates", ["no", "epoch"])
@pytest.mark.parametrize("optim", ["adamw_torch", "schedule_free_adamw"])
def test_rounds_change_nothing_in_the_training_around_them(optim: str, evaluates: str, tmp_path: Path) -> None:
    found = []
    for config in (ONCE, ALL):
        options = {"optim": optim, "lr_scheduler_type": "constant", "learning_rate": 1e-2, "num_train_epochs": 3}
        plain = noting_trainer(tmp_path / str(len(found)), **options)
        plain.args.eval_strategy = evaluates
        trainer = rebuilt(EvaluatedTrainer, plain, eval_dataset=plain.train_dataset.select(range(4)))
        callback = attach(trainer, config)
        trainer.train()
        assert any("eval_loss" in entry for entry in trainer.state.log_history) == (evaluates == "epoch")
        found.append((weights(trainer.model), by_epoch(), len(callback.rounds)))
    (once, order, rounds), (again, other_order, more) = found
    assert (rounds, more) == (1, 3) and order == other_order
    assert all(torch.equal(value, again[name]) for name, value in once.items())


class Around(TrainerCallback):
    """Put before and after the MIWVCallback: what the model was and is when an epoch begins."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        storage = [parameter.data_ptr() for parameter in model.parameters()]
        self.seen.append({**facts(model), "storage": storage})


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"neftune_noise_alpha": 50.0},
        {"bf16": True},
        {"gradient_checkpointing": True, "neftune_noise_alpha": 50.0, "bf16": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_options_of_training_neither_reach_the_scores_nor_are_lost(
    adapter: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model() if adapter == "full" else lora(tiny_model(), dropout=0.5)
    trainer = noting_trainer(tmp_path, model=model, **options)
    before, after = Around(), Around()
    trainer.add_callback(before)
    callback = attach(trainer, CONFIG)
    trainer.add_callback(after)
    first = copy.deepcopy(model)
    trainer.train()
    assert len(before.seen) == 2 and before.seen == after.seen
    tolerance = 0.05 if "bf16" in options else 1e-5
    losses = callback.rounds[0].column("zero_shot_loss")
    for sample in range(0, 32, 5):
        assert losses[sample] == pytest.approx(plain_loss(first, callback.pool, sample), abs=tolerance)


def graphs() -> int:
    return sum(counters["stats"].values())


class Compiled(TrainerCallback):
    """How much torch.compile has compiled so far, whenever an epoch begins."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(graphs())


@pytest.mark.parametrize("how", ["arguments", "in place", "around"])
def test_rounds_of_a_compiled_model_compile_nothing(how: str, tmp_path: Path) -> None:
    torch.compiler.reset()
    counters.clear()
    options: dict[str, Any] = {"torch_compile": True, "torch_compile_backend": "eager"} if how == "arguments" else {}
    model = tiny_model()
    if how == "in place":
        model.compile(backend="eager")
    trainer = noting_trainer(tmp_path, model=model, **options)
    if how == "around":
        trainer.model = torch.compile(model, backend="eager")
        trainer = rebuilt(NotingTrainer, trainer)
    before, after = Compiled(), Compiled()
    trainer.add_callback(before)
    callback = attach(trainer, CONFIG)
    trainer.add_callback(after)
    first = tiny_model()
    trainer.train()
    assert before.seen[0] == after.seen[0] == 0
    assert before.seen[1] == after.seen[1] > 0  # the training itself is compiled
    assert callback.rounds[0].column("zero_shot_loss")[0] == pytest.approx(
        plain_loss(first, callback.pool, 0), abs=1e-5
    )
    torch.compiler.reset()


WRAPPERS = {"DataParallel": nn.DataParallel, "compiled": lambda model: torch.compile(model, backend="eager")}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_module_inside_a_wrapper_is_scored(wrapper: str, tmp_path: Path) -> None:
    pool = pool_from_rows(tiny_dataset(12), tiny_tokenizer())
    scores = []
    for name, model in (("plain", tiny_model()), ("wrapped", WRAPPERS[wrapper](tiny_model()))):
        store = Store(tmp_path / name)
        exemplars = find_exemplars(prepare_scorer(model, pool, CONFIG, WORLD), store, reuse=False)
        scores.append(run_round(prepare_scorer(model, pool, CONFIG, WORLD), exemplars, store, TrainingPoint()).scores)
    assert scores[0].equals(scores[1])


def state_of(tmp_path: Path) -> tuple[Any, Any]:
    trainer = noting_trainer(tmp_path)
    return trainer.args, trainer.model


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tp_size", r"tensor parallelism \(tp_size=2\).*Use data parallelism"),
        ("cp_size", r"context parallelism \(cp_size=2\).*parts of one sequence"),
        pytest.param("sp_size", r"sequence parallelism \(sp_size=2\).*`miwv score`", marks=NEEDS_SEQUENCE_PARALLELISM),
    ],
)
@pytest.mark.parametrize("where", ["arguments", "accelerate"])
def test_ranks_that_share_rows_are_refused_by_name(
    name: str, words: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, model = state_of(tmp_path)
    check_parallelism(args.parallelism_config, args.fsdp, model)
    config = ParallelismConfig(**{name: 2})
    if where == "arguments":
        args.parallelism_config = config
    else:
        monkeypatch.setattr(AcceleratorState(), "parallelism_config", config)
    with pytest.raises(ValueError, match=words):
        check_parallelism(args.parallelism_config, args.fsdp, model)


def test_a_model_that_was_loaded_in_parts_is_refused(tmp_path: Path) -> None:
    args, model = state_of(tmp_path)
    model._tp_size = 4  # what `from_pretrained(tp_plan="auto")` sets
    assert model.tp_size == 4
    with pytest.raises(ValueError, match=r"tensor parallelism \(tp_size=4\)"):
        check_parallelism(args.parallelism_config, args.fsdp, model)


@pytest.mark.parametrize(
    ("deepspeed", "words"),
    [({"tensor_parallel": {"autotp_size": 2}}, r"tp_size=2"), ({"sequence_parallel_size": 4}, r"sp_size=4")],
)
def test_deepspeeds_own_parallelisms_are_refused(
    deepspeed: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, model = state_of(tmp_path)
    state = SimpleNamespace(
        parallelism_config=None,
        distributed_type=DistributedType.DEEPSPEED,
        deepspeed_plugin=SimpleNamespace(deepspeed_config=deepspeed),
    )
    monkeypatch.setattr("miwv_trainer.distributed.wrappers.AcceleratorState", lambda: state)
    with pytest.raises(ValueError, match=words):
        check_parallelism(args.parallelism_config, args.fsdp, model)


def test_fsdp_that_was_asked_for_and_is_not_active_is_refused(tmp_path: Path) -> None:
    args, model = state_of(tmp_path)
    args.fsdp = True
    with pytest.raises(
        ValueError, match=r"FSDP was asked for \(`fsdp=True`\), but is not active: accelerate runs as NO"
    ):
        check_parallelism(args.parallelism_config, args.fsdp, model)


def test_rounds_leave_no_tensors_and_no_memory_behind(tmp_path: Path) -> None:
    pool = pool_from_rows(tiny_dataset(60), tiny_tokenizer())
    model, store = tiny_model(), Store(tmp_path)
    exemplars = find_exemplars(prepare_scorer(model, pool, CONFIG, WORLD), store, reuse=False)
    before, resident = live_bytes(), []
    for number in range(4):
        run_round(prepare_scorer(model, pool, CONFIG, WORLD), exemplars, store, TrainingPoint(number, number))
        assert live_bytes() == before
        resident.append(psutil.Process().memory_info().rss)
    assert resident[3] - resident[2] < 2 * 2**20  # malloc moves by pages
