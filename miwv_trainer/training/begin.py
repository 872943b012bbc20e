"""What happens before the first step: the pool is read, the training is checked, and its run is begun or resumed."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

from torch.utils.data import DataLoader
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerState,
    TrainingArguments,
)

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.build import pool_from_tokenized
from miwv_trainer.data.groups import add_groups
from miwv_trainer.data.map_style import MapStyleDataset, find_name
from miwv_trainer.data.own_columns import add_scores_of_column
from miwv_trainer.data.pool import Pool
from miwv_trainer.data.sample_hashes import describe_difference, hash_sample_ids, hash_sample_masks
from miwv_trainer.distributed.agreement import check_same_pool, check_same_weights
from miwv_trainer.distributed.world import World
from miwv_trainer.embeddings.embedders import get_embedder
from miwv_trainer.rounds.exemplars import embeds_text, find_exemplars
from miwv_trainer.rounds.identity import fingerprint_exemplars, fingerprint_run
from miwv_trainer.scoring.context import find_context_length
from miwv_trainer.scoring.layout import check_layout
from miwv_trainer.scoring.model_checks import check_model
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.selection.scores import needs_exemplars
from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import StoredRound
from miwv_trainer.storage.uploads import keep_out_of_uploads
from miwv_trainer.training.console import Console
from miwv_trainer.training.dataloader import check_batches, check_pool_size, read_schedule, warn_of_last_batch
from miwv_trainer.training.missing_parts import warn_of_missing_parts
from miwv_trainer.training.proxy import prepare_proxy
from miwv_trainer.training.resume import keep_exemplars, read_trained_rounds
from miwv_trainer.training.run import TrainingRun
from miwv_trainer.training.run_state import RunState
from miwv_trainer.training.sampler import MIWVDataSampler
from miwv_trainer.training.trainer_checks import check_prompt_masks


@dataclass(frozen=True)
class TrainingStart:
    """
    A training that is about to begin: what the Trainer hands to its callbacks, the ranks, and the console.

    Args:
        model: Unwrapped, except under FSDP, where it is the wrapper.
        dataloader: As accelerate has prepared it.
        proxy: A smaller model that scores in place of `model`, if one was given.
    """

    args: TrainingArguments
    state: TrainerState
    model: PreTrainedModel
    dataloader: DataLoader
    processing_class: PreTrainedTokenizerBase | ProcessorMixin | None
    world: World
    console: Console
    proxy: PreTrainedModel | None = None

    @property
    def scoring_model(self) -> PreTrainedModel:
        """The model whose losses count."""
        return self.model if self.proxy is None else self.proxy


def read_pool(
    dataset: MapStyleDataset,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin | None,
    model_config: PretrainedConfig,
    config: MIWVConfig,
) -> Pool:
    """The pool in a Trainer's dataset, with its name, and with texts, groups and scores where they are needed."""
    check_prompt_masks(dataset)
    pool = pool_from_tokenized(dataset, processing_class, model_config, with_texts=embeds_text(config))
    pool = add_scores_of_column(add_groups(pool, dataset, config.group_column), dataset, config.score_column)
    return replace(pool, source=find_name(dataset))


def check_dataset(start: TrainingStart, pool: Pool) -> None:
    """
    Checks that the Trainer's dataset still holds the samples of the pool, by token ids and labels.

    The dataset is read once more for it, because a script may shuffle, re-tokenise, mask or replace it between `attach`
    and `train`, all of which leave its length as it was.

    Raises:
        ValueError: it does not; the message says what differs.
    """
    if not isinstance(start.dataloader, DataLoader):
        return  # A wrapper need not have a `dataset`. The batches are compared all the same.
    dataset = cast(MapStyleDataset, start.dataloader.dataset)
    with start.world.run_together("comparing the dataset with the pool"):
        found = pool_from_tokenized(
            dataset, start.processing_class, start.model.config, with_texts=False, with_hashes=False
        )
        if found.fingerprint == pool.fingerprint:
            return
        difference = describe_difference(
            hash_sample_ids(pool), hash_sample_masks(pool), hash_sample_ids(found), hash_sample_masks(found)
        )
        if difference is not None:
            raise ValueError(
                f"The Trainer's dataset is not the pool that was attached: now it {difference}. The scores would be "
                "those of other samples than the ones trained. Make all changes to `train_dataset` first, then attach "
                "again."
            )


