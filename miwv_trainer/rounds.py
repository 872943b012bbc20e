"""One round, from pool to selection. Called by the callback and by the command line, on all ranks alike."""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from miwv_trainer.budget import choose_budget
from miwv_trainer.config import MIWVConfig
from miwv_trainer.distributed import World
from miwv_trainer.fingerprints import (
    Exemplars,
    Moment,
    earlier_seconds,
    exemplar_fingerprint,
    finished_before,
    identify,
    open_journal,
)
from miwv_trainer.head import is_prompt_tuned
from miwv_trainer.holding import uncompiled, unwrapped
from miwv_trainer.layout import context_length, text_config
from miwv_trainer.packing import NO_EXEMPLAR, plan_prompts, scorable
from miwv_trainer.pool import Pool
from miwv_trainer.precision import Refined, score_refined
from miwv_trainer.retrieval import embed_texts, given_embeddings, nearest_exemplars
from miwv_trainer.scoring import Losses, no_trace, prompt_embeddings
from miwv_trainer.selection import number_selected, overlap, select_top
from miwv_trainer.store import Store, StoredRound
from miwv_trainer.vectors import Embeddings

logger = logging.getLogger(__name__)

ONLY_COPIES = "no exemplar but copies of themselves"


def check_model(model: Any, pool: Pool) -> None:
    """
    Raises `ValueError` where MIWV is not defined for the model, or the pool is not in its vocabulary.
    """
    config = model.config
    if config.is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder model; MIWV is defined for causal language models, where "
            "the exemplar stands before the sample in one sequence."
        )
    if is_prompt_tuned(model):
        raise ValueError(
            "The model is prompt-tuned by PEFT: its virtual tokens shift every position, and losses would be read at "
            "the wrong ones. Train LoRA, another adapter, or the whole model."
        )
    vocabulary = text_config(model).vocab_size
    tokens = np.concatenate([pool.preamble, pool.tokens])
    wrong = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if len(wrong):
        raise ValueError(
            f"The pool holds token id {wrong.max()}, but the model's vocabulary has {vocabulary} entries: the pool was "
            "tokenised with another tokenizer. Tokenise it with the model's own, or resize the embeddings."
        )


def find_exemplars(
    model: nn.Module, pool: Pool, config: MIWVConfig, store: Store, world: World, reuse: bool
) -> Exemplars:
    """
    Which exemplar each sample gets: found once and kept in the store, read from there afterwards.

    With `reuse`, as on a resume, exemplars of another pool or embedder are refused. Without, they are moved aside, and
    so are those that came from the model in training, whose weights may be others now.
    """
    model = unwrapped(model)
    context = context_length(model, config)
    fingerprint = exemplar_fingerprint(pool, config, context)
    is_from_model = fingerprint["embedder"] == "model"
    stored = None
    with world.together("reading the exemplars"):
        if world.is_main:
            aside = None if reuse else store.set_stale_aside(None if is_from_model else fingerprint)
            if aside is not None:
                logger.warning("Rounds and exemplars of an earlier run in %s were moved to %s.", store.folder, aside)
            stored = store.read_exemplars(fingerprint)
    if (stored := world.share(stored)) is not None:
        if world.is_main:
            logger.info("Exemplars: read from %s.", store.folder)
        return Exemplars(*stored)
    embeddings = None
    with world.together("reading the embeddings"):
        if world.is_main:
            embeddings = store.read_embeddings(fingerprint)
    if world.share(embeddings is None):
        embeddings = _embed(model, pool, config, context, world)
        with world.together("writing the embeddings"):
            if world.is_main:
                store.write_embeddings(embeddings, fingerprint)
    found: Any = None
    with world.together("finding the exemplars"):
        if world.is_main:
            indices, similarities = found = nearest_exemplars(
                embeddings, pool, context, config.allow_identical_exemplars, show_progress=True, device=world.device
            )
            store.write_exemplars(indices, similarities, fingerprint)
    return Exemplars(*world.share(found))


