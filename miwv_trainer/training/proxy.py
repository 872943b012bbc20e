"""A smaller model that scores in place of the one in training: what it must be, and where it lies meanwhile."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import torch
from transformers import PreTrainedModel

from miwv_trainer.checks import describe_given
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.models import load_tokenizer
from miwv_trainer.data.pool import Pool
from miwv_trainer.data.vocabulary import describe_vocabulary_difference, find_tokenizer
from miwv_trainer.distributed.sharding import is_whole
from miwv_trainer.distributed.wrappers import unwrap_model
from miwv_trainer.own_scores import describe_score
from miwv_trainer.scoring.memory import read_sizes
from miwv_trainer.scoring.model_checks import check_model_kind
from miwv_trainer.scoring.scorer import Scorer, prepare_scorer
from miwv_trainer.selection.scores import get_score

logger = logging.getLogger(__name__)
OTHER_TOKENIZER = (
    "Give a model with the same tokenizer, or score the rows by its own tokenizer (`miwv score --model SMALL --dataset "
    'ROWS --output FOLDER`) and take these scores: `MIWVConfig(scores_from="FOLDER", match="rows")`.'
)


def check_scorer(proxy: PreTrainedModel, processing_class: object, pool: Pool, config: MIWVConfig) -> None:
    """
    Checks that a model can score for another one.

    Raises:
        TypeError: it is no loaded model.
        ValueError: it is no causal language model, is split over ranks, means other tokens by the pool's ids, or the
            configuration asks for later rounds, for losses of another run or for none.
    """
    given: object = proxy  # a path is easily given instead
    if not isinstance(given, torch.nn.Module):
        raise TypeError(
            "`scorer` must be a loaded model (`AutoModelForCausalLM.from_pretrained(...)`), but got "
            f"{describe_given(given)}."
        )
    proxy = cast(PreTrainedModel, unwrap_model(proxy))
    try:
        check_model_kind(proxy, advice="Give an `AutoModelForCausalLM`, or leave the `scorer` out.")
    except ValueError as error:
        raise ValueError(f"The `scorer` cannot score. {error}") from error
    if not get_score(config).needs_forwards:
        raise ValueError(
            f"`score={describe_score(config.score)!r}` needs no loss, so that a `scorer` would forward nothing. Leave "
            "the `scorer` out, or give a score that is made of losses."
        )
    most, vocabulary = int(pool.tokens.max()), read_sizes(proxy).vocabulary
    if most >= vocabulary:
        raise ValueError(
            f"The `scorer`'s vocabulary has {vocabulary} entries, but the pool holds token id {most}. {OTHER_TOKENIZER}"
        )
    if config.rescore_strategy != "no":
        raise ValueError(
            f"`rescore_strategy` is {config.rescore_strategy!r}, but a `scorer` is not trained: it would give the same "
            'scores in every round. Set it to "no", or leave the `scorer` out.'
        )
    if config.scores_from is not None:
        raise ValueError("Both a `scorer` and `scores_from` are given: leave one of the two out.")
    if not is_whole(proxy):
        raise ValueError(
            "The `scorer` is split over the ranks, or has no weights on this one: under ZeRO-3 and FSDP, "
            "`from_pretrained` loads whole models on all ranks only before `TrainingArguments` is made. Load it before."
        )
    own, other = find_tokenizer(processing_class), load_tokenizer(proxy.config.name_or_path)
    if own is None or other is None:
        whose = "The Trainer has no tokenizer" if own is None else "No tokenizer lies beside the `scorer`"
        logger.warning(
            "%s, so that only the highest token id of the pool was compared with the size of the vocabulary. Both must "
            "mean the same tokens.", whose,
        )  # fmt: skip
        return
    difference = describe_vocabulary_difference(pool, own, other)
    if difference is not None:
        raise ValueError(
            f"The `scorer` has another vocabulary than the Trainer's tokenizer: they differ in {difference}. "
            f"{OTHER_TOKENIZER}"
        )


def unwrap_scorer(proxy: PreTrainedModel | None) -> PreTrainedModel | None:
    """The model inside DataParallel or another wrapper. What is no model stays, for `check_scorer` to refuse."""
    given: object = proxy
    return cast(PreTrainedModel, unwrap_model(given)) if isinstance(given, torch.nn.Module) else proxy


@contextmanager
def place_on(proxy: PreTrainedModel | None, device: torch.device) -> Iterator[None]:
    """Inside, the model lies on the device, whole on each rank. Afterwards its memory there is free again."""
    if proxy is None:
        yield
        return
    before = proxy.device
    proxy.to(device)
    try:
        yield
    finally:
        proxy.to(before)


def prepare_proxy(proxy: PreTrainedModel | None, trained: Scorer) -> Scorer:
    """The scorer of the smaller model, or `trained` itself if there is none. All ranks call this together."""
    if proxy is None:
        return trained
    # Each rank holds all of it, whatever becomes of the model in training.
    scorer = prepare_scorer(proxy, trained.pool, trained.config, replace(trained.world, sharded=False))
    return replace(scorer, stands_for=trained)