def check_training(start: TrainingStart, config: MIWVConfig, sampler: MIWVDataSampler, pool: Pool) -> None:
    """
    Checks that the Trainer can train on selections of the pool.

    Raises:
        ValueError: the model, the pool or an option of the dataloader does not go with it.
    """
    check_pool_size(len(pool), sampler, start.dataloader)
    check_same_pool(pool, start.world)
    if start.proxy is not None:
        check_same_weights(start.proxy, "`scorer`", start.world)
    check_model(start.model, pool)
    check_layout(start.scoring_model, config, start.world.device)
    check_batches(start.args, sampler)
    get_embedder(config.embedder)  # raises for a mistyped name; `attach` has asked, a callback by hand has not
    if start.world.is_main:
        warn_of_last_batch(start.args, sampler)
        warn_of_missing_parts(start.dataloader, start.processing_class, start.model.config, pool)


def begin_run(
    start: TrainingStart, config: MIWVConfig, sampler: MIWVDataSampler, pool: Pool, before: RunState | None
) -> TrainingRun:
    """
    Claims the output folder, finds the exemplars, and brings selections and order to where a checkpoint stood.

    Args:
        before: The state in the checkpoint that training resumes from; None where it begins.

    Raises:
        FileNotFoundError: a round that the checkpoint was trained on is gone.
        RuntimeError: another process writes to the output folder.
        ValueError: the checkpoint, its rounds or stored exemplars belong to another training.
    """
    world, store = start.world, Store(config.scores_dir or start.args.output_dir)
    # Before anything is read: a second run in the same folder would move the rounds of the first aside.
    with world.run_together("claiming the output folder"):
        if world.is_main:
            store.claim()
            keep_out_of_uploads(Path(start.args.output_dir), store.folder)
    state, rounds = _describe_run(start, config, sampler, pool), []
    if before is not None:
        state = state.resume(before)
        rounds = _read_rounds_together(start, store, state, config, pool)
    scorer = prepare_proxy(start.proxy, prepare_scorer(start.model, pool, config, world))
    exemplars = find_exemplars(scorer, store, reuse=before is not None)
    run = TrainingRun(
        config, sampler, pool, exemplars, store, world, start.console, start.state, state, rounds, start.proxy
    )
    run.restore_selections()
    return run


def _describe_run(start: TrainingStart, config: MIWVConfig, sampler: MIWVDataSampler, pool: Pool) -> RunState:
    return RunState(
        global_step=0,
        sampler_seed=sampler.seed,
        train_sampling_strategy=sampler.strategy,
        epoch_order=sampler.epoch_order,
        world_size=start.world.size,
        fingerprint=fingerprint_run(pool, config, find_context_length(start.scoring_model, config)),
        history=[],
        **asdict(read_schedule(start.dataloader, start.args)),
    )


def _read_rounds_together(
    start: TrainingStart, store: Store, state: RunState, config: MIWVConfig, pool: Pool
) -> list[StoredRound]:
    """The rounds of a resumed run, on every rank. Only rank 0 need see the disk."""
    found: list[StoredRound] = []
    with start.world.run_together("reading the rounds"):
        if start.world.is_main:
            found = read_trained_rounds(store, state)
            if needs_exemplars(config):
                context = find_context_length(start.scoring_model, config)
                keep_exemplars(store, found[0], fingerprint_exemplars(pool, config, context))
    return start.world.broadcast_from_main(found)