def run_round(
    model: nn.Module,
    pool: Pool,
    exemplars: Exemplars,
    config: MIWVConfig,
    store: Store,
    world: World,
    moment: Moment,
    notes: Mapping[str, Any] | None = None,
) -> StoredRound:
    """
    Scores the pool with the model as it is, selects, and writes the round, with `notes` in its round.json. Leaves no
    trace in the model.

    What a killed attempt at the same round has scored is not scored again, and a round that was finished is read. Of a
    model in DataParallel, DistributedDataParallel, a DeepSpeed engine or `torch.compile` the module inside is scored.

    Raises:
        ValueError: not one sample could be scored.
    """
    started = time.perf_counter()
    model = unwrapped(model)
    context = context_length(model, config)
    if not scorable(pool, exemplars.indices, context).any():
        raise ValueError(_nothing_scorable(pool, exemplars, context))
    with no_trace(model), uncompiled(model), _resumable(store, moment.number, world):
        identity = identify(model, pool, exemplars, config, world, moment)
        before = finished_before(store, identity, config, (notes or {}).get("rows"), world)
        if before is not None:
            if world.is_main:
                logger.info("Round %d was finished before and is read from %s.", moment.number, before.folder)
            return before
        journal = open_journal(model, pool, exemplars, config, store, world, identity)
        layout = journal.header["layout"]
        earlier, refined_earlier = earlier_seconds(journal, world)
        scored = score_refined(
            model, pool, exemplars.indices, config, layout, world, show_progress=world.is_main, journal=journal
        )
        scored = replace(scored, seconds=scored.seconds + refined_earlier)
    journal.close()
    seconds = time.perf_counter() - started + earlier + refined_earlier
    miwv = scored.losses.miwv
    if np.isnan(miwv).all() and world.is_main:
        shutil.rmtree(journal.folder, ignore_errors=True)
    _report_unscorable(pool, exemplars, miwv, context, moment)
    selection = select_top(miwv, number_selected(config.fraction, len(pool)))
    summary = {**identity, **_summary(pool, config, scored, layout, selection, moment, seconds)}
    columns = _columns(pool, exemplars, scored.losses, selection)
    finished: Any = None
    with world.together("writing the round"):
        if world.is_main:
            aside = store.set_aside(moment.number)
            if aside is not None:
                logger.warning("Rounds of an earlier run in %s were moved to %s.", store.folder, aside)
            finished = store.write_round(moment.number, columns, {**summary, "processes": world.size, **(notes or {})})
            shutil.rmtree(journal.folder, ignore_errors=True)
    finished = world.share(finished)
    journal.path.unlink(missing_ok=True)  # on a machine whose disk rank 0 does not see
    return finished


@contextmanager
def _resumable(store: Store, number: int, world: World) -> Iterator[None]:
    """Says, where a round is interrupted by hand, what becomes of it."""
    try:
        yield
    except KeyboardInterrupt:
        if world.is_main and store.journal_folder(number).is_dir():
            logger.warning(
                "Round %d was interrupted. What it has scored is kept in %s: the same run, begun again, goes on from "
                "there.", number, store.journal_folder(number),
            )  # fmt: skip
        raise


def _embed(model: nn.Module, pool: Pool, config: MIWVConfig, context: int, world: World) -> Embeddings:
    """Embeddings on rank 0; elsewhere whatever fell out."""
    if not isinstance(config.embedder, str):
        return given_embeddings(config.embedder, len(pool))
    if config.embedder == "model":
        budget = choose_budget(model, config, world, int(pool.prompt_tokens.sum()))
        batches = plan_prompts(pool, context, budget.tokens_per_batch)
        with no_trace(model), uncompiled(model):
            return prompt_embeddings(model, pool, batches, context=context, world=world, show_progress=world.is_main)
    embeddings: Embeddings = np.empty((0, 0), dtype=np.float32)
    with world.together("embedding the instructions"):
        if world.is_main:
            embeddings = embed_texts(config.embedder, pool.texts, show_progress=True)
    return embeddings


def _columns(pool: Pool, exemplars: Exemplars, losses: Losses, selection: np.ndarray) -> dict[str, np.ndarray]:
    miwv = losses.miwv
    unscored = np.isnan(miwv)
    selected = np.zeros(len(pool), dtype=bool)
    selected[selection] = True
    return {
        "index": np.arange(len(pool)),
        "exemplar": exemplars.indices,
        "similarity": exemplars.similarities,
        "prompt_tokens": pool.prompt_tokens,
        "response_tokens": pool.response_tokens,
        "zero_shot_loss": np.where(unscored, np.nan, losses.zero_shot),
        "one_shot_loss": np.where(unscored, np.nan, losses.one_shot),
        "miwv": miwv,
        "selected": selected,
    }


