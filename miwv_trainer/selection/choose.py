"""Scores to a selection: guards, ranking, groups, budget and diversity, in this order."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from miwv_trainer.config import MIWVConfig
from miwv_trainer.embeddings.vectors import Embeddings
from miwv_trainer.selection.budget import apportion, count_selected, multiply_exactly, take_within_budget
from miwv_trainer.selection.diversity import (
    order_by_facility_location,
    order_by_marginal_relevance,
    skip_near_duplicates,
)
from miwv_trainer.selection.guards import apply_guards
from miwv_trainer.selection.measured import Measured
from miwv_trainer.selection.ranking import assign_length_bands, draw_by_rank, rank_samples
from miwv_trainer.selection.scores import get_score, score_samples


@dataclass(frozen=True)
class Choice:
    """
    What was selected, and from what.

    Args:
        selection: `(k,)` ascending indices.
        ranked: `(r,)` indices of the samples that pass the guards, best first.
        scores: `(N,)`, NaN where a sample has none.
        cells: `(N,)` number of the group and length band in which a sample was ranked, -1 where a guard excluded it.
        left_out: How many samples each guard excluded.
        is_drawn: Whether the selection was drawn by rank, so that it has no threshold.
    """

    selection: np.ndarray
    ranked: np.ndarray
    scores: np.ndarray
    cells: np.ndarray
    left_out: dict[str, int]
    is_drawn: bool = False

    @property
    def distances(self) -> np.ndarray:
        """
        `(N,)` float32, the distance of each score from the threshold of its cell: the lowest score selected there.

        NaN outside of cells, in cells of which all or no samples are selected, and everywhere if the selection was
        drawn, because these have no threshold.
        """
        distances = np.full(len(self.scores), np.nan, dtype=np.float32)
        if self.is_drawn:
            return distances
        is_selected = np.zeros(len(self.scores), dtype=bool)
        is_selected[self.selection] = True
        for cell in range(self.cells.max(initial=-1) + 1):
            is_member = self.cells == cell
            selected_scores = self.scores[is_member & is_selected]
            if 0 < len(selected_scores) < is_member.sum():
                distances[is_member] = np.abs(self.scores[is_member] - selected_scores.min())
        return distances


def choose(
    measured: Measured,
    has_prompt_and_response: np.ndarray,
    config: MIWVConfig,
    groups: np.ndarray | None = None,
    embeddings: Embeddings | None = None,
) -> Choice:
    """
    Selects the samples of highest score that pass the guards, ties by lower index, as many as the budget holds.

    The budget is `floor(fraction * N)` samples, or `floor(fraction * T)` of the pool's T response tokens. Samples are
    taken in turn until the next one would exceed it, at least one. With groups, the budget is first divided over them
    in proportion to their shares of the pool. Fewer samples are selected where the guards leave fewer. With
    `selection="sample"`, a draw by rank takes the place of the ranking.

    Args:
        has_prompt_and_response: `(N,)` bool. Samples without are never selected.
        groups: `(N,)` number of each sample's group, from 0.
        embeddings: `(N, d)`. Needed where `config.needs_embeddings`.

    Raises:
        ValueError: `embeddings` are needed and not given.
    """
    scores = score_samples(measured, get_score(config), has_prompt_and_response)
    is_candidate, left_out = apply_guards(scores, measured, config)
    bands = assign_length_bands(is_candidate, measured.response_tokens, config.length_bands)
    ranked = rank_samples(scores, bands)
    is_drawn = config.selection == "sample"
    scale = config.temperature * config.fraction * len(ranked)
    in_turn = draw_by_rank(ranked, scale, len(scores), measured.draw) if is_drawn and len(ranked) else ranked
    groups = np.zeros(len(scores), dtype=np.int64) if groups is None else groups
    tokens = measured.response_tokens.astype(np.int64)
    costs = tokens if config.selection_budget == "tokens" else np.ones(len(scores), dtype=np.int64)
    shares = apportion(np.bincount(groups, weights=costs), count_selected(config.fraction, int(costs.sum())))
    taken: list[int] = []
    # A group whose guards leave too few samples leaves places empty. Filling them from other groups would change the
    # proportions that `group_column` is there to keep.
    for group, share in enumerate(shares.tolist()):
        in_group = in_turn[groups[in_turn] == group]
        taken += take_within_budget(_order_candidates(in_group, taken, costs, share, config, embeddings), costs, share)
    # With small token budgets the first sample of every group may be too long.
    if not taken:
        taken = in_turn[:1].tolist()
    cells = np.where(bands >= 0, groups * config.length_bands + bands, -1)
    return Choice(np.sort(np.asarray(taken, dtype=np.int64)), ranked, scores, cells, left_out, is_drawn)


def compute_overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the share of the first selection that is in the second too."""
    return len(np.intersect1d(first, second)) / len(first)


def _order_candidates(
    ranked: np.ndarray,
    taken: list[int],
    costs: np.ndarray,
    share: int,
    config: MIWVConfig,
    embeddings: Embeddings | None,
) -> Iterator[int]:
    """
    Yields the samples of a group in the order in which they are taken: by rank, or by a method of diversity.

    Args:
        ranked: `(r,)` samples of the group, best or drawn first.
        taken: Samples of earlier groups, to which near-duplicates in this group are skipped too.
        share: The group's budget.
    """
    if not config.needs_embeddings:
        return iter(ranked.tolist())
    if embeddings is None:
        raise ValueError(
            "`diversity` and `max_selected_similarity` need the embeddings of the pool: give `embeddings`."
        )
    order: Iterable[int] = ranked.tolist()
    if config.diversity != "none":
        # The costs are samples or tokens, as the share is.
        is_near_top = np.cumsum(costs[ranked]) <= multiply_exactly(config.diversity_candidates, share)
        candidates = ranked[: max(1, int(is_near_top.sum()))]
        if config.diversity == "facility_location":
            order = order_by_facility_location(candidates, embeddings)
        else:
            # Ranks, not scores: scaled to [0, 1], a few outliers of MIWV would leave all other scores nearly equal.
            relevance = -np.arange(len(candidates), dtype=np.float64)
            order = order_by_marginal_relevance(candidates, relevance, embeddings, config.mmr_weight)
    if config.max_selected_similarity < 1:
        # The samples of earlier groups go first, so that near-duplicates are found across groups. They are removed by
        # value and not by counting: where rounding makes two of them near-duplicates of each other, one is skipped.
        taken_before = set(taken)
        distinct = skip_near_duplicates(chain(taken, order), embeddings, config.max_selected_similarity)
        order = (sample for sample in distinct if sample not in taken_before)
    return iter(order)
