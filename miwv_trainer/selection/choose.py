"""Scores to indices."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain

import numpy as np

from miwv_trainer.config import MIWVConfig
from miwv_trainer.embeddings.vectors import Embeddings
from miwv_trainer.selection.diversity import facility_location, maximal_marginal_relevance, without_near_duplicates
from miwv_trainer.selection.guards import apply_guards, length_bands, ranking
from miwv_trainer.selection.scores import Measured, score_of, score_samples


@dataclass(frozen=True)
class Choice:
    """
    What was selected, and from what.

    Args:
        selection: `(k,)` ascending indices.
        ranked: The samples that pass the guards, best first.
        scores: `(N,)`, NaN where a sample has none.
        cells: `(N,)` number of the group and length band that a sample was ranked in, -1 where a guard left it out.
        left_out: How many samples each guard has left out.
    """

    selection: np.ndarray
    ranked: np.ndarray
    scores: np.ndarray
    cells: np.ndarray
    left_out: dict[str, int]

    @property
    def distances(self) -> np.ndarray:
        """
        `(N,)` how far each score is from its cell's threshold, the lowest score that is selected there; NaN where all
        or none of a cell are, and outside of cells.
        """
        distances = np.full(len(self.scores), np.nan, dtype=np.float32)
        is_selected = np.zeros(len(self.scores), dtype=bool)
        is_selected[self.selection] = True
        for cell in range(self.cells.max(initial=-1) + 1):
            members = self.cells == cell
            inside = self.scores[members & is_selected]
            if 0 < len(inside) < members.sum():
                distances[members] = np.abs(self.scores[members] - inside.min())
        return distances


def number_selected(fraction: float, pool_size: int) -> int:
    """
    `floor(fraction * N)`, at least 1.

    Computed on the decimal digits of `fraction`: 0.29 of 100 is 29, where floating point would give 28.
    """
    return max(1, _times(fraction, pool_size))


def _times(factor: float, count: int) -> int:
    """`floor(factor * count)` on the factor's decimal digits."""
    return int(Decimal(repr(float(factor))) * count)


def choose(
    measured: Measured,
    has_prompt_and_response: np.ndarray,
    config: MIWVConfig,
    groups: np.ndarray | None = None,
    embeddings: Embeddings | None = None,
) -> Choice:
    """
    The samples of highest score that pass the guards, ties by lower index, as many as the budget holds.

    The budget is `floor(fraction * N)` samples, or `floor(fraction * T)` of the pool's T response tokens: samples are
    taken in turn until the next one would exceed it, at least one. With groups it is divided first, by their shares of
    the pool. Fewer are selected where the guards leave fewer.

    Args:
        has_prompt_and_response: `(N,)`; samples without are never selected.
        groups: `(N,)` number of each sample's group, from 0.
        embeddings: `(N, d)`, where `config.needs_embeddings`.
    """
    scores = score_samples(measured, score_of(config), has_prompt_and_response)
    may, left_out = apply_guards(scores, measured, config)
    bands = length_bands(may, measured.response_tokens, config.length_bands)
    ranked = ranking(scores, bands)
    groups = np.zeros(len(scores), dtype=np.int64) if groups is None else groups
    tokens = measured.response_tokens.astype(np.int64)
    costs = tokens if config.selection_budget == "tokens" else np.ones(len(scores), dtype=np.int64)
    shares = largest_remainder(np.bincount(groups, weights=costs), number_selected(config.fraction, int(costs.sum())))
    taken: list[int] = []
    for group, share in enumerate(shares.tolist()):
        of_group = ranked[groups[ranked] == group]
        taken += fill(_order(of_group, taken, costs, share, config, embeddings), costs, share)
    if not taken:
        taken = ranked[:1].tolist()
    cells = np.where(bands >= 0, groups * config.length_bands + bands, -1)
    return Choice(np.sort(np.asarray(taken, dtype=np.int64)), ranked, scores, cells, left_out)


def _order(
    ranked: np.ndarray,
    taken: list[int],
    costs: np.ndarray,
    share: int,
    config: MIWVConfig,
    embeddings: Embeddings | None,
) -> Iterator[int]:
    """The samples of a group in the order in which they are taken: by rank, or as diversity has it."""
    order: Iterable[int] = ranked.tolist()
    if not config.needs_embeddings:
        return iter(order)
    if embeddings is None:
        raise ValueError(
            "`diversity` and `max_selected_similarity` need the embeddings of the pool: give `embeddings`."
        )
    if config.diversity != "none":
        is_candidate = np.cumsum(costs[ranked]) <= _times(config.diversity_candidates, share)
        candidates = ranked[: max(1, int(is_candidate.sum()))]
        if config.diversity == "facility_location":
            order = facility_location(candidates, embeddings)
        else:  # ranks, because MIWV has outliers beside which all other scores would be alike
            relevance = -np.arange(len(candidates), dtype=np.float64)
            order = maximal_marginal_relevance(candidates, relevance, embeddings, config.mmr_weight)
    if config.max_selected_similarity < 1:
        before = set(taken)
        unlike = without_near_duplicates(chain(taken, order), embeddings, config.max_selected_similarity)
        order = (sample for sample in unlike if sample not in before)
    return iter(order)


def fill(order: Iterator[int], costs: np.ndarray, budget: int) -> list[int]:
    """Takes samples in order until the next one would exceed the budget."""
    taken, left = [], budget
    while left > 0 and (sample := next(order, None)) is not None and costs[sample] <= left:
        taken.append(sample)
        left -= int(costs[sample])
    return taken


def largest_remainder(weights: np.ndarray, total: int) -> np.ndarray:
    """
    `(g,)` whole numbers that add up to `total`, in proportion to `weights` and each less than one off its exact share
    (Hamilton's method); equal remainders go to lower indices.
    """
    exact = weights / max(weights.sum(), 1) * total
    shares = np.floor(exact).astype(np.int64)
    order = np.argsort(shares - exact, kind="stable")
    shares[order[: total - shares.sum()]] += 1
    return shares


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the first selection that is in the second too."""
    return len(np.intersect1d(first, second)) / len(first)
