"""What samples are ranked by: names to functions of the two losses, the lengths and the similarity.

A score is `(N,)` float32, higher selected first; NaN where a sample has none. Jiang et al. compare MIWV (equation 4)
with its lowest values, the one-shot loss and random draws; the longest responses are the baseline of Zhao et al.,
"Long Is More for Alignment" (ICML 2024).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from miwv_trainer.config import MIWVConfig, ScoreName


@dataclass(frozen=True)
class Measured:
    """
    What is known of N samples, `(N,)` each, NaN where it is not.

    Args:
        zero_shot_loss: In nats per response token.
        one_shot_loss: Likewise, behind the exemplar.
        similarity: Cosine to the exemplar.
        response_tokens: Number of them; a sample with 0 has no score.
        draw: What random scores are drawn from: the seed and the number of the round.
    """

    zero_shot_loss: np.ndarray
    one_shot_loss: np.ndarray
    similarity: np.ndarray
    response_tokens: np.ndarray
    draw: tuple[int, ...] = (0,)

    @property
    def miwv(self) -> np.ndarray:
        return weakness(self.one_shot_loss, self.zero_shot_loss)

    def updated(self, those: np.ndarray, zero_shot_loss: np.ndarray, one_shot_loss: np.ndarray) -> "Measured":
        """The same with the losses of `those`, a mask, from other `(N,)` arrays."""
        return replace(
            self,
            zero_shot_loss=np.where(those, zero_shot_loss, self.zero_shot_loss),
            one_shot_loss=np.where(those, one_shot_loss, self.one_shot_loss),
        )


def seed_of_draw(config: MIWVConfig, number: int) -> tuple[int, ...]:
    """What the random scores of a round are drawn from."""
    return config.sampler_seed or 0, number


def weakness(one_shot_loss: np.ndarray, zero_shot_loss: np.ndarray) -> np.ndarray:
    """`(N,)` float32 MIWV: one-shot minus zero-shot loss; NaN where either is not finite."""
    with np.errstate(invalid="ignore"):
        difference = one_shot_loss - zero_shot_loss
    return np.where(np.isfinite(difference), difference, np.nan).astype(np.float32)


def residual_miwv(measured: Measured) -> np.ndarray:
    """
    MIWV minus its least squares fit on log(response tokens), similarity, and the squares of both.

    Centred and scaled, so that the fit is well conditioned. A sample without similarity has no residual.
    """
    miwv, tokens = measured.miwv, np.maximum(measured.response_tokens, 1)
    explaining = np.stack([np.log(tokens), measured.similarity.astype(np.float64)])
    known = np.isfinite(miwv) & np.isfinite(explaining).all(axis=0)
    residual = np.full(len(miwv), np.nan, dtype=np.float32)
    if not known.any():
        return residual
    x = explaining[:, known]
    x = (x - x.mean(axis=1, keepdims=True)) / np.maximum(x.std(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    design = np.column_stack([np.ones(x.shape[1]), *x, *x**2])
    y = miwv[known].astype(np.float64)
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    residual[known] = y - design @ coefficients
    return residual


def _drawn(measured: Measured) -> np.ndarray:
    return np.random.default_rng(measured.draw).random(len(measured.response_tokens))


def _finite(losses: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(losses), losses, np.nan)


SCORES: Mapping[ScoreName, Callable[[Measured], np.ndarray]] = {
    "miwv": lambda measured: measured.miwv,
    "low_miwv": lambda measured: -measured.miwv,
    "residual_miwv": residual_miwv,
    "zero_shot_loss": lambda measured: _finite(measured.zero_shot_loss),
    "one_shot_loss": lambda measured: _finite(measured.one_shot_loss),
    "random": _drawn,
    "longest": lambda measured: measured.response_tokens,
}
# How hard samples are, where the score itself does not tell; "random" tells nothing.
DIFFICULTIES: Mapping[ScoreName, ScoreName] = {"low_miwv": "miwv", "residual_miwv": "miwv"}


def difficulties(measured: Measured, name: ScoreName) -> np.ndarray:
    """`(N,)` how hard samples are, NaN where that is not known: MIWV, or the loss or length that `name` ranks by."""
    return SCORES[DIFFICULTIES.get(name, name)](measured)


def score_samples(measured: Measured, name: ScoreName, has_prompt_and_response: np.ndarray) -> np.ndarray:
    """`(N,)` float32 scores; NaN also where a sample lacks prompt or response."""
    scores = SCORES[name](measured).astype(np.float32)
    return np.where(has_prompt_and_response, scores, np.nan).astype(np.float32)
