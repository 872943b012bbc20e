"""
What a round and its exemplars depend on. A stored round with another identity is not used.

A name, a path or a step says nothing about weights, so a model is known by its losses on four samples. The price is one
more forward in each round.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from transformers import PreTrainedModel

from miwv_trainer.choices import SELECTION_FIELDS
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.embeddings.embedders import Embedder, get_embedder
from miwv_trainer.own_scores import describe_score
from miwv_trainer.scoring.context import get_text_config
from miwv_trainer.scoring.losses import score_batches
from miwv_trainer.scoring.rows import find_scorable, plan_zero_shot
from miwv_trainer.scoring.scorer import Scorer
from miwv_trainer.selection.scores import get_score, read_given_scores
from miwv_trainer.storage.stored_round import RoundIdentity, StoredRound

PROBES = 4
# Entries of a model's configuration that say where it came from, or that loading, saving and training change. A
# checkpoint in a moved folder, or loaded by another release of transformers, is still the same model. So is one whose
# special tokens a Trainer has aligned with its tokenizer, as each does before its first step: without the last three,
# a round that was scored before a Trainer was made is scored again by it.
NO_PROPERTY = (
    *("_name_or_path", "transformers_version", "architectures", "dtype", "use_cache"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)


@dataclass(frozen=True)
class Exemplars:
    """
    The exemplars of each sample, the nearest first.

    Args:
        ranked: `(N, m)` indices; -1 where a sample has no more.
        ranked_similarities: `(N, m)` float32 cosines between sample and exemplar; NaN where it has no more.
    """

    ranked: np.ndarray
    ranked_similarities: np.ndarray

    @property
    def indices(self) -> np.ndarray:
        """`(N,)` index of the nearest exemplar; -1 if a sample has none."""
        return self.ranked[:, 0]

    @property
    def similarities(self) -> np.ndarray:
        """`(N,)` float32 cosine between sample and nearest exemplar; NaN if it has none."""
        return self.ranked_similarities[:, 0]

    @property
    def further(self) -> np.ndarray | None:
        """`(N, m - 1)` indices of the others; None if each sample has one exemplar."""
        return self.ranked[:, 1:] if self.ranked.shape[1] > 1 else None


@dataclass(frozen=True)
class TrainingPoint:
    """
    Where in training a round stands.

    Args:
        number: The round's number, from 0.
        global_step: Optimizer steps before it.
        epoch: Epochs that began before it.
        is_drawn_again: Whether it draws another selection from the scores of the round before, and scores nothing.
    """

    number: int = 0
    global_step: int = 0
    epoch: int = 0
    is_drawn_again: bool = False


class ModelFingerprint(TypedDict):
    """
    What a model is known by.

    Args:
        dtype: Of its parameters, such as `"float32"`.
        config: Hash of its configuration.
        zero_shot_losses: Losses of four samples, by their index.
    """

    dtype: str
    config: str
    zero_shot_losses: dict[str, float]


def fingerprint_run(pool: Pool, config: MIWVConfig, context: int) -> dict[str, object]:
    """What a round depends on besides the weights. A stored round with another fingerprint is refused."""
    fingerprint: dict[str, object] = {
        **fingerprint_exemplars(pool, config, context),
        "fraction": config.fraction,
        "rescore_budget": config.rescore_budget,
        **{name: getattr(config, name) for name in SELECTION_FIELDS},
        "score": describe_score(config.score),
    }
    if "response" in get_score(config).losses:
        fingerprint["opening"] = [] if pool.opening is None else pool.opening.tolist()
    given = read_given_scores(config, pool.column_scores, len(pool))
    if given is not None:
        fingerprint["given_scores"] = hash_array(given)
    if pool.groups is not None:
        fingerprint["groups"] = hash_array(pool.groups)
    if get_score(config).is_random or config.selection == "sample" or config.rescore_budget < 1:
        fingerprint["sampler_seed"] = config.sampler_seed
    return fingerprint


def fingerprint_exemplars(pool: Pool, config: MIWVConfig, context: int) -> dict[str, object]:
    """What the exemplars depend on, besides the weights of the `"model"` embedder."""
    return {
        "pool": pool.fingerprint,
        "embedder": _fingerprint_embedder(get_embedder(config.embedder)),
        "context": context,
        "allow_identical_exemplars": config.allow_identical_exemplars,
        "exemplars_per_sample": config.exemplars_per_sample,
    }


def get_one_shot_exemplars(exemplars: Exemplars, config: MIWVConfig) -> np.ndarray:
    """
    `(N, m)` indices of the exemplars that each sample is scored behind; `(N,)` its own index if the score needs none.
    """
    return exemplars.ranked if get_score(config).needs_exemplars else np.arange(len(exemplars.ranked))


def hash_array(array: np.ndarray) -> str:
    """64 bits of SHA-256 over the array's bytes, as hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def _fingerprint_embedder(embedder: Embedder) -> str:
    """The embedder's name, with a hash of the embeddings if the user gave them as an array."""
    if embedder.array is None:
        return embedder.name
    array = np.ascontiguousarray(torch.as_tensor(embedder.array).detach().cpu().float().numpy())
    return f"{embedder.name} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def fingerprint_model(model: PreTrainedModel, zero_shot_losses: np.ndarray) -> ModelFingerprint:
    """
    What a model is known by.

    Args:
        zero_shot_losses: `(N,)`, NaN where a sample was not scored. Four finite ones spread over the pool are taken.
    """
    values = {name: value for name, value in get_text_config(model).to_dict().items() if name not in NO_PROPERTY}
    config_as_json = json.dumps(values, sort_keys=True, default=str)
    probes = _choose_probes(np.isfinite(zero_shot_losses))
    return ModelFingerprint(
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        config=hashlib.sha256(config_as_json.encode()).hexdigest()[:16],
        zero_shot_losses={str(index): float(zero_shot_losses[index]) for index in probes},
    )


