"""
Exemplars and embeddings: found once, before the first step, and read from the store afterwards.

A model that has been trained would find other exemplars, and two rounds could not be compared.
"""

import logging

import numpy as np

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import NO_EXEMPLAR
from miwv_trainer.distributed.agreement import check_same_texts
from miwv_trainer.distributed.wrappers import disable_compilation
from miwv_trainer.embeddings.embedders import embed_texts, get_embedder, validate_embeddings
from miwv_trainer.embeddings.nearest import find_ranked_exemplars
from miwv_trainer.embeddings.vectors import Embeddings
from miwv_trainer.rounds.identity import Exemplars, fingerprint_exemplars
from miwv_trainer.rounds.source import copy_exemplars, read_source, take_exemplars
from miwv_trainer.scoring.causality import check_causal
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.memory import size_batches
from miwv_trainer.scoring.padding import settle_padding
from miwv_trainer.scoring.prompt_embeddings import embed_prompts
from miwv_trainer.scoring.rows import plan_prompts
from miwv_trainer.scoring.scorer import Scorer
from miwv_trainer.selection.scores import needs_exemplars
from miwv_trainer.storage.provenance import JsonObject
from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import StoredRound

logger = logging.getLogger(__name__)


def embeds_text(config: MIWVConfig) -> bool:
    """Whether the instructions are needed as text. A tokenised pool must then be decoded."""
    return get_embedder(config.embedder).reads_text and (needs_exemplars(config) or config.needs_embeddings)


def find_exemplars(scorer: Scorer, store: Store, reuse: bool) -> Exemplars:
    """
    The exemplars of each sample, from the store or else found and kept there.

    If neither score nor guards need exemplars, no sample gets one. With `scores_from`, they are those of that run.

    Args:
        reuse: Whether a run is resumed. Then stored exemplars of another pool or embedder are an error. When a run
            begins, they are moved to another folder, and so are those found by the model in training, whose weights may
            have changed. They are moved back if no new ones can be found.

    Raises:
        ValueError: `reuse`, and the stored exemplars were made from something else.
    """
    world, config = scorer.world, scorer.config
    source = None if reuse else read_source(scorer, store)
    fingerprint = fingerprint_exemplars(scorer.pool, config, scorer.context)
    is_from_model = get_embedder(config.embedder).is_model_in_training
    stored = earlier_run = None
    with world.run_together("reading the exemplars"):
        if world.is_main:
            earlier_run = None if reuse else store.archive_stale(None if is_from_model else fingerprint)
            stored = store.read_exemplars(fingerprint) if needs_exemplars(config) else None
    try:
        if source is not None:
            return _take_over(scorer, store, fingerprint, source)
        return _find_or_read(scorer, store, fingerprint, world.broadcast_from_main(stored))
    # Ctrl-C too: a user who began a run in the wrong folder must find the earlier run as it was.
    except BaseException:
        if earlier_run is not None and store.restore_archived(earlier_run):
            earlier_run = None
        raise
    finally:
        if earlier_run is not None:
            logger.warning("Rounds and exemplars of an earlier run in %s were moved to %s.", store.folder, earlier_run)


def _take_over(scorer: Scorer, store: Store, fingerprint: JsonObject, source: StoredRound) -> Exemplars:
    """The exemplars of another run, which are written to the store for later rounds."""
    with scorer.world.run_together("copying the exemplars"):
        if scorer.world.is_main:
            copy_exemplars(source, store, scorer.config, fingerprint)
    if not needs_exemplars(scorer.config):
        return _make_empty(len(scorer.pool))
    return Exemplars(*take_exemplars(source, scorer.config.exemplars_per_sample))


def _make_empty(count: int) -> Exemplars:
    return Exemplars(np.full((count, 1), NO_EXEMPLAR), np.full((count, 1), np.nan, dtype=np.float32))


def _find_or_read(
    scorer: Scorer, store: Store, fingerprint: JsonObject, stored: tuple[np.ndarray, np.ndarray] | None
) -> Exemplars:
    """The stored exemplars; if there are none, new ones, which are written to the store."""
    world, config, pool = scorer.world, scorer.config, scorer.pool
    if not needs_exemplars(config):
        return _make_empty(len(pool))
    if stored is not None:
        if world.is_main:
            logger.info("Exemplars: read from %s.", store.folder)
        return Exemplars(*stored)
    embeddings = find_embeddings(scorer, store, may_embed=True)
    ranked, similarities = find_ranked_exemplars(embeddings, pool, scorer.context, config, world)
    with world.run_together("writing the exemplars"):
        if world.is_main:
            store.write_exemplars(ranked, similarities, fingerprint)
    return Exemplars(ranked, similarities)


def find_embeddings(scorer: Scorer, store: Store, may_embed: bool) -> Embeddings | None:
    """
    `(N, d)` embeddings of the prompts on rank 0, from the store or else computed and kept there; None on other ranks.

    Args:
        may_embed: Whether the `"model"` embedder may run. After round 0 its weights have changed.

    Raises:
        ValueError: it may not run, and the store has lost its embeddings.
    """
    world, config = scorer.world, scorer.config
    fingerprint = fingerprint_exemplars(scorer.pool, config, scorer.context)
    embeddings = None
    with world.run_together("reading the embeddings"):
        if world.is_main:
            embeddings = store.read_embeddings(fingerprint)
    if not world.broadcast_from_main(embeddings is None):
        return embeddings
    if get_embedder(config.embedder).is_model_in_training and not may_embed:
        raise ValueError(
            f"The embeddings in {store.folder} are gone, and the model that made them has learnt since. Bring "
            "embeddings.safetensors back, or start afresh in another output folder."
        )
    embeddings = _embed(scorer)
    with world.run_together("writing the embeddings"):
        if embeddings is not None:
            store.write_embeddings(embeddings, fingerprint)
    return embeddings


def _embed(scorer: Scorer) -> Embeddings | None:
    """Returns the embeddings on rank 0 and None on other ranks."""
    model, pool, config, world = scorer.model, scorer.pool, scorer.config, scorer.world
    embeddings: Embeddings | None = None
    embedder = get_embedder(config.embedder)
    if embedder.array is not None:
        embeddings = validate_embeddings(embedder.array, len(pool))
    elif embedder.is_model_in_training:
        size = size_batches(model, config, scorer.memory, int(pool.prompt_tokens.sum()))
        with leave_no_trace(model), disable_compilation(model):
            check_causal(scorer)
            scorer = settle_padding(scorer)
            batches = plan_prompts(pool, scorer.context, size.tokens_per_batch, scorer.sharing)
            embeddings = embed_prompts(scorer, batches)
    else:
        check_same_texts(pool.texts, world)
        embeddings = embed_texts(config.embedder, pool.texts, world)
    return embeddings if world.is_main else None
