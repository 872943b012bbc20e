"""The front door: one call that lets a Trainer choose its training data. No other file changes a Trainer."""

import logging
from collections.abc import Mapping
from functools import partial

import datasets
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments

from miwv_trainer.checks import describe_given
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.map_style import MapStyleDataset
from miwv_trainer.data.tokenized import RESPONSE_COLUMNS
from miwv_trainer.embeddings.embedders import get_embedder, validate_embeddings
from miwv_trainer.scoring.model_checks import check_model_kind
from miwv_trainer.selection.scores import read_given_scores
from miwv_trainer.training.begin import read_pool
from miwv_trainer.training.callback import MIWVCallback
from miwv_trainer.training.dataloader import (
    check_batches,
    count_epoch_samples,
    count_step_samples,
    find_sampler,
    read_strategy,
)
from miwv_trainer.training.proxy import check_scorer
from miwv_trainer.training.sampler import MIWVDataSampler
from miwv_trainer.training.trainer_checks import (
    check_batching,
    check_inputs,
    check_split_head,
    check_tokenized,
    check_trainer_kind,
    is_sft_trainer,
)

logger = logging.getLogger(__name__)


def attach(
    trainer: Trainer, config: MIWVConfig | Mapping[str, object] | None = None, scorer: PreTrainedModel | None = None
) -> MIWVCallback:
    """
    Lets a Trainer choose its training data: its `train_dataset` becomes the pool, and it trains on selections of it.

    Works on any instance of [`~transformers.Trainer`] (`SFTTrainer`, `Seq2SeqTrainer`, a subclass), before or after
    other callbacks are added, and before `train()`. A second call takes the place of the first, so that a dataset that
    was changed can be attached again.

    Args:
        trainer: The Trainer. Its `train_dataset` must be tokenised, with `labels` that are -100 outside the response.
        config: A [`MIWVConfig`], or a mapping of its values; by default `MIWVConfig()`.
        scorer: A smaller model with the same tokenizer, which scores in place of the one in training.

    Returns:
        The callback that was added; its `rounds` hold the scores.

    Raises:
        TypeError: `trainer` is no Trainer, the dataset is not map-style, or a configuration key is unknown.
        ValueError:
            the Trainer or its model does something else than predict given responses, the dataset cannot be a pool or
            has inputs that scoring does not pass on, the Trainer has a MIWVCallback of its own or is training, one of
            its dataloader options does not go with a selection, or the scorer has another vocabulary.
    """
    check_trainer_kind(trainer)
    config = _read_config(config)
    _check_trainer(trainer)
    trainer.train_dataset = _add_labels(trainer)
    strategy = read_strategy(trainer.args)
    pool = read_pool(trainer.train_dataset, trainer.processing_class, trainer.model.config, config)
    given_array = get_embedder(config.embedder).array
    if given_array is not None:
        validate_embeddings(given_array, len(pool))
    read_given_scores(config, pool.column_scores, len(pool))
    if scorer is not None:
        check_scorer(scorer, trainer.processing_class, pool, config)
    sampler = MIWVDataSampler(
        len(pool),
        config.fraction,
        _choose_seed(config, trainer.args),
        strategy,
        pool.lengths,
        count_step_samples(trainer.args),
        epoch_order=config.epoch_order,
    )
    check_batches(trainer.args, sampler)
    callback = MIWVCallback(config, sampler, pool, scorer)
    callback.is_scorer_checked = True
    # Not `trainer.log`: SFTTrainer's adds the metrics that it gathered since its last entry, and then forgets them, so
    # that the next entry of the training would lack them.
    callback.log = partial(Trainer.log, trainer)
    _remove_attached(trainer)
    _give_sampler(trainer, sampler)
    _count_samples(trainer, sampler)
    trainer.add_callback(callback)
    return callback


def _list_callbacks(trainer: Trainer) -> list[MIWVCallback]:
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, MIWVCallback)]


def _remove_attached(trainer: Trainer) -> None:
    """Removes what an earlier call of `attach` has added."""
    for callback in _list_callbacks(trainer):
        logger.warning("`attach` was called before on this Trainer: its pool and configuration are replaced.")
        trainer.remove_callback(callback)


