"""Exemplars and embeddings: found once, kept in the store, read from there afterwards."""

import logging
from typing import Any

import numpy as np
from torch import nn

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import NO_EXEMPLAR, Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.distributed.wrappers import disable_compilation, unwrap_model
from miwv_trainer.embeddings.embedders import embed_texts, get_embedder, validate_embeddings
from miwv_trainer.embeddings.nearest import find_nearest_exemplars
from miwv_trainer.embeddings.vectors import Embeddings
from miwv_trainer.rounds.identity import Exemplars, exemplar_fingerprint
from miwv_trainer.scoring.isolation import no_trace
from miwv_trainer.scoring.layout import context_length
from miwv_trainer.scoring.losses import prompt_embeddings
from miwv_trainer.scoring.memory import choose_budget
from miwv_trainer.scoring.rows import plan_prompts
from miwv_trainer.selection.scores import needs_exemplars
from miwv_trainer.storage.store import Store

logger = logging.getLogger(__name__)


def embeds_text(config: MIWVConfig) -> bool:
    """Whether something looks at the instructions as text."""
    return get_embedder(config.embedder).reads_text and (needs_exemplars(config) or config.needs_embeddings)


def find_exemplars(
    model: nn.Module, pool: Pool, config: MIWVConfig, store: Store, world: World, reuse: bool
) -> Exemplars:
    """
    Which exemplar each sample gets: found once and kept in the store, read from there afterwards. None, where neither
    score nor guards ask for them.

    With `reuse`, as on a resume, exemplars of another pool or embedder are refused. Without, they are moved aside, and
    so are those that came from the model in training, whose weights may be others now; where no new ones can be found,
    they come back.
    """
    model = unwrap_model(model)
    context = context_length(model, config)
    fingerprint = exemplar_fingerprint(pool, config, context)
    is_from_model = get_embedder(config.embedder).is_model_in_training
    stored = aside = None
    with world.run_together("reading the exemplars"):
        if world.is_main:
            aside = None if reuse else store.set_stale_aside(None if is_from_model else fingerprint)
            stored = store.read_exemplars(fingerprint) if needs_exemplars(config) else None
    try:
        return _found(model, pool, config, store, world, fingerprint, world.broadcast_from_main(stored))
    except BaseException:
        if aside is not None and store.bring_back(aside):
            aside = None
        raise
    finally:
        if aside is not None:
            logger.warning("Rounds and exemplars of an earlier run in %s were moved to %s.", store.folder, aside)


def _found(
    model: nn.Module,
    pool: Pool,
    config: MIWVConfig,
    store: Store,
    world: World,
    fingerprint: dict[str, Any],
    stored: tuple[np.ndarray, np.ndarray] | None,
) -> Exemplars:
    """Stored exemplars, or new ones, which are kept."""
    if not needs_exemplars(config):
        return Exemplars(np.full(len(pool), NO_EXEMPLAR), np.full(len(pool), np.nan, dtype=np.float32))
    if stored is not None:
        if world.is_main:
            logger.info("Exemplars: read from %s.", store.folder)
        return Exemplars(*stored)
    embeddings = find_embeddings(model, pool, config, store, world, may_embed=True)
    found: Any = None
    with world.run_together("finding the exemplars"):
        if world.is_main:
            assert embeddings is not None
            indices, similarities = found = find_nearest_exemplars(
                embeddings,
                pool,
                context_length(model, config),
                config.allow_identical_exemplars,
                world.shows_progress,
                world.device,
            )
            store.write_exemplars(indices, similarities, fingerprint)
    return Exemplars(*world.broadcast_from_main(found))


def find_embeddings(
    model: nn.Module, pool: Pool, config: MIWVConfig, store: Store, world: World, may_embed: bool
) -> Embeddings | None:
    """
    `(N, d)` embeddings of the prompts on rank 0, from the store or else computed and kept there; None elsewhere.

    Args:
        may_embed: Whether the `"model"` embedder may run; after round 0 its weights are others.

    Raises:
        ValueError: it may not, and the store has lost its embeddings.
    """
    model = unwrap_model(model)
    context = context_length(model, config)
    fingerprint = exemplar_fingerprint(pool, config, context)
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
    embeddings = _embed(model, pool, config, context, world)
    with world.run_together("writing the embeddings"):
        if world.is_main:
            store.write_embeddings(embeddings, fingerprint)
    return embeddings if world.is_main else None


def _embed(model: nn.Module, pool: Pool, config: MIWVConfig, context: int, world: World) -> Embeddings:
    """Returns the embeddings on rank 0; what other ranks return is not used."""
    embedder = get_embedder(config.embedder)
    if embedder.array is not None:
        return validate_embeddings(embedder.array, len(pool))
    if embedder.is_model_in_training:
        budget = choose_budget(model, config, world, int(pool.prompt_tokens.sum()))
        batches = plan_prompts(pool, context, budget.tokens_per_batch)
        with no_trace(model), disable_compilation(model):
            return prompt_embeddings(
                model, pool, batches, context=context, world=world, show_progress=world.shows_progress
            )
    embeddings: Embeddings = np.empty((0, 0), dtype=np.float32)
    with world.run_together("embedding the instructions"):
        if world.is_main:
            embeddings = embed_texts(config.embedder, pool.texts, show_progress=world.shows_progress)
    return embeddings
