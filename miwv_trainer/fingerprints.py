"""What a round and its exemplars depend on, and the journal of a round that is the same as one that was killed."""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from miwv_trainer.budget import choose_budget
from miwv_trainer.config import SELECTION_FIELDS, WITHOUT_EXEMPLAR, MIWVConfig, describe_embedder
from miwv_trainer.distributed import World
from miwv_trainer.journal import Journal
from miwv_trainer.layout import choose_layout, context_length, text_config
from miwv_trainer.packing import plan_zero_shot, scorable
from miwv_trainer.pool import Pool
from miwv_trainer.precision import REFINED
from miwv_trainer.scoring import score_batches
from miwv_trainer.store import Store, StoredRound

logger = logging.getLogger(__name__)

PROBES = 4
PROBE_TOLERANCE = 1e-4
PROBE_TOLERANCE_LOW_PRECISION = 0.02
# Entries of a model's configuration that say where it came from rather than what it is, or that saving it sets.
NO_PROPERTY = ("_name_or_path", "transformers_version", "architectures", "dtype", "use_cache")


@dataclass(frozen=True)
class Exemplars:
    """`(N,)` index of each sample's exemplar (-1: none) and `(N,)` cosine between the two."""

    indices: np.ndarray
    similarities: np.ndarray


@dataclass(frozen=True)
class Moment:
    """Where in training a round stands."""

    number: int = 0
    global_step: int = 0
    epoch: int = 0


def run_fingerprint(pool: Pool, config: MIWVConfig, context: int) -> dict[str, Any]:
    """What a round depends on besides the weights; a stored round with another one is refused."""
    fingerprint = {
        **exemplar_fingerprint(pool, config, context),
        "fraction": config.fraction,
        "rescore_budget": config.rescore_budget,
        **{name: getattr(config, name) for name in SELECTION_FIELDS},
    }
    if pool.groups is not None:
        fingerprint["groups"] = _hash(pool.groups)
    if config.score == "random" or config.rescore_budget < 1:
        fingerprint["sampler_seed"] = config.sampler_seed
    return fingerprint


def exemplar_fingerprint(pool: Pool, config: MIWVConfig, context: int) -> dict[str, Any]:
    """What the exemplars depend on."""
    return {
        "pool": pool.fingerprint,
        "embedder": _embedder_fingerprint(config.embedder),
        "context": context,
        "allow_identical_exemplars": config.allow_identical_exemplars,
    }


def scored_behind(exemplars: Exemplars, config: MIWVConfig) -> np.ndarray:
    """`(N,)` the exemplars that samples are scored behind; each sample itself where the score asks for none."""
    return exemplars.indices if config.score not in WITHOUT_EXEMPLAR else np.arange(len(exemplars.indices))


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def _embedder_fingerprint(embedder: Any) -> str:
    if isinstance(embedder, str):
        return embedder
    array = np.ascontiguousarray(torch.as_tensor(embedder).detach().cpu().float().numpy())
    return f"{describe_embedder(embedder)} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def model_fingerprint(model: nn.Module, zero_shot_losses: np.ndarray) -> dict[str, Any]:
    """Its dtype, a hash of its configuration, and its zero-shot losses on four samples spread over the pool."""
    values = {name: value for name, value in text_config(model).to_dict().items() if name not in NO_PROPERTY}
    described = json.dumps(values, sort_keys=True, default=str)
    probes = _probes(np.isfinite(zero_shot_losses))
    return {
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "config": hashlib.sha256(described.encode()).hexdigest()[:16],
        "zero_shot_losses": {str(index): float(zero_shot_losses[index]) for index in probes},
    }


def _probes(allowed: np.ndarray) -> np.ndarray:
    """Four samples spread over those that a mask allows."""
    indices = np.flatnonzero(allowed)
    return indices[np.linspace(0, len(indices) - 1, min(PROBES, len(indices))).astype(int)]


