"""
The tree layout: an exemplar's own sequence is a trunk, and each sample that retrieved it is a branch behind it.

Attention is causal and the exemplar comes first. So the trunk gives the exemplar's zero-shot loss. Each branch sees
the trunk and itself and gives its sample's one-shot loss. Nothing is approximated, and the pool costs about twice its
own tokens instead of three times. The price is an attention mask of its own for each row, and trunks that are forwarded
again if their branches fill several rows.

Rows are composed over the whole pool before they are dealt to ranks, so that scores do not depend on the number of
ranks.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from miwv_trainer.data.pool import NO_EXEMPLAR, Pool, rank_columns
from miwv_trainer.scoring.rows import ONE_SHOT, ZERO_SHOT, find_scorable, get_one_shot_kind


@dataclass(frozen=True)
class Tree:
    """
    A trunk and its branches.

    Args:
        trunk: Index of the sample that is the trunk.
        branches: Indices of the samples behind it, none of which sees another.
        scores_trunk: Whether the trunk's zero-shot loss is scored here. If not, it is context only.
        trunk_room: Most tokens of the trunk that are shown; its beginning is cut.
        branch_kinds: Which one-shot loss each branch gives; None if the trunk is the nearest exemplar of each.
    """

    trunk: int
    branches: tuple[int, ...]
    scores_trunk: bool
    trunk_room: int
    branch_kinds: tuple[int, ...] | None = None

    @property
    def kinds(self) -> tuple[int, ...]:
        """Which one-shot loss each branch gives."""
        return self.branch_kinds or (ONE_SHOT,) * len(self.branches)

    def count_tokens(self, pool: Pool) -> int:
        """Tokens of preamble, trunk and branches."""
        shown = min(int(pool.lengths[self.trunk]), self.trunk_room)
        return len(pool.preamble) + shown + int(pool.lengths[list(self.branches)].sum())

    def halve(self) -> "list[Tree]":
        """Two trees that score the same, the trunk once; the tree itself if it scores a single loss."""
        if len(self.branches) + self.scores_trunk < 2:
            return [self]
        middle = len(self.branches) // 2
        first, second = (
            replace(self, branches=self.branches[part], branch_kinds=self.kinds[part])
            for part in (slice(middle), slice(middle, None))
        )
        return [first, replace(second, scores_trunk=False)]


@dataclass(frozen=True)
class TreeBatch:
    """
    Rows of trees that are forwarded together.

    Args:
        rows: Each row's trees.
        pool: The pool that the trees' indices refer to.
        is_padded: Whether rows are padded to the longest one. If not, they are joined to a single row.
    """

    rows: list[list[Tree]]
    pool: Pool = field(repr=False, compare=False)
    is_padded: bool

    @cached_property
    def lengths(self) -> list[int]:
        """Each row's tokens."""
        return [count_row_tokens(row, self.pool) for row in self.rows]

    @property
    def kinds(self) -> np.ndarray:
        """`(losses,)` which loss of each of `samples` is scored, `ZERO_SHOT` or that behind an exemplar."""
        return np.asarray([kind for kind, _ in self._losses()], dtype=np.int64)

    @property
    def samples(self) -> np.ndarray:
        """`(losses,)` the samples that are scored."""
        return np.asarray([sample for _, sample in self._losses()], dtype=np.int64)

    def _losses(self) -> list[tuple[int, int]]:
        trees = [tree for row in self.rows for tree in row]
        zero_shot = [(ZERO_SHOT, tree.trunk) for tree in trees if tree.scores_trunk]
        return zero_shot + [each for tree in trees for each in zip(tree.kinds, tree.branches, strict=True)]

    @property
    def tokens(self) -> int:
        """Tokens forwarded, padding included."""
        return len(self.lengths) * max(self.lengths) if self.is_padded else sum(self.lengths)

    def halve(self) -> "list[TreeBatch]":
        """The same in two batches, of half the rows, trees or branches; none if a single loss is scored."""
        rows = self.rows if len(self.rows) > 1 else [[tree] for tree in self.rows[0]]
        if len(rows) == 1:
            rows = [[half] for half in rows[0][0].halve()]
        middle = len(rows) // 2
        return [replace(self, rows=part) for part in (rows[:middle], rows[middle:])] if middle else []


def count_row_tokens(row: Sequence[Tree], pool: Pool) -> int:
    """Tokens of a row of trees."""
    return sum(tree.count_tokens(pool) for tree in row)


