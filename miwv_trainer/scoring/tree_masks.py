"""
Which tokens of a row of trees see which: as spans of the row, as a mask, and as a block mask of flex attention.

A token sees the trunk of its tree, its own branch, and of both only what is earlier. Where a layer has a window of W
tokens, it sees those of its own sequence (trunk, then branch) that are less than W positions before it. Positions go on
from the trunk's end in every branch, so the distance in the row says nothing of the distance in the sequence.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from miwv_trainer.scoring.root_forward import pad
from miwv_trainer.scoring.trees import TreeRow

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# Branches of one tree share a call up to this many tokens: a call costs as much as some masked pairs.
TOKENS_PER_CALL = 256
# Tokens a side of a block of flex attention: what `create_block_mask` takes by default, whose kernels are tuned for it.
BLOCK_SIZE = 128


@dataclass(frozen=True)
class Span:
    """
    Tokens of a row that look at the same parts of it: a trunk, or branches of one tree, or a piece of one of them.

    Args:
        queries: Their positions in the row.
        keys: The parts that hold all that they see: of the trunk first, then of themselves.
    """

    queries: slice
    keys: tuple[slice, ...]


@dataclass(frozen=True)
class Segment:
    """
    Tokens of a row whose attention is one call.

    Args:
        span: Which tokens, and what they look at.
        mask: `(1, 1, queries, keys)`, True where a token is seen; None if each token sees all earlier ones.
    """

    span: Span
    mask: torch.Tensor | None


class RowSegments:
    """The segments of one row for layers of every window, made when the first layer with that window asks."""

    def __init__(self, row: TreeRow, device: torch.device) -> None:
        self._row, self._device = row, device
        self._by_window: dict[int | None, list[Segment]] = {}

    def find(self, window: int | None) -> list[Segment]:
        """The row's segments for a layer that sees `window` tokens; all of its sequence if None."""
        window = restrict_window(window, [self._row])
        if window not in self._by_window:
            self._by_window[window] = make_segments(self._row, self._device, window)
        return self._by_window[window]


def restrict_window(window: int | None, rows: list[TreeRow]) -> int | None:
    """The window; None if it hides nothing from these rows. ModernBERT's decoder has -1 where there is none."""
    longest = max(int(row.positions.max()) for row in rows) + 1
    return window if window is not None and 0 < window < longest else None


def make_mask(rows: list[TreeRow], device: torch.device, window: int | None = None) -> torch.Tensor:
    """`(rows, 1, length, length)`, True where a token is seen. Rows are padded to the longest one."""
    # Padding is a tree of its own: no token sees it, and it sees itself, as a softmax over nothing is NaN.
    tree, branch = pad([row.tree for row in rows], -1, device), pad([row.branch for row in rows], 0, device)
    seen = _find_seen(tree[:, :, None], branch[:, :, None], tree[:, None], branch[:, None]).tril()
    if window is not None:
        position = pad([row.positions for row in rows], 0, device)
        seen &= position[:, :, None] - position[:, None] < window
    return seen[:, None]


def _find_seen(
    tree: torch.Tensor, branch: torch.Tensor, seen_tree: torch.Tensor, seen_branch: torch.Tensor
) -> torch.Tensor:
    """Whether a token of one tree and branch sees an earlier one of another."""
    return (tree == seen_tree) & ((seen_branch == 0) | (branch == seen_branch))