def identify(
    model: nn.Module,
    pool: Pool,
    exemplars: Exemplars,
    config: MIWVConfig,
    world: World,
    moment: Moment,
    previous: StoredRound | None = None,
) -> dict[str, Any]:
    """
    What tells a round from all others: what it is made from, when, and the model by its configuration and its zero-shot
    losses on four samples, because a name or a path says nothing about weights; no model, where none is forwarded. The
    same on every rank, as JSON holds it.
    """
    context = context_length(model, config)
    fingerprint = {**run_fingerprint(pool, config, context), "exemplars": _hash(exemplars.indices)}
    if previous is not None and config.rescore_budget < 1:
        fingerprint["scores_before"] = _hash(previous.column("score"))
    if config.needs_forwards:
        probes = _probes(scorable(pool, scored_behind(exemplars, config), context))
        batches = plan_zero_shot(pool, context, choose_budget(model, config, world).tokens_per_batch, probes)
        alone = World(0, 1, world.device, world.sharded)
        losses = score_batches(model, pool, batches, context=context, logits_chunk=config.logits_chunk, world=alone)
        fingerprint["model"] = model_fingerprint(model, losses.zero_shot)
    return world.share({"fingerprint": fingerprint, "round": moment.number, "global_step": moment.global_step})


def is_same_round(found: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether a summary or a journal's header is of the round, its model's losses within the dtype's tolerance."""
    fingerprint, other = dict(found.get("fingerprint", {})), dict(identity["fingerprint"])
    model, other_model = fingerprint.pop("model", None), other.pop("model", None)
    at = all(found.get(name) == identity[name] for name in ("round", "global_step"))
    return at and fingerprint == other and _is_same_model(model, other_model)


def _is_same_model(found: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    if found is None or other is None:
        return found is other
    losses, others = found["zero_shot_losses"], other["zero_shot_losses"]
    if found["config"] != other["config"] or found["dtype"] != other["dtype"] or losses.keys() != others.keys():
        return False
    tolerance = PROBE_TOLERANCE if found["dtype"] == "float32" else PROBE_TOLERANCE_LOW_PRECISION
    # Not "> tolerance": a loss that is not finite tells nothing.
    return all(abs(losses[sample] - others[sample]) <= tolerance for sample in losses)


def finished_before(
    store: Store, identity: Mapping[str, Any], config: MIWVConfig, rows: str | None, world: World
) -> StoredRound | None:
    """The very same round, if it lies in the store, of the same `rows`."""
    found: StoredRound | None = None
    with world.together("reading the rounds"):
        if world.is_main and identity["round"] in store.rounds():
            stored = store.read_round(identity["round"])
            refines = stored.summary["config"].get("refine_near_threshold") == config.refine_near_threshold
            is_same = stored.summary.get("rows") == rows and is_same_round(stored.summary, identity)
            found = stored if refines and is_same else None
            if found is not None:  # killed when the round was written and its journal not yet deleted
                shutil.rmtree(store.journal_folder(found.number), ignore_errors=True)
    return world.share(found)


def open_journal(
    model: nn.Module,
    pool: Pool,
    exemplars: Exemplars,
    config: MIWVConfig,
    store: Store,
    world: World,
    identity: Mapping[str, Any],
) -> Journal:
    """
    The journal of a round on this rank: the one that a killed attempt at the same round left, else a new one, for which
    the layout is chosen.
    """
    folder = store.journal_folder(identity["round"])
    found: dict[str, Any] | None = None
    with world.together("reading the journal"):
        if world.is_main:
            of_this_round = (header for header in Journal.headers(folder) if is_same_round(header, identity))
            found = next(of_this_round, None)
    found = world.share(found)
    if found is not None and config.layout in ("auto", found["layout"]):
        if world.is_main:
            logger.info("Round %d goes on where it was interrupted, by its journal in %s.", identity["round"], folder)
        return Journal(folder, world.rank, found)
    layout = choose_layout(model, pool, exemplars.indices, config, world)
    return Journal(folder, world.rank, {**identity, "layout": layout})


def earlier_seconds(journal: Journal, world: World) -> tuple[float, float]:
    """What earlier attempts took before and in the refinement, on the rank that took longest."""
    before = refined = 0.0
    if world.is_main:
        for entries in journal.read():
            before = max(before, sum(entry.seconds for entry in entries if not entry.stage.startswith(REFINED)))
            refined = max(refined, sum(entry.seconds for entry in entries if entry.stage.startswith(REFINED)))
    return world.share((before, refined))
