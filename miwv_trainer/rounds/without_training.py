"""Scoring and selecting from Python without a Trainer: what `miwv score` and `miwv select` do, as two functions."""

import os
from dataclasses import replace
from types import NoneType

from torch import nn
from transformers import PreTrainedModel

from miwv_trainer.checks import check_argument
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.groups import number_groups
from miwv_trainer.data.map_style import MapStyleDataset
from miwv_trainer.data.own_columns import read_scores
from miwv_trainer.data.pool import A_POOL, Pool, find_complete_samples
from miwv_trainer.distributed.agreement import check_same_pool
from miwv_trainer.distributed.world import World
from miwv_trainer.embeddings.embedders import get_embedder
from miwv_trainer.embeddings.vectors import Embeddings
from miwv_trainer.rounds.exemplars import find_exemplars
from miwv_trainer.rounds.inputs import read_measured
from miwv_trainer.rounds.messages import explain_missing_losses, explain_no_candidate
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring.layout import check_layout
from miwv_trainer.scoring.model_checks import A_MODEL, check_model
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.selection.choose import Choice, choose
from miwv_trainer.selection.measured import Measured
from miwv_trainer.selection.scores import find_missing_losses, get_draw_seed, get_score, read_given_scores
from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import StoredRound


def score_and_select(
    model: PreTrainedModel, pool: Pool, config: MIWVConfig | None = None, output: str | os.PathLike[str] = "miwv-output"
) -> StoredRound:
    """
    Scores a pool with a model as it is, selects, and writes round 0: what a Trainer does before its first step.

    What an earlier call on the same pool, model and configuration has scored is read instead of scored again.

    Args:
        model: A causal language model of transformers, on the device where it is to be scored.
        pool: From `pool_from_rows` or `pool_from_tokenized`.
        config: What to select and how to score; by default `MIWVConfig()`.
        output: Folder that receives `miwv/round-000`.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: MIWV is not defined for the model or the pool; not one sample could be scored; the guards leave
            none; or a `group_column` or a `score_column` is given, which only the pool's dataset has.
        RuntimeError: another process writes to the folder.
    """
    call = "score_and_select(model, pool, config, output)"
    check_argument(call, "model", model, nn.Module, A_MODEL)
    check_argument(call, "pool", pool, Pool, A_POOL)
    check_argument(call, "config", config, (MIWVConfig, NoneType), "a MIWVConfig")
    check_argument(call, "output", output, (str, os.PathLike), "the name of a folder")
    config = config or MIWVConfig()
    # A pool holds token ids and no columns. Without this check, all samples would count as one group.
    if config.group_column is not None and pool.groups is None:
        raise ValueError(
            f"`group_column` is {config.group_column!r}, but the pool has no groups. Score it without, and give the "
            "dataset to `select_again` as `rows`."
        )
    check_model(model, pool)
    check_layout(model, config, model.device)
    get_embedder(config.embedder)  # raises for a mistyped name, before anything in the folder is moved aside
    world = World.current(model.device, model)  # the launched processes, where this runs on several
    check_same_pool(pool, world)
    store = Store(output)
    with world.run_together("claiming the output folder"):
        if world.is_main:
            store.claim()
    try:
        scorer = prepare_scorer(model, pool, config, world)
        return run_round(scorer, find_exemplars(scorer, store, reuse=False), store)
    finally:
        if world.is_main:
            store.release()
        world.close()


def select_again(scored: StoredRound, config: MIWVConfig, rows: MapStyleDataset | None = None) -> Choice:
    """
    Selects from the scores of a round, by another fraction, score or other guards. Nothing is written.

    Args:
        scored: From `score_and_select`, `read_rounds` or a callback's `rounds`.
        config: What to select. How to score is not looked at.
        rows: The pool's dataset, which `group_column` and `score_column` name columns of.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a column is named without `rows` or with others, or no sample may be selected.
        FileNotFoundError: the configuration needs embeddings, and the run has left none.
    """
    call = "select_again(scored, config)"
    check_argument(call, "scored", scored, StoredRound, "a round (one of `read_rounds(folder)`)")
    check_argument(call, "config", config, MIWVConfig, "a MIWVConfig")
    # Random scores are drawn again: the stored ones are of the round's own seed.
    measured = _read_measured(scored, config, rows)
    groups = None
    if config.group_column is not None:
        if rows is None:
            raise ValueError(
                f"Samples are selected by groups, as `group_column` {config.group_column!r} says, which is a column of "
                "the pool: give that as `rows`."
            )
        if len(rows) != len(scored.scores):
            raise ValueError(
                f"`rows` has {len(rows)} rows, but {scored.folder} holds scores of {len(scored.scores)} samples: give "
                "the dataset that was scored, after a training the Trainer's own `train_dataset`."
            )
        groups = number_groups(rows, config.group_column)
    embeddings = _read_embeddings(scored, config) if config.needs_embeddings else None
    is_complete = find_complete_samples(scored.column("prompt_tokens"), measured.response_tokens)
    choice = choose(measured, is_complete, config, groups, embeddings)
    if not len(choice.selection):
        missing = find_missing_losses(measured, get_score(config))
        if missing:
            raise ValueError(explain_missing_losses(missing, scored, config))
        raise ValueError(explain_no_candidate(choice.left_out, measured, config))
    return choice


def _read_measured(scored: StoredRound, config: MIWVConfig, rows: MapStyleDataset | None) -> Measured:
    """What a round has measured, with the scores of the user's own that the configuration gives or names."""
    measured, column = read_measured(scored, get_draw_seed(config, scored.number)), config.score_column
    if column is not None and rows is None:
        if column == scored.summary["config"].get("score_column"):
            return measured
        raise ValueError(
            f"Samples are ranked by `score_column` {column!r}, which is a column of the pool: give that as `rows`."
        )
    of_column = read_scores(rows, column) if column is not None and rows is not None else None
    given = read_given_scores(config, of_column, len(measured.response_tokens))
    return measured if given is None else replace(measured, given=given)


def _read_embeddings(scored: StoredRound, config: MIWVConfig) -> Embeddings:
    """The embeddings by which the run found its exemplars; they lie beside its rounds."""
    folder = scored.folder.parent
    # They are taken without comparing fingerprints: a run on another pool would have moved them aside with the round.
    embeddings = Store(folder.parent).read_embeddings({})
    if embeddings is not None:
        return embeddings
    reason = "by which `diversity` and `max_selected_similarity` choose"
    if config.diversity == MIWVConfig.diversity and config.is_by_preset("max_selected_similarity"):
        reason = f"which `max_selected_similarity` needs, set by the `preset` {config.preset!r}"
    raise FileNotFoundError(f"There are no embeddings in {folder}, {reason}. Score the pool again.")