def make_block_mask(row: TreeRow, device: torch.device, window: int | None = None) -> "BlockMask":
    """
    The mask of one row, as flex attention takes it.

    The blocks follow from the row's spans. `create_block_mask` would evaluate every pair of tokens to find them.
    """
    from torch.nn.attention.flex_attention import BlockMask

    tree, branch = torch.as_tensor(row.tree, device=device), torch.as_tensor(row.branch, device=device)
    position = torch.as_tensor(row.positions, device=device)
    # Without a window one that hides nothing, so that one kernel is compiled for all layers.
    reach = len(row.ids) if window is None else window

    def sees(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        is_seen = (key <= query) & _find_seen(tree[query], branch[query], tree[key], branch[key])
        return is_seen & (position[query] - position[key] < reach)

    length = len(row.ids)
    blocks = -(-length // BLOCK_SIZE)
    has_pairs = np.zeros((blocks, blocks), dtype=bool)
    for span in find_spans(row, window, BLOCK_SIZE):
        queries = slice(span.queries.start // BLOCK_SIZE, -(-span.queries.stop // BLOCK_SIZE))
        for keys in span.keys:
            has_pairs[queries, keys.start // BLOCK_SIZE : -(-keys.stop // BLOCK_SIZE)] = True
    has_pairs = np.tril(has_pairs)
    counts = torch.as_tensor(has_pairs.sum(axis=1), dtype=torch.int32, device=device)
    indices = torch.as_tensor(np.argsort(~has_pairs, axis=1, kind="stable"), dtype=torch.int32, device=device)
    return BlockMask.from_kv_blocks(
        counts[None, None], indices[None, None], BLOCK_SIZE=BLOCK_SIZE, mask_mod=sees, seq_lengths=(length, length)
    )


def find_spans(row: TreeRow, window: int | None = None, tokens_per_call: int = TOKENS_PER_CALL) -> list[Span]:
    """
    The spans of a row, in its order. Together their queries are the row.

    With a window, long trunks and branches come in pieces, each of which looks at little more than it sees.
    """
    spans = []
    for own, trunk in _find_groups(row):
        if window is None:
            spans.append(Span(own, (own,) if trunk is None else (trunk, own)))
            continue
        length = max(window, tokens_per_call)
        for start in range(own.start, own.stop, length):
            queries = slice(start, min(start + length, own.stop))
            spans.append(Span(queries, _find_visible(row, queries, own, trunk, window)))
    return spans


def _find_groups(row: TreeRow) -> list[tuple[slice, slice | None]]:
    """Trunks, and groups of branches with the trunk that they see, in the order of the row."""
    groups: list[tuple[slice, slice | None]] = []
    for own, trunk in find_sequences(row):
        group, seen = groups[-1] if groups else (own, None)
        if trunk is not None and seen is not None and own.stop - group.start <= TOKENS_PER_CALL:
            groups[-1] = (slice(group.start, own.stop), trunk)
        else:
            groups.append((own, trunk))
    return groups


def find_sequences(row: TreeRow) -> list[tuple[slice, slice | None]]:
    """Each trunk, and each branch with its trunk, in the order of the row."""
    is_edge = (np.diff(row.tree) != 0) | (np.diff(row.branch) != 0)
    edges = [0, *(np.flatnonzero(is_edge) + 1).tolist(), len(row.ids)]
    sequences: list[tuple[slice, slice | None]] = []
    trunk: slice | None = None
    for own in (slice(start, end) for start, end in pairwise(edges)):
        if row.branch[own.start] == 0:
            trunk = own
        sequences.append((own, None if own is trunk else trunk))
    return sequences


def _find_visible(row: TreeRow, queries: slice, own: slice, trunk: slice | None, window: int) -> tuple[slice, ...]:
    """The parts of a trunk, and of a trunk or a group of branches, that hold what some of its tokens see."""
    near = slice(max(own.start, queries.start - window + 1), queries.stop)
    if trunk is None:
        return (near,)
    # The branches of a group all begin at the trunk's end, so the lowest position is not always the first token's.
    earliest = trunk.start + max(int(row.positions[queries].min()) - window + 1, 0)
    return (slice(earliest, trunk.stop), near) if earliest < trunk.stop else (near,)


def make_segments(row: TreeRow, device: torch.device, window: int | None = None) -> list[Segment]:
    """The calls of attention that a row takes, in its order."""
    branch, position = (torch.as_tensor(values, device=device) for values in (row.branch, row.positions))
    return [Segment(span, _make_segment_mask(span, branch, position, window)) for span in find_spans(row, window)]


def _make_segment_mask(
    span: Span, branch: torch.Tensor, position: torch.Tensor, window: int | None
) -> torch.Tensor | None:
    queries = span.queries
    hides_nothing = window is None or queries.stop - queries.start <= window
    if hides_nothing and span.keys == (queries,) and not branch[queries.start]:
        return None
    index = torch.arange(len(branch), device=branch.device)
    keys = torch.cat([index[part] for part in span.keys])
    seen = (branch[keys] == 0) | (branch[queries, None] == branch[keys])
    seen &= index[queries, None] >= keys
    if window is not None:
        seen &= position[queries, None] - position[keys] < window
    return seen[None, None]
