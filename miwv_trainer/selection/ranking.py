"""The order of the samples by score, within bands of response length.

Losses of short responses are means over few tokens. They are noisy, so that short responses crowd both ends of MIWV.
Ranked within bands of length, the same share of each band is selected.
"""

import numpy as np


def assign_length_bands(is_candidate: np.ndarray, response_tokens: np.ndarray, bands: int) -> np.ndarray:
    """
    Divides the candidates into bands of equal size by response length.

    Where the number does not divide, the first bands have one sample more. Samples of equal length are divided by lower
    index.

    Args:
        is_candidate: `(N,)` bool.
        response_tokens: `(N,)`.

    Returns:
        `(N,)` the band of each candidate, from 0 for the shortest responses, and -1 for all others.
    """
    band = np.full(len(is_candidate), -1, dtype=np.int64)
    candidates = np.flatnonzero(is_candidate)
    by_length = candidates[np.argsort(response_tokens[candidates], kind="stable")]
    for number, members in enumerate(np.array_split(by_length, bands)):
        band[members] = number
    return band


def rank_samples(scores: np.ndarray, bands: np.ndarray) -> np.ndarray:
    """
    Ranks the samples that are in a band, so that every beginning of the ranking takes the same share of each band.

    Samples are ordered by the share of their own band that scores higher, then by score, then by lower index. With one
    band this is the order of the scores.

    Args:
        scores: `(N,)`, not NaN in a band.
        bands: `(N,)` as of `assign_length_bands`.

    Returns:
        `(k,)` indices, best first.
    """
    share_above = np.full(len(scores), np.inf)
    for number in range(bands.max(initial=-1) + 1):
        members = np.flatnonzero(bands == number)
        # A stable sort of ascending indices leaves ties in the order of the pool.
        members = members[np.argsort(-scores[members], kind="stable")]
        share_above[members] = np.arange(len(members)) / max(len(members), 1)
    candidates = np.flatnonzero(bands >= 0)
    return candidates[np.lexsort((candidates, -scores[candidates], share_above[candidates]))]