def _add_labels(trainer: Trainer) -> MapStyleDataset:
    """
    A Trainer's dataset, with the labels that the collator of TRL's SFTTrainer would make of `input_ids`.

    SFTTrainer writes them into the dataset where parts are masked (trl#6037). Where it trains on all tokens, TRL 1.16
    does so too, and versions before it leave them to the collator. Before trl#6037 the dataset has a mask of the
    completion even where the training does not follow it (`completion_only_loss=False`).
    """
    dataset = trainer.train_dataset
    if not is_sft_trainer(trainer) or not isinstance(dataset, datasets.Dataset):
        return dataset
    if "completion_mask" in dataset.column_names and vars(trainer).get("completion_only_loss") is False:
        dataset = dataset.remove_columns("completion_mask")
    if "input_ids" not in dataset.column_names or set(RESPONSE_COLUMNS) & set(dataset.column_names):
        return dataset
    return dataset.map(lambda rows: {"labels": rows["input_ids"]}, batched=True, desc="Labelling all tokens")


def _give_sampler(trainer: Trainer, sampler: MIWVDataSampler) -> None:
    """Makes a Trainer take its samples in the order of `sampler`, each time it builds its dataloader."""

    # Arguments are ignored, whatever they are: they have changed between releases (transformers#38090, #38226).
    def give_sampler(*args: object, **kwargs: object) -> MIWVDataSampler:
        return sampler

    # Private, seen in transformers 5.23.0, and the only hook there is: a callback cannot exchange the dataloader
    # (transformers#25925), and to replace `get_train_dataloader` is to copy it. Set on this instance, not on its class.
    trainer._get_train_sampler = give_sampler


def _count_samples(trainer: Trainer, sampler: MIWVDataSampler) -> None:
    """
    Makes a Trainer count the samples of its epochs, and not those of its dataset, of which it trains a fraction.

    It announces the number ("Num examples") and computes `train_samples_per_second` from it. Steps come from the
    dataloader's length. The evaluation asks the same method about its own dataloaders.
    """
    count_dataset = trainer.num_examples

    def count_examples(dataloader: DataLoader) -> int:
        if isinstance(dataloader, DataLoader) and find_sampler(dataloader) is sampler:
            return count_epoch_samples(trainer.args, sampler)
        return count_dataset(dataloader)

    trainer.num_examples = count_examples


def _read_config(config: MIWVConfig | Mapping[str, object] | None) -> MIWVConfig:
    if isinstance(config, MIWVConfig):
        return config
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(
            f"`config` must be a MIWVConfig or a mapping of its values, but got {describe_given(config)}. For a "
            "fraction: `attach(trainer, MIWVConfig(fraction=0.05))`."
        )
    return MIWVConfig.from_dict(config or {})


def _check_trainer(trainer: Trainer) -> None:
    check_model_kind(trainer.model)
    check_split_head(trainer.model)
    if trainer.is_in_train:
        raise ValueError("The Trainer is training: its pool is read before the first step. Attach before `train()`.")
    if any(callback.pool is None for callback in _list_callbacks(trainer)):
        raise ValueError(
            "The Trainer was given a MIWVCallback by hand, with a sampler of its own, and takes one pool. Leave that "
            "callback out, or leave `attach` out."
        )
    if trainer.train_dataset is None:
        raise ValueError("The Trainer has no `train_dataset`, which is the pool to select from.")
    check_batching(trainer)
    check_inputs(trainer.train_dataset, trainer.model)
    check_tokenized(trainer)
    if trainer.accelerator.use_stateful_dataloader:
        raise ValueError(
            "`use_stateful_dataloader=True` makes a state for every batch that the Trainer neither saves nor restores: "
            "it resumes by skipping batches. Set it to False; resuming is exact without it."
        )


def _choose_seed(config: MIWVConfig, args: TrainingArguments) -> int:
    if config.sampler_seed is not None:
        return config.sampler_seed
    return args.data_seed if args.data_seed is not None else args.seed
