"""What two sequences begin with alike: token ids, turns or texts."""

from collections.abc import Sequence


def count_common_prefix(left: Sequence[object], right: Sequence[object]) -> int:
    """The number of elements with which both begin."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next(position for position in range(shorter) if left[position] != right[position])
