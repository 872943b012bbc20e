"""A round in numbers: what it cost, and what the Trainer logs of it."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from miwv_trainer.data.pool import Pool
from miwv_trainer.scoring.refine import Refined
from miwv_trainer.selection.choose import Choice, compute_overlap
from miwv_trainer.selection.measured import Measured
from miwv_trainer.storage.stored_round import StoredRound

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# The cost of a training step, in forwards of the same tokens: the backward takes about two.
FORWARDS_A_STEP = 3


@dataclass(frozen=True)
class Cost:
    """
    What a round took.

    Args:
        scored: Number of samples that were scored.
        tokens: Tokens forwarded for them, padding and trunks that are context only included, refinement excluded.
        seconds: Time of all attempts at the round together.
        epochs: The compute of all forwards as a multiple of that of an epoch over the selection.
        layout: How samples shared a forward.
        attention: How layers attended in rows of trees.
        refined: The losses, and what the refinement in float32 took.
    """

    scored: int
    tokens: int
    seconds: float
    epochs: float
    layout: str
    attention: str
    refined: Refined

    def to_summary(self) -> dict[str, object]:
        """Entries of round.json."""
        return {
            "scored": self.scored,
            "tokens_forwarded": self.tokens,
            "seconds": round(self.seconds, 3),
            "samples_per_second": round(self.scored / self.seconds, 3),
            "tokens_per_second": round(self.tokens / (self.seconds - self.refined.seconds), 1),
            "epochs": round(self.epochs, 4),
            "layout": self.layout,
            "attention": self.attention,
            "refined_samples": self.refined.samples,
            "refined_tokens": self.refined.tokens,
            "refined_seconds": round(self.refined.seconds, 3),
        }


def count_epochs(tokens: int, pool: Pool, samples: np.ndarray, size: int) -> float:
    """
    The compute of a number of forwarded tokens, as a multiple of that of training an epoch.

    Args:
        samples: Indices of the samples whose mean length counts.
        size: Samples of an epoch.
    """
    tokens_per_epoch = size * (len(pool.preamble) + float(pool.lengths[samples].mean()))
    return tokens / (FORWARDS_A_STEP * tokens_per_epoch)


def compute_statistics(
    choice: Choice, measured: Measured, is_scored: np.ndarray, cost: Cost, previous: StoredRound | None
) -> dict[str, float]:
    """
    What the Trainer logs of a round. An entry that cannot be computed is left out.

    `threshold` is the lowest score that is selected. `overlap` is the share of the selection that the round before had
    selected too. `rank_correlation` is Spearman's, of this round's scores with the last ones of the same samples.
    """
    logged: dict[str, float] = {"threshold": float(choice.scores[choice.selection].min())}
    miwv = measured.miwv[~np.isnan(measured.miwv)]
    if len(miwv):
        logged["mean"] = float(miwv.mean())
        for quantile in QUANTILES:
            logged[f"q{round(100 * quantile):02d}"] = float(np.quantile(miwv, quantile))
        logged["share_above_zero"] = float((miwv > 0).mean())
    if previous is not None:
        logged["overlap"] = compute_overlap(choice.selection, previous.selection)
        correlation = compute_rank_correlation(choice.scores[is_scored], previous.column("score")[is_scored])
        if correlation is not None:
            logged["rank_correlation"] = correlation
    logged |= {"selected": len(choice.selection), "unscorable": int(np.isnan(choice.scores).sum())}
    return logged | {"scored": cost.scored, "tokens": cost.tokens, "seconds": cost.seconds, "epochs": cost.epochs}


def compute_rank_correlation(now: np.ndarray, before: np.ndarray) -> float | None:
    """Spearman's, over samples with a finite score in both; None for fewer than three, or if all scores are equal."""
    in_both = np.isfinite(now) & np.isfinite(before)
    if in_both.sum() < 3 or np.ptp(now[in_both]) == 0 or np.ptp(before[in_both]) == 0:
        return None
    return float(spearmanr(now[in_both], before[in_both]).statistic)
