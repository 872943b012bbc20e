"""What a round and its exemplars depend on, and the journal of a round that is the same as one that was killed."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from miwv_trainer.budget import choose_budget
from miwv_trainer.config import MIWVConfig, describe_embedder
from miwv_trainer.distributed import World
from miwv_trainer.journal import FORMAT_VERSION, Journal
from miwv_trainer.layout import choose_layout, context_length, text_config
from miwv_trainer.packing import plan_zero_shot, scorable
from miwv_trainer.pool import Pool
from miwv_trainer.precision import REFINED
from miwv_trainer.scoring import score_batches
from miwv_trainer.store import Store

logger = logging.getLogger(__name__)

PROBES = 4
PROBE_TOLERANCE = 1e-4
PROBE_TOLERANCE_LOW_PRECISION = 0.02


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
    return {
        **exemplar_fingerprint(pool, config, context),
        "fraction": config.fraction,
    }


def exemplar_fingerprint(pool: Pool, config: MIWVConfig, context: int) -> dict[str, Any]:
    """What the exemplars depend on."""
    return {
        "pool": pool.fingerprint,
        "embedder": _embedder_fingerprint(config.embedder),
        "context": context,
        "allow_identical_exemplars": config.allow_identical_exemplars,
    }


def _embedder_fingerprint(embedder: Any) -> str:
    if isinstance(embedder, str):
        return embedder
    array = np.ascontiguousarray(torch.as_tensor(embedder).detach().cpu().float().numpy())
    return f"{describe_embedder(embedder)} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def model_fingerprint(model: nn.Module, zero_shot_losses: np.ndarray) -> dict[str, Any]:
    """A hash of the model's configuration and its zero-shot losses on four samples spread over the pool."""
    described = json.dumps(text_config(model).to_dict(), sort_keys=True, default=str)
    probes = _probes(np.isfinite(zero_shot_losses))
    return {
        "config": hashlib.sha256(described.encode()).hexdigest()[:16],
        "zero_shot_losses": {str(index): float(zero_shot_losses[index]) for index in probes},
    }


def _probes(allowed: np.ndarray) -> np.ndarray:
    """Four samples spread over those that a mask allows."""
    indices = np.flatnonzero(allowed)
    return indices[np.linspace(0, len(indices) - 1, min(PROBES, len(indices))).astype(int)]


def open_journal(
    model: nn.Module, pool: Pool, exemplars: Exemplars, config: MIWVConfig, store: Store, world: World, moment: Moment
) -> Journal:
    """
    The journal of a round on this rank: the one that a killed attempt at the same round left, else a new one, for which
    the layout is chosen.

    It is the same round where pool, exemplars, moment and the model's configuration are the same, and so are the
    zero-shot losses of four samples within the dtype's tolerance: a name or a path says nothing about weights.
    """
    context = context_length(model, config)
    probes = _probes(scorable(pool, exemplars.indices, context))
    batches = plan_zero_shot(pool, context, choose_budget(model, config, world).tokens_per_batch, probes)
    alone = World(0, 1, world.device, world.sharded)
    losses = score_batches(model, pool, batches, context=context, logits_chunk=config.logits_chunk, world=alone)
    wanted = {
        "fingerprint": run_fingerprint(pool, config, context),
        "exemplars": hashlib.sha256(np.ascontiguousarray(exemplars.indices).tobytes()).hexdigest(),
        "round": moment.number,
        "global_step": moment.global_step,
        "model": model_fingerprint(model, losses.zero_shot),
    }
    folder = store.journal_folder(moment.number)
    found: dict[str, Any] | None = None
    with world.together("reading the journal"):
        if world.is_main:
            of_this_round = (header for header in Journal.headers(folder) if _is_same_round(header, wanted, model))
            found = next(of_this_round, None)
    found = world.share(found)
    if found is not None and config.layout in ("auto", found["layout"]):
        logger.info("Round %d goes on where it was interrupted: its journal is in %s.", moment.number, folder)
        return Journal(folder, world.rank, found)
    layout = choose_layout(model, pool, exemplars.indices, config, world)
    return Journal(folder, world.rank, world.share({**wanted, "layout": layout}))


def _is_same_round(found: Mapping[str, Any], wanted: Mapping[str, Any], model: nn.Module) -> bool:
    exact = [name for name in wanted if name != "model"]
    return (
        found.get("version") == FORMAT_VERSION
        and all(found.get(name) == wanted[name] for name in exact)
        and is_same_model(found["model"], wanted["model"], next(model.parameters()).dtype)
    )


def is_same_model(found: Mapping[str, Any], other: Mapping[str, Any], dtype: torch.dtype) -> bool:
    """Whether two fingerprints are of one model: the same configuration, and losses within the dtype's tolerance."""
    losses, others = found["zero_shot_losses"], other["zero_shot_losses"]
    if found["config"] != other["config"] or losses.keys() != others.keys():
        return False
    tolerance = PROBE_TOLERANCE if dtype == torch.float32 else PROBE_TOLERANCE_LOW_PRECISION
    return all(abs(losses[sample] - others[sample]) <= tolerance for sample in losses)


def earlier_seconds(journal: Journal, world: World) -> tuple[float, float]:
    """What earlier attempts took before and in the refinement, on the rank that took longest."""
    before = refined = 0.0
    if world.is_main:
        for entries in journal.read():
            before = max(before, sum(entry.seconds for entry in entries if not entry.stage.startswith(REFINED)))
            refined = max(refined, sum(entry.seconds for entry in entries if entry.stage.startswith(REFINED)))
    return world.share((before, refined))
