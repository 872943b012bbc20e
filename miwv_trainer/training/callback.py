"""When rounds are scored and restored, and when their statistics are logged. `run.py` does the work.

Round 0 is scored in `on_train_begin`, where the DeepSpeed engine exists and a checkpoint's weights are loaded. Later
rounds are scored in `on_epoch_begin`, which runs before the epoch's iterator is made, or in `on_step_end`, which runs
before that step's checkpoint is saved. On a resume, the rounds in the checkpoint's state are read in `on_train_begin`,
and only a round that is due at that very step is scored.
"""

from collections.abc import Callable
from dataclasses import replace
from types import NoneType
from typing import cast

from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState
from typing_extensions import TypedDict, Unpack

from miwv_trainer.checks import check_argument
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.map_style import MapStyleDataset
from miwv_trainer.data.pool import A_POOL, Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.distributed.wrappers import WrappedOptimizer, check_parallelism, use_evaluation_weights
from miwv_trainer.scoring.isolation import preserve_rng
from miwv_trainer.storage.stored_round import StoredRound
from miwv_trainer.training.begin import TrainingStart, begin_run, check_dataset, check_training, read_pool
from miwv_trainer.training.collator_check import check_collator
from miwv_trainer.training.console import Console
from miwv_trainer.training.dataloader import check_sampler
from miwv_trainer.training.proxy import check_scorer, place_on, unwrap_scorer
from miwv_trainer.training.resume import read_run_state
from miwv_trainer.training.run import TrainingRun
from miwv_trainer.training.sampler import MIWVDataSampler

NOT_REBUILT = (
    "`restore_callback_states_from_checkpoint=True` lets the Trainer build callbacks anew from a checkpoint's JSON, "
    "which cannot hold the pool and the sampler of a MIWVCallback. Set it to False: the MIWVCallback reads its state "
    "without it."
)


class HookArguments(TypedDict):
    """
    What the Trainer hands to every hook by name (seen in transformers 5.23).

    `model` is unwrapped, except under FSDP, where it is the wrapper. `train_dataloader` is as accelerate prepared it.
    """

    model: PreTrainedModel
    processing_class: PreTrainedTokenizerBase | ProcessorMixin | None
    optimizer: WrappedOptimizer | None
    lr_scheduler: LRScheduler
    train_dataloader: DataLoader
    eval_dataloader: DataLoader | None


