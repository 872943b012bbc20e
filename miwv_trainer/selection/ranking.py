"""The order of the samples by score, within bands of response length, and draws that favour those in front.

Losses of short responses are means over few tokens. They are noisy, so that short responses crowd both ends of MIWV.
Ranked within bands of length, the same share of each band is selected.
"""

import numpy as np

# Sets the seed apart from that of `score="random"`, which is the sampler's seed and the round alone: a draw by rank of
# random scores would otherwise use their numbers twice.
DRAWN_BY_RANK = 1


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


def draw_by_rank(ranked: np.ndarray, scale: float, count: int, draw: tuple[int, ...]) -> np.ndarray:
    """
    Draws samples without replacement, one after the other, with a probability that falls with the rank.

    Of the samples that are left, the one of rank r (from 0) is drawn next with probability proportional to
    exp(-r / scale). Adding Gumbel noise to the logarithms of these weights and sorting gives such a sequence (Kool et
    al., "Stochastic Beams and Where to Find Them", ICML 2019), at the price of one sort.

    Args:
        ranked: `(k,)` pool indices, best first.
        scale: Ranks over which the probability falls by a factor of e.
        count: Samples of the pool.
        draw: Seed.

    Returns:
        `(k,)` the same indices in the order in which they are drawn.
    """
    # One number for every sample of the pool, so that a sample that a guard excludes does not change those of others.
    noise = np.random.default_rng([*draw, DRAWN_BY_RANK]).gumbel(size=count)
    return ranked[np.argsort(-(noise[ranked] - np.arange(len(ranked)) / scale), kind="stable")]