def make_tree_batches(
    rows: Sequence[list[Tree]], pool: Pool, tokens_per_batch: int, is_padded: bool
) -> list[TreeBatch]:
    """
    Rows in batches of at most `tokens_per_batch` tokens; a longer row is forwarded alone.

    Args:
        rows: From [`plan_trees`], longest first.
        is_padded: Whether rows are padded to the longest one of their batch.
    """
    batches, start = [], 0
    lengths = [count_row_tokens(row, pool) for row in rows]
    while start < len(rows):
        end = start + max(tokens_per_batch // lengths[start], 1)
        batches.append(TreeBatch(list(rows[start:end]), pool, is_padded))
        start = end
    return batches


@dataclass(frozen=True)
class TreeRow:
    """
    Trees side by side in one sequence.

    Args:
        ids: `(length,)` tokens.
        positions: `(length,)` each token's position in its own sequence.
        tree: `(length,)` number of the tree that a token belongs to.
        branch: `(length,)` number of its branch within the tree, from 1; 0 in the trunk.
        targets: `(targets,)` positions in the row of the response tokens that are scored.
        samples: `(targets,)` the sample that each of them belongs to.
        kinds: `(targets,)` which of the sample's losses it counts for.
    """

    ids: np.ndarray
    positions: np.ndarray
    tree: np.ndarray
    branch: np.ndarray
    targets: np.ndarray
    samples: np.ndarray
    kinds: np.ndarray


def plan_trees(pool: Pool, exemplars: np.ndarray, context: int, tokens_per_row: int) -> list[list[Tree]]:
    """
    Rows of trees, longest first, that hold each scorable sample once as a trunk and once as a branch behind each of its
    exemplars.

    A row has at most `tokens_per_row` tokens, or as many as a single sample behind its exemplar if these are more. A
    trunk with many branches is repeated in further rows as context only. So is a trunk that must be cut to leave room
    for a long branch.

    Args:
        exemplars: `(N,)` index of each sample's exemplar, or `(N, m)` of its nearest ones.
    """
    can_score, ranked = find_scorable(pool, exemplars, context), rank_columns(exemplars)
    samples, ranks = np.nonzero((ranked != NO_EXEMPLAR) & can_score[:, None])
    trunks = ranked[samples, ranks]
    kinds = np.asarray([get_one_shot_kind(rank) for rank in range(ranked.shape[1])])[ranks]
    room = context - len(pool.preamble) - pool.lengths[samples]
    cuts_trunk = pool.lengths[trunks] > room
    trees = [
        Tree(int(trunks[i]), (int(samples[i]),), False, int(room[i]), (int(kinds[i]),))
        for i in np.flatnonzero(cuts_trunk)
    ]
    others = np.flatnonzero(~cuts_trunk)
    by_trunk = others[np.argsort(trunks[others], kind="stable")]
    starts = np.searchsorted(trunks[by_trunk], np.arange(len(pool) + 1))
    for trunk in range(len(pool)):
        behind = by_trunk[starts[trunk] : starts[trunk + 1]]
        whole = Tree(
            trunk, tuple(samples[behind].tolist()), bool(can_score[trunk]), context, tuple(kinds[behind].tolist())
        )
        trees += _split_between_trees(whole, pool, tokens_per_row)
    sizes = [tree.count_tokens(pool) for tree in trees]
    rows = sorted(_fill_bins(sizes, tokens_per_row), key=lambda row: -sum(sizes[number] for number in row))
    return [[trees[number] for number in row] for row in rows]


def _split_between_trees(whole: Tree, pool: Pool, tokens_per_row: int) -> list[Tree]:
    """The tree, or several with the same trunk if its branches do not fit into one row."""
    if not len(whole.branches):
        return [whole] if whole.scores_trunk else []
    left = tokens_per_row - len(pool.preamble) - int(pool.lengths[whole.trunk])
    # If the longest branch does not fit anyway, other rows of that length repeat a long trunk less often.
    lengths = pool.lengths[list(whole.branches)]
    groups = map(sorted, _fill_bins(lengths.tolist(), max(left, int(lengths.max()))))
    return [
        replace(
            whole,
            branches=tuple(whole.branches[number] for number in group),
            branch_kinds=tuple(whole.kinds[number] for number in group),
            scores_trunk=whole.scores_trunk and first == 0,
        )
        for first, group in enumerate(groups)
    ]


def _fill_bins(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """
    Numbers of the pieces in each bin. Pieces come longest first, each into the fullest bin that has room (best fit).

    The list of free room is searched by bisection: a pool of 55,000 samples has as many pieces.
    """
    bins: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}
    free: list[int] = []  # The keys of `open_bins`, ascending.
    for number in np.argsort(-np.asarray(sizes), kind="stable").tolist():
        size = sizes[number]
        at = bisect_left(free, size)
        if at < len(free):
            left = free[at] - size
            chosen = open_bins[free[at]].pop()
            if not open_bins[free[at]]:
                del open_bins[free.pop(at)]
            bins[chosen].append(number)
        else:
            left = capacity - size
            chosen = len(bins)
            bins.append([number])
        if left > 0:
            if left not in open_bins:
                insort(free, left)
            open_bins.setdefault(left, []).append(chosen)
    return bins


def make_tree_row(trees: Sequence[Tree], pool: Pool) -> TreeRow:
    """Lays trees out side by side: each with its trunk first, then its branches."""
    ids: list[np.ndarray] = []
    scored: list[np.ndarray] = []
    pieces: list[tuple[int, int, int, int, int]] = []  # Tree, branch, first position, sample, kind.
    for number, tree in enumerate(trees):
        shown = slice(-min(int(pool.lengths[tree.trunk]), tree.trunk_room), None)
        trunk = np.concatenate([pool.preamble, pool.sample(tree.trunk)[shown]])
        ids.append(trunk)
        is_target = np.zeros(len(trunk), dtype=bool)
        if tree.scores_trunk:
            is_target[len(pool.preamble) :] = pool.response_mask(tree.trunk)
        scored.append(is_target)
        pieces.append((number, 0, 0, tree.trunk, ZERO_SHOT))
        for branch, (sample, kind) in enumerate(zip(tree.branches, tree.kinds, strict=True), start=1):
            ids.append(pool.sample(sample))
            scored.append(pool.response_mask(sample))
            pieces.append((number, branch, len(trunk), sample, kind))
    lengths = np.asarray([len(piece) for piece in ids])
    piece = np.repeat(np.arange(len(pieces)), lengths)
    tree_number, branch_number, first, sample_number, kind_number = np.asarray(pieces).T
    start = np.cumsum(lengths) - lengths
    targets = np.flatnonzero(np.concatenate(scored))
    return TreeRow(
        ids=np.concatenate(ids),
        positions=np.arange(len(piece)) + (first - start)[piece],
        tree=tree_number[piece],
        branch=branch_number[piece],
        targets=targets,
        samples=sample_number[piece[targets]],
        kinds=kind_number[piece[targets]],
    )