class MIWVCallback(TrainerCallback, ExportableState):
    """
    Scores the pool with the model in training and gives the sampler its selection.

    A round sees the weights that the Trainer would evaluate: those of the moment, or the averages of a schedule-free
    optimizer. Its state is part of every checkpoint's trainer_state.json, and a resumed run goes on from there by
    itself.

    Args:
        config ([`MIWVConfig`]): What to select and how to score.
        sampler ([`MIWVDataSampler`]): The one that the Trainer's `_get_train_sampler` returns.
        pool ([`Pool`], *optional*):
            The training dataset as token ids. By default read from the Trainer's dataloader, whose dataset has lost
            the columns that the model does not take; a text embedder then sees decoded prompts.
        scorer ([`~transformers.PreTrainedModel`], *optional*): A smaller model that scores in place of the one in
            training.

    Attributes:
        rounds: The rounds of this run so far, as they lie on disk.
        is_scorer_checked: Whether the scorer was compared with the pool already; `attach` sets it.
        log: Gets the statistics of each round; `attach` sets it to the `log` of [`~transformers.Trainer`].

    Raises:
        TypeError:
            configuration or sampler is None, as the Trainer gives them where it builds callbacks anew, or an argument
            is of another kind.
        ValueError: sampler and configuration differ in `fraction` or `epoch_order`.
    """

    def __init__(
        self,
        config: MIWVConfig,
        sampler: MIWVDataSampler,
        pool: Pool | None = None,
        scorer: PreTrainedModel | None = None,
    ) -> None:
        if config is None or sampler is None:
            raise TypeError(f"A MIWVCallback needs a configuration and a sampler. {NOT_REBUILT}")
        call = "MIWVCallback(config, sampler, pool)"
        check_argument(call, "config", config, MIWVConfig, "a MIWVConfig")
        check_argument(call, "sampler", sampler, MIWVDataSampler, "a MIWVDataSampler")
        check_argument(call, "pool", pool, (Pool, NoneType), A_POOL)
        for name in ("fraction", "epoch_order"):
            if getattr(sampler, name) != getattr(config, name):
                raise ValueError(
                    f"The sampler was made with `{name}` {getattr(sampler, name)!r}, the configuration with "
                    f"{getattr(config, name)!r}; give both the same."
                )
        self.config = replace(config, sampler_seed=sampler.seed)
        self.sampler = sampler
        self.pool = pool
        self.scorer = unwrap_scorer(scorer)
        self.is_scorer_checked = False
        self.log: Callable[[dict[str, float]], None] | None = None
        self._run: TrainingRun | None = None

    @property
    def rounds(self) -> list[StoredRound]:
        return [] if self._run is None else self._run.rounds

    def state(self) -> dict[str, object]:
        """What the Trainer writes into a checkpoint's trainer_state.json, under this class's name."""
        # `args` are those with which the Trainer would build the callback anew (see NOT_REBUILT).
        run_state = None if self._run is None else self._run.describe_state()
        return {"args": {"config": None, "sampler": None}, "attributes": {"run_state": run_state}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Unpack[HookArguments]
    ) -> None:
        if args.restore_callback_states_from_checkpoint:
            raise ValueError(NOT_REBUILT)
        model, dataloader, processing_class = kwargs["model"], kwargs["train_dataloader"], kwargs["processing_class"]
        check_parallelism(args.parallelism_config, args.fsdp, model)
        world = World.current(args.device, model, args.disable_tqdm)
        start = TrainingStart(args, state, model, dataloader, processing_class, world, Console.of(args), self.scorer)
        check_sampler(dataloader, self.sampler)
        with preserve_rng():
            is_read_now = self.pool is None
            if self.pool is None:
                # `attach` has checked that it is map-style; by hand, reading it does.
                dataset = cast(MapStyleDataset, dataloader.dataset)
                with world.run_together("reading the pool"):
                    self.pool = read_pool(dataset, processing_class, model.config, self.config)
            if self.scorer is not None and not self.is_scorer_checked:
                check_scorer(self.scorer, processing_class, self.pool, self.config)
            check_training(start, self.config, self.sampler, self.pool)
            if not is_read_now:
                check_dataset(start, self.pool)
            if self.config.check_batches:
                check_collator(dataloader, args, self.pool, world)
            before = read_run_state(state, args, type(self).__name__, was_begun=self._run is not None)
            if self._run is not None:
                self._run.stop_watching()
            with place_on(self.scorer, args.device):
                with use_evaluation_weights(kwargs["optimizer"]):
                    self._run = begin_run(start, self.config, self.sampler, self.pool, before)
                self._score_if_due(self._run, kwargs)
            # A hook that reads token ids would break a compiled forward into parts.
            if self.config.check_batches and not args.torch_compile:
                self._run.watch_batches(model)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Unpack[HookArguments]
    ) -> None:
        run = self._require_run()
        # After a resume within an epoch, accelerate's `set_epoch` does not reach the sampler on several ranks, and the
        # next epoch would repeat the order (huggingface/accelerate#2016, modelscope/ms-swift#10050).
        self.sampler.hold_epoch(run.epoch)
        if self.config.rescore_strategy == "epoch" or self.config.resample_each_epoch:
            self._score_if_due(run, kwargs)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Unpack[HookArguments]
    ) -> None:
        # No round where training is told to stop: SIGTERM may have saved a checkpoint, and the machine may be gone
        # before the round is finished. A resumed run scores it.
        if self.config.rescore_strategy == "steps" and not control.should_training_stop:
            should_log = control.should_log
            self._score_if_due(self._require_run(), kwargs)
            # Logging the round's statistics clears the flag, but the loss of this step is still to be logged.
            control.should_log = should_log

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Unpack[HookArguments]
    ) -> None:
        self._require_run().end_epoch()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Unpack[HookArguments]
    ) -> None:
        self._require_run().end()
        self.sampler.release_epoch()

    def _score_if_due(self, run: TrainingRun, given: HookArguments) -> None:
        position = run.find_due_position()
        if position is None:
            return
        with preserve_rng(), use_evaluation_weights(given["optimizer"]):
            statistics = run.score_round(given["model"], position)
            if self.log is not None:
                self.log(statistics)

    def _require_run(self) -> TrainingRun:
        if self._run is None:
            raise RuntimeError(
                "The MIWVCallback was added to a Trainer that is training already, so that no selection exists. Add it "
                "before `train()`, or use `attach(trainer, config)`."
            )
        return self._run