def _summary(
    pool: Pool,
    config: MIWVConfig,
    refined: Refined,
    layout: str,
    selection: np.ndarray,
    moment: Moment,
    seconds: float,
) -> dict[str, Any]:
    losses = refined.losses
    scored = int(np.isfinite(losses.miwv).sum())
    tokens = losses.tokens_forwarded - refined.tokens
    return {
        "epoch": moment.epoch,
        "fraction": config.fraction,
        "number_selected": len(selection),
        "samples": len(pool),
        "unscorable": len(pool) - scored,
        "pool_tokens": int(pool.lengths.sum()) + len(pool) * len(pool.preamble),
        "tokens_forwarded": tokens,
        "seconds": round(seconds, 3),
        "samples_per_second": round(scored / seconds, 3),
        "tokens_per_second": round(tokens / (seconds - refined.seconds), 1),
        "layout": layout,
        "refined_samples": refined.samples,
        "refined_tokens": refined.tokens,
        "refined_seconds": round(refined.seconds, 3),
        "config": config.to_dict(),
    }


def _report_unscorable(pool: Pool, exemplars: Exemplars, miwv: np.ndarray, context: int, moment: Moment) -> None:
    reasons = dict(_unscorable_reasons(pool, exemplars, context))
    planned = scorable(pool, exemplars.indices, context)
    reasons["a loss that is not finite"] = int((planned & np.isnan(miwv)).sum())
    found = {reason: count for reason, count in reasons.items() if count}
    if found:
        logger.warning(
            "Round %d: %d of %d samples could not be scored and are left out: %s.",
            moment.number, sum(found.values()), len(pool), "; ".join(f"{n} with {why}" for why, n in found.items()),
        )  # fmt: skip
    if np.isnan(miwv).all():
        raise ValueError(
            "Not one loss is finite: the model gives NaN or infinity on every sample of the pool. Check its weights "
            "and dtype (float16 overflows easily; use bfloat16 or float32)."
        )
    cut = planned & (len(pool.preamble) + pool.lengths + pool.lengths[exemplars.indices] > context)
    if cut.any():
        logger.warning(
            "Round %d: the exemplar of %d sample(s) was cut at its beginning, because none fits the %d tokens of the "
            "context together with the sample.", moment.number, int(cut.sum()), context,
        )  # fmt: skip


def _unscorable_reasons(pool: Pool, exemplars: Exemplars, context: int) -> Mapping[str, int]:
    """Each unscorable sample counted once, under the first reason that applies."""
    incomplete = ~pool.has_prompt_and_response
    too_long = ~incomplete & (len(pool.preamble) + pool.lengths >= context)
    alone = ~incomplete & ~too_long & (exemplars.indices == NO_EXEMPLAR)
    return {
        "no prompt or no response": int(incomplete.sum()),
        f"more tokens than the context of {context} leaves room for": int(too_long.sum()),
        ONLY_COPIES: int(alone.sum()),
    }


def _nothing_scorable(pool: Pool, exemplars: Exemplars, context: int) -> str:
    reasons = _unscorable_reasons(pool, exemplars, context)
    listed = "; ".join(f"{count} with {reason}" for reason, count in reasons.items() if count)
    copies = "; copies may serve as exemplars with `allow_identical_exemplars=True`" if reasons[ONLY_COPIES] else ""
    return (
        f"Not one of the {len(pool)} samples can be scored: {listed}. Give samples that differ and that fit the "
        f"context{copies}."
    )


def round_line(current: StoredRound, previous: StoredRound | None = None) -> str:
    """One line about a round, for the log."""
    summary = current.summary
    scored = summary["samples"] - summary["unscorable"]
    line = (
        f"Round {current.number}: scored {scored} of {summary['samples']} samples in {summary['seconds']:.0f} s "
        f"({summary['tokens_forwarded']} tokens, {summary['tokens_per_second']:.0f} a second), "
        f"selected {summary['number_selected']}"
    )
    if summary.get("refined_samples"):
        line += (
            f", {summary['refined_samples']} near the threshold scored again in float32 in "
            f"{summary['refined_seconds']:.0f} s"
        )
    if previous is not None:
        line += f", {overlap(current.selection, previous.selection):.0%} of them as in round {previous.number}"
    return line + "."
