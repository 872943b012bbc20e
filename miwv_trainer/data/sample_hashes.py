"""Samples known by their content: a hash of each, and what differs between two pools of the same length.

A sample's place in a dataset says nothing about it: scripts shuffle, filter, re-tokenise and mask again after the pool
was read. Comparing hashes costs about 5 s for a million samples.
"""

from hashlib import blake2b, sha256

import numpy as np

from miwv_trainer.data.pool import Pool

HASH_BYTES = 8


def hash_ids(ids: np.ndarray) -> int:
    """The hash of one sequence of token ids, the same for any integer type."""
    digest = blake2b(np.ascontiguousarray(ids, dtype="<i4").tobytes(), digest_size=HASH_BYTES).digest()
    return int.from_bytes(digest, "big")


def hash_sample_ids(pool: Pool) -> np.ndarray:
    """`(N,)` uint64 hash of each sample's token ids, preamble included, as a dataset holds them."""
    sequences = (np.concatenate([pool.preamble, pool.sample(index)]) for index in range(len(pool)))
    return np.fromiter(map(hash_ids, sequences), dtype=np.uint64, count=len(pool))


def hash_sample_masks(pool: Pool) -> np.ndarray:
    """`(N,)` uint64 hash of which tokens of each sample are response."""
    before = np.zeros(len(pool.preamble), dtype=bool)
    masks = (np.concatenate([before, pool.response_mask(index)]) for index in range(len(pool)))
    return np.fromiter(map(hash_ids, masks), dtype=np.uint64, count=len(pool))


def hash_pool_content(pool: Pool) -> str:
    """
    A hash of all samples and of which of their tokens are response, whatever part of them is kept as the preamble.

    `Pool.fingerprint` differs between a pool that a Trainer tokenised and the same pool that was rendered here.
    """
    digest = sha256(hash_sample_ids(pool).astype("<u8").tobytes())
    digest.update(hash_sample_masks(pool).astype("<u8").tobytes())
    return digest.hexdigest()[:16]


def describe_difference(
    ids: np.ndarray, masks: np.ndarray, other_ids: np.ndarray, other_masks: np.ndarray
) -> str | None:
    """
    What differs between two pools, in words that follow "the dataset"; None if nothing does.

    Args:
        ids, masks: `(N,)` hashes of the one pool, from `hash_sample_ids` and `hash_sample_masks`.
        other_ids, other_masks: `(M,)` hashes of the other.
    """
    if len(ids) != len(other_ids):
        return f"has {len(other_ids)} samples instead of {len(ids)}"
    differs = ids != other_ids
    if differs.any() and np.array_equal(np.sort(ids), np.sort(other_ids)):
        return f"holds the same samples in another order ({differs.sum()} of {len(ids)} stand elsewhere)"
    if differs.any():
        return f"holds other token ids in {differs.sum()} of {len(ids)} samples, the first of them sample " + str(
            int(np.flatnonzero(differs)[0])
        )
    relabelled = masks != other_masks
    if relabelled.any():
        return (
            f"has other labels in {relabelled.sum()} of {len(ids)} samples (other tokens are response), the first of "
            f"them sample {int(np.flatnonzero(relabelled)[0])}"
        )
    return None
