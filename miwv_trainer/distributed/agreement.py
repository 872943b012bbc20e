"""Whether all ranks hold the same pool, before anything is scored, and the same scores of the user's own.

Scores are summed into slots by sample number. If one rank's script shuffled without a seed, losses of different samples
would share slots, and every selection would be wrong without a sign of it.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from miwv_trainer.data.pool import Pool
from miwv_trainer.data.sample_hashes import describe_difference, hash_sample_ids, hash_sample_masks
from miwv_trainer.distributed.world import World


def check_same_pool(pool: Pool, world: World) -> None:
    """
    Compares the pool of each rank with that of rank 0, by token ids and labels. All ranks call this together.

    Raises:
        ValueError: on all ranks, naming a rank whose pool differs, and how.
    """
    fingerprints = world.all_gather(pool.fingerprint)
    if len(set(fingerprints)) == 1:
        return
    rank = next(rank for rank, each in enumerate(fingerprints) if each != fingerprints[0])
    hashes = world.all_gather((hash_sample_ids(pool), hash_sample_masks(pool)))
    difference = describe_difference(*hashes[0], *hashes[rank]) or "was tokenised with another preamble"
    raise ValueError(
        f"The ranks hold different pools: compared with rank 0, the dataset of rank {rank} {difference}. Load, shuffle "
        "and map the dataset alike on all ranks: give `shuffle` and `train_test_split` a seed, and keep random values "
        "and the rank out of `map`."
    )


def check_same_texts(texts: Sequence[str] | None, world: World) -> None:
    """
    Compares the instructions of each rank with those of rank 0. All ranks call this together, before each embeds a
    share: the columns of text may differ although the token ids are the same.

    Raises:
        ValueError: on all ranks, naming a rank whose texts differ.
    """
    digest = hashlib.sha256()
    for text in texts or ():
        digest.update(f"{len(text)} {text}".encode("utf-8", "surrogatepass"))
    found = world.all_gather((None if texts is None else len(texts), digest.hexdigest()))
    if len(set(found)) > 1:
        rank = next(rank for rank, each in enumerate(found) if each != found[0])
        raise ValueError(
            f"The ranks hold different instructions: the texts of rank {rank} are not those of rank 0, although their "
            "token ids are the same. Load and map the dataset's text columns alike on all ranks."
        )


def check_same_weights(model: nn.Module, name: str, world: World) -> None:
    """
    Compares the weights of a model with those that rank 0 holds, by the sum of each parameter. All ranks call this
    together.

    Args:
        name: What the model is, for the error.

    Raises:
        ValueError: on all ranks, naming a rank whose weights differ.
    """
    if world.size == 1:
        return
    sums = [parameter.detach().sum(dtype=torch.float64).item() for parameter in model.parameters()]
    found = world.all_gather(sums)
    for rank, each in enumerate(found):
        # Another processor adds in another order. Weights of another seed or checkpoint differ by far more.
        if len(each) != len(found[0]) or not np.allclose(each, found[0], rtol=1e-6, equal_nan=True):
            raise ValueError(
                f"The ranks hold different weights of the {name}: those of rank {rank} are not those of rank 0. Load "
                "the same checkpoint on all ranks, before `TrainingArguments` is made: under FSDP, `from_pretrained` "
                "may give weights to one rank only afterwards."
            )


def check_same_scores(scores: np.ndarray, name: str, world: World) -> None:
    """
    Compares `(N,)` scores of the user's own with those of rank 0, to the bit. All ranks call this together.

    Args:
        name: What gave them, for the error.

    Raises:
        ValueError: on all ranks, naming a rank whose scores differ.
    """
    # NaN has many bit patterns, and all of them mean that a sample has no score.
    same_nan = np.where(np.isnan(scores), np.float32(np.nan), scores.astype(np.float32))
    found = world.all_gather(hashlib.sha256(same_nan.tobytes()).hexdigest())
    if len(set(found)) > 1:
        rank = next(rank for rank, each in enumerate(found) if each != found[0])
        raise ValueError(
            f"The ranks have different scores by {name}: those of rank {rank} are not those of rank 0. Give the same "
            "on all ranks: seed what is random, and keep the rank, the time and the order of sets out of it."
        )
