"""Which samples may be whose exemplar, and which of them are the nearest."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from miwv_trainer.data.pool import NO_EXEMPLAR, Pool
from miwv_trainer.embeddings.vectors import TIE

UNLIMITED = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Rules:
    """
    Which samples may be whose exemplar.

    Args:
        candidates: `(M,)` ascending int64 indices of the samples that may be an exemplar.
        group: `(N,)` int32. A sample is never the exemplar of a sample of its own group, so never of itself.
        length: `(N,)` int32, number of tokens of each sample.
        room:
            `(N,)` int32, most tokens that the exemplar of a sample may have. Unlimited where no candidate fits, because
            the exemplar is then cut.
        count: How many exemplars each sample gets.
    """

    candidates: Tensor
    group: Tensor
    length: Tensor
    room: Tensor
    count: int = 1

    @classmethod
    def from_pool(
        cls, pool: Pool, context: int, may_be_exemplar: np.ndarray, allow_identical: bool, count: int = 1
    ) -> "Rules":
        """
        Args:
            context: Most tokens of an exemplar and its sample together, preamble included.
            may_be_exemplar: `(N,)` bool.
            allow_identical: Whether a sample may be the exemplar of its copies.
            count: How many exemplars each sample gets.
        """
        candidates = np.flatnonzero(may_be_exemplar)
        group = np.arange(len(pool)) if allow_identical else pool.duplicate_groups
        room = context - len(pool.preamble) - pool.lengths
        room = np.where(room < _find_shortest_of_others(pool.lengths, group, candidates), UNLIMITED, room)
        groups, lengths, rooms = (torch.from_numpy(array.astype(np.int32)) for array in (group, pool.lengths, room))
        return cls(torch.from_numpy(candidates), groups, lengths, rooms, count)

    def to(self, device: torch.device) -> "Rules":
        group, length, room = (each.to(device) for each in (self.group, self.length, self.room))
        return Rules(self.candidates.to(device), group, length, room, self.count)

    def exclude_own_group(self, cosines: Tensor, queries: Tensor) -> None:
        """Sets the cosines of each query with the candidates of its own group to -inf; `cosines` is `(Q, M)`."""
        # Most samples are alone in their group. For these, one entry is set instead of comparing all M candidates.
        column = torch.searchsorted(self.candidates, queries).clamp(max=len(self.candidates) - 1)
        (own,) = (self.candidates[column] == queries).nonzero(as_tuple=True)
        cosines[own, column[own]] = -torch.inf
        (row,) = (torch.bincount(self.group)[self.group[queries]] > 1).nonzero(as_tuple=True)
        is_own_group = self.group[self.candidates] == self.group[queries[row], None]
        cosines[row] = cosines[row].masked_fill(is_own_group, -torch.inf)

    def pick_nearest(self, cosines: Tensor, queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """
        Picks the nearest candidates of each query that leave room for the query, ties by lower index.

        Args:
            cosines: `(Q, K)` float32, -inf for excluded candidates. Overwritten.
            queries: `(Q,)` indices.
            candidates: `(K,)` or `(Q, K)` ascending indices.

        Returns:
            `(Q, count)` indices, the nearest first, and `(Q, count)` cosines; -1 and NaN where there is none.
        """
        length, room = self.length[candidates], self.room[queries, None]
        if (room < length.max()).any():  # in most pools everything fits, and the pass over all pairs is spared
            cosines.masked_fill_(length > room, -torch.inf)
        candidates, picked = candidates.expand(len(queries), -1), []
        for _ in range(self.count):
            best = cosines.amax(dim=1, keepdim=True)
            first_of_ties = (cosines >= best - TIE).view(torch.uint8).argmax(dim=1, keepdim=True)
            is_found = best > -torch.inf
            indices = candidates.gather(1, first_of_ties).where(is_found, NO_EXEMPLAR)
            picked.append((indices, cosines.gather(1, first_of_ties).where(is_found, torch.nan)))
            cosines.scatter_(1, first_of_ties, -torch.inf)
        return torch.cat([indices for indices, _ in picked], dim=1), torch.cat([each for _, each in picked], dim=1)


def _find_shortest_of_others(length: np.ndarray, group: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Returns `(N,)` tokens of the shortest candidate outside each sample's own group."""
    if len(candidates) == 0:
        return np.full(len(length), UNLIMITED)
    # It is the shortest of all candidates, except for the samples of that one's group.
    shortest = candidates[length[candidates].argmin()]
    others = candidates[group[candidates] != group[shortest]]
    return np.where(group == group[shortest], length[others].min(initial=UNLIMITED), length[shortest])
