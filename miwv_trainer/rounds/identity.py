"""What a round and its exemplars depend on, and the journal of a round that is the same as one that was killed."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from miwv_trainer.config import SELECTION_FIELDS, MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.embeddings.embedders import Embedder, get_embedder
from miwv_trainer.scoring.context import get_text_config
from miwv_trainer.scoring.losses import score_batches
from miwv_trainer.scoring.memory import size_batches
from miwv_trainer.scoring.rows import find_scorable, plan_zero_shot
from miwv_trainer.scoring.scorer import Scorer
from miwv_trainer.selection.scores import get_score
from miwv_trainer.storage.stored_round import RoundIdentity, StoredRound

PROBES = 4
# Entries of a model's configuration that say where it came from rather than what it is, or that saving it sets.
NO_PROPERTY = ("_name_or_path", "transformers_version", "architectures", "dtype", "use_cache")


@dataclass(frozen=True)
class Exemplars:
    """`(N,)` index of each sample's exemplar (-1: none) and `(N,)` cosine between the two."""

    indices: np.ndarray
    similarities: np.ndarray


@dataclass(frozen=True)
class TrainingPoint:
    """Where in training a round stands."""

    number: int = 0
    global_step: int = 0
    epoch: int = 0


def fingerprint_run(pool: Pool, config: MIWVConfig, context: int) -> dict[str, Any]:
    """What a round depends on besides the weights; a stored round with another one is refused."""
    fingerprint = {
        **fingerprint_exemplars(pool, config, context),
        "fraction": config.fraction,
        "rescore_budget": config.rescore_budget,
        **{name: getattr(config, name) for name in SELECTION_FIELDS},
    }
    if pool.groups is not None:
        fingerprint["groups"] = hash_array(pool.groups)
    if get_score(config).is_random or config.rescore_budget < 1:
        fingerprint["sampler_seed"] = config.sampler_seed
    return fingerprint


def fingerprint_exemplars(pool: Pool, config: MIWVConfig, context: int) -> dict[str, Any]:
    """What the exemplars depend on."""
    return {
        "pool": pool.fingerprint,
        "embedder": _fingerprint_embedder(get_embedder(config.embedder)),
        "context": context,
        "allow_identical_exemplars": config.allow_identical_exemplars,
    }


def get_one_shot_exemplars(exemplars: Exemplars, config: MIWVConfig) -> np.ndarray:
    """`(N,)` the exemplars that samples are scored behind; each sample itself where the score asks for none."""
    return exemplars.indices if get_score(config).needs_exemplars else np.arange(len(exemplars.indices))


def hash_array(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def _fingerprint_embedder(embedder: Embedder) -> str:
    if embedder.array is None:
        return embedder.name
    array = np.ascontiguousarray(torch.as_tensor(embedder.array).detach().cpu().float().numpy())
    return f"{embedder.name} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def fingerprint_model(model: nn.Module, zero_shot_losses: np.ndarray) -> dict[str, Any]:
    """Its dtype, a hash of its configuration, and its zero-shot losses on four samples spread over the pool."""
    values = {name: value for name, value in get_text_config(model).to_dict().items() if name not in NO_PROPERTY}
    described = json.dumps(values, sort_keys=True, default=str)
    probes = _choose_probes(np.isfinite(zero_shot_losses))
    return {
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "config": hashlib.sha256(described.encode()).hexdigest()[:16],
        "zero_shot_losses": {str(index): float(zero_shot_losses[index]) for index in probes},
    }


def _choose_probes(allowed: np.ndarray) -> np.ndarray:
    """Four samples spread over those that a mask allows."""
    indices = np.flatnonzero(allowed)
    return indices[np.linspace(0, len(indices) - 1, min(PROBES, len(indices))).astype(int)]


def identify_round(
    scorer: Scorer, exemplars: Exemplars, point: TrainingPoint, previous: StoredRound | None = None
) -> RoundIdentity:
    """
    What tells a round from all others: what it is made from, when, and the model by its configuration and its zero-shot
    losses on four samples, because a name or a path says nothing about weights. Where nothing is forwarded, the model
    is left out. The same on every rank, as JSON holds it.
    """
    pool, config, context = scorer.pool, scorer.config, scorer.context
    fingerprint = {**fingerprint_run(pool, config, context), "exemplars": hash_array(exemplars.indices)}
    if previous is not None and config.rescore_budget < 1:
        fingerprint["scores_before"] = hash_array(previous.column("score"))
    if get_score(config).needs_forwards:
        probes = _choose_probes(find_scorable(pool, get_one_shot_exemplars(exemplars, config), context))
        size = size_batches(scorer.model, config, scorer.memory)
        batches = plan_zero_shot(pool, context, size.tokens_per_batch, probes)
        losses = score_batches(scorer.restrict_to_this_rank(), batches)
        fingerprint["model"] = fingerprint_model(scorer.model, losses.zero_shot)
    identity = RoundIdentity(fingerprint=fingerprint, round=point.number, global_step=point.global_step)
    return scorer.world.broadcast_from_main(identity)