def _choose_probes(allowed: np.ndarray) -> np.ndarray:
    """Indices of four samples spread over those that a mask allows; of all if there are fewer."""
    indices = np.flatnonzero(allowed)
    return indices[np.linspace(0, len(indices) - 1, min(PROBES, len(indices))).astype(int)]


def identify_model(scorer: Scorer, exemplars: Exemplars) -> ModelFingerprint:
    """What the model of a scorer is known by. All ranks call this together, with the model in evaluation mode."""
    pool, context = scorer.pool, scorer.context
    probes = _choose_probes(find_scorable(pool, get_one_shot_exemplars(exemplars, scorer.config), context))
    # Each alone: padded to the longest of the four, they took more than twice their tokens.
    batches = plan_zero_shot(pool, context, 1, probes, scorer.sharing)
    # Every rank scores the same four samples, as under ZeRO-3 and FSDP all must run the same forwards.
    losses = score_batches(scorer.restrict_to_this_rank(), batches)
    return fingerprint_model(scorer.model, losses.zero_shot)


def identify_round(
    scorer: Scorer,
    exemplars: Exemplars,
    point: TrainingPoint,
    previous: StoredRound | None = None,
    source: str | None = None,
) -> RoundIdentity:
    """
    What tells a round from all others, the same on every rank: what it is made from, when, and by which model.

    If the score needs no forward, the model is left out.

    Args:
        previous: The round before. Its scores count if this round keeps some of them.
        source: Hash of the losses that are taken from another run, which then count in place of the model.
    """
    pool, config, context = scorer.pool, scorer.config, scorer.context
    fingerprint = {**fingerprint_run(pool, config, context), "exemplars": hash_array(exemplars.ranked)}
    if previous is not None and (config.rescore_budget < 1 or point.is_drawn_again):
        fingerprint["scores_before"] = hash_array(previous.column("score"))
    if previous is not None and point.is_drawn_again:
        # Nothing is forwarded: the model of the scores is the one of the round before.
        model = previous.summary["fingerprint"].get("model")
        if model is not None:
            fingerprint["model"] = model
    elif source is not None:
        fingerprint["scores_from"] = source
    elif get_score(config).needs_forwards:
        fingerprint["model"] = identify_model(scorer, exemplars)
    identity = RoundIdentity(fingerprint=fingerprint, round=point.number, global_step=point.global_step)
    return scorer.world.broadcast_from_main(identity)
