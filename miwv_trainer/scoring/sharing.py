"""
Which rows may share a forward.

Most models compute a row alike whatever stands beside it. Two kinds do not. Rotary positions of the types "longrope"
and "dynamic" take their factors from the largest position of the forward, so that a long row changes the short ones.
And some families are changed by right padding itself. The price of rows of equal length is smaller batches.
"""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Sharing:
    """
    Which rows may share a forward, by their lengths in tokens.

    Args:
        threshold: Rows longer than this share no forward with other rows; None if all lengths may mix.
        equal_beyond: Rows longer than this share a forward only with rows of their own length; 0 if all rows do.
    """

    threshold: int | None = None
    equal_beyond: int | None = None

    @property
    def is_equal(self) -> bool:
        """Whether no forward has padding."""
        return self.equal_beyond == 0

    @property
    def longest_unaffected(self) -> int | None:
        """The longest row, in tokens, that may share a forward with every shorter one; None if every row may."""
        limits = [limit for limit in (self.threshold, self.equal_beyond) if limit is not None]
        return min(limits, default=None)

    def without_padding(self) -> "Sharing":
        """The same, where only rows of equal length share a forward."""
        return replace(self, equal_beyond=0)

    def count_companions(self, lengths: np.ndarray) -> int:
        """
        How many of some rows may share a forward with the first.

        Args:
            lengths: `(rows,)`, longest first.
        """
        longest = int(lengths[0])
        if self.equal_beyond is not None and longest > self.equal_beyond:
            return int((lengths == longest).sum())
        if self.threshold is not None and longest > self.threshold:
            return int((lengths > self.threshold).sum())
        return len(lengths)


ALL_SHARE = Sharing()
