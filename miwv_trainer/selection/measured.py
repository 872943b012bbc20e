"""What is known of samples, and what scores compute of it: MIWV and its residual, IFD, influence. Pure functions."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Measured:
    """
    What is known of N samples: what a function as `score` gets. Every array is `(N,)` and holds NaN where a value is
    not known.

    Args:
        zero_shot_loss: In nats per response token.
        one_shot_loss: The same with the exemplar as an earlier turn.
        similarity: Cosine between the prompts of the sample and its exemplar.
        response_tokens: Number of response tokens. A sample with 0 has no score.
        draw: Seed of random scores: the sampler's seed and the number of the round.
        response_loss: The loss of the response alone, without its prompt; None if it was not measured.
        exemplars: Index of the sample that each sample was scored behind, -1 for none; None if none was looked for.
        given: Scores of the user's own, from an array or a column; None if there are none.
        further_exemplars: `(N, m - 1)` the other samples that each was scored behind, the second nearest first, -1 for
            none; None if each was scored behind one.
        further_losses: `(N, m - 1)` one-shot losses behind these.
    """

    zero_shot_loss: np.ndarray
    one_shot_loss: np.ndarray
    similarity: np.ndarray
    response_tokens: np.ndarray
    draw: tuple[int, ...] = (0,)
    response_loss: np.ndarray | None = None
    exemplars: np.ndarray | None = None
    given: np.ndarray | None = None
    further_exemplars: np.ndarray | None = None
    further_losses: np.ndarray | None = None

    def copy(self) -> "Measured":
        """The same in arrays of its own, which a user's function may clip or sort in place."""
        copies: dict[str, Any] = {
            name: array.copy() for name, array in vars(self).items() if isinstance(array, np.ndarray)
        }
        return replace(self, **copies)

    @property
    def miwv(self) -> np.ndarray:
        """One-shot minus zero-shot loss."""
        return compute_miwv(self.one_shot_loss, self.zero_shot_loss)

    def replace_losses(
        self,
        is_new: np.ndarray,
        zero_shot_loss: np.ndarray,
        one_shot_loss: np.ndarray,
        response_loss: np.ndarray | None = None,
        further_losses: np.ndarray | None = None,
    ) -> "Measured":
        """
        Returns a copy that takes the losses of the samples in the `(N,)` mask `is_new` from other arrays.

        Args:
            further_losses: `(N, m - 1)`, as `further_exemplars`. The other arrays are `(N,)`.
        """
        before = np.full(len(is_new), np.nan, np.float32) if self.response_loss is None else self.response_loss
        further = self.further_losses
        if further_losses is not None:
            further = np.where(is_new[:, None], further_losses, np.nan if further is None else further)
        return replace(
            self,
            response_loss=before if response_loss is None else np.where(is_new, response_loss, before),
            further_losses=further,
            zero_shot_loss=np.where(is_new, zero_shot_loss, self.zero_shot_loss),
            one_shot_loss=np.where(is_new, one_shot_loss, self.one_shot_loss),
        )


def compute_miwv(one_shot_loss: np.ndarray, zero_shot_loss: np.ndarray) -> np.ndarray:
    """Returns `(N,)` float32 MIWV, the one-shot minus the zero-shot loss; NaN where either is not finite."""
    # Infinity minus infinity would warn. A model that overflows has such losses, and they are reported as unscorable.
    with np.errstate(invalid="ignore"):
        difference = one_shot_loss - zero_shot_loss
    return np.where(np.isfinite(difference), difference, np.nan).astype(np.float32)


def compute_residual_miwv(measured: Measured) -> np.ndarray:
    """
    Returns `(N,)` float32: MIWV minus its least squares fit on log(response tokens), similarity, and their squares.

    A sample without MIWV or similarity has NaN and is left out of the fit.
    """
    miwv, tokens = measured.miwv, np.maximum(measured.response_tokens, 1)
    regressors = np.stack([np.log(tokens), measured.similarity.astype(np.float64)])
    is_finite = np.isfinite(miwv) & np.isfinite(regressors).all(axis=0)
    residual = np.full(len(miwv), np.nan, dtype=np.float32)
    if not is_finite.any():
        return residual
    # With few samples or equal lengths the columns depend on each other. `lstsq` then takes the smallest coefficients,
    # where solving the normal equations would fail.
    x = regressors[:, is_finite]
    # Centred and scaled, because log(tokens) and its square are nearly collinear over the few lengths of a pool.
    x = (x - x.mean(axis=1, keepdims=True)) / np.maximum(x.std(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    design = np.column_stack([np.ones(x.shape[1]), *x, *x**2])
    y = miwv[is_finite].astype(np.float64)
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    residual[is_finite] = y - design @ coefficients
    return residual


def compute_ifd(measured: Measured) -> np.ndarray:
    """
    Returns `(N,)` float32, the Instruction-Following Difficulty: exp(loss behind the prompt) / exp(loss alone).

    Above 1, the prompt makes the response less likely (Li et al., "From Quantity to Quality", NAACL 2024).
    """
    if measured.response_loss is None:
        return np.full(len(measured.response_tokens), np.nan, dtype=np.float32)
    # The exponential of the difference: the perplexities themselves overflow.
    with np.errstate(invalid="ignore", over="ignore"):
        ratio = np.exp(measured.zero_shot_loss.astype(np.float64) - measured.response_loss)
    return mask_infinite(ratio).astype(np.float32)


def compute_influence(measured: Measured) -> np.ndarray:
    """
    Returns `(N,)` float32: of each sample, how much it helps those that were scored behind it.

    That is the mean over them of zero-shot minus one-shot loss. A sample that nobody was scored behind has none, and
    neither has one that could not be scored itself.
    """
    count, influence = len(measured.response_tokens), np.full(len(measured.response_tokens), np.nan, dtype=np.float32)
    if measured.exemplars is None:
        return influence
    exemplars, one_shot = measured.exemplars[:, None], measured.one_shot_loss[:, None]
    if measured.further_exemplars is not None and measured.further_losses is not None:
        exemplars = np.hstack([exemplars, measured.further_exemplars])
        one_shot = np.hstack([one_shot, measured.further_losses])
    gained = -compute_miwv(one_shot, measured.zero_shot_loss[:, None]).astype(np.float64)
    counts = np.isfinite(gained) & (exemplars >= 0)
    sums = np.bincount(exemplars[counts], weights=gained[counts], minlength=count)
    numbers = np.bincount(exemplars[counts], minlength=count)
    has_value = (numbers > 0) & np.isfinite(measured.miwv)
    influence[has_value] = sums[has_value] / numbers[has_value]
    return influence


def mask_infinite(losses: np.ndarray) -> np.ndarray:
    """Returns the finite values, and NaN for the others."""
    return np.where(np.isfinite(losses), losses, np.nan)
