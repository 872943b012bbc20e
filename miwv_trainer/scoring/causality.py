"""
Whether a model sees the tokens that follow, asked before the first row.

BERT and its relatives load as causal language models and attend in both directions unless they are told otherwise. A
response token would then be predicted by a model that reads it. `model_checks.py` knows some of them by their
configuration, but no entry tells this of all families. So the later tokens of a short sequence are exchanged: the
logits before them must stay.
"""

import numpy as np
import torch
from torch import nn

from miwv_trainer.data.pool import Pool
from miwv_trainer.scoring.isolation import get_device, watch_autocast
from miwv_trainer.scoring.model_checks import explain_sight
from miwv_trainer.scoring.padding import explain_random, find_dtype
from miwv_trainer.scoring.root_forward import ForwardInputs, has_fused_head, run_root_forward
from miwv_trainer.scoring.scorer import Scorer

KEPT, EXCHANGED = 4, 4
# The largest change of a score before the exchanged tokens, as a share of the largest behind them. It is 0 in most
# causal models; routing to experts changes the last bits.
TOLERANCE = {torch.float32: 1e-3}
TOLERANCE_LOW_PRECISION = 2e-2


def check_causal(scorer: Scorer) -> None:
    """
    Checks that the model predicts each token from those before it, by one forward of two short rows.

    The model is in evaluation mode. All ranks call this together.

    Raises:
        ValueError: it sees tokens that follow, or gives the same row other logits each time.
    """
    with scorer.world.run_turn("asking whether the model is causal"):
        rows = _make_rows(scorer.pool)
        with watch_autocast(scorer.model) as noticed:
            scores = _compute_scores(scorer.model, rows)
        tolerance = TOLERANCE.get(find_dtype(scorer.model, any(noticed)), TOLERANCE_LOW_PRECISION)
        if _differs_early(scores[0], scores[1], rows, tolerance):
            # A forward that draws random numbers looks alike. It is asked again only here, as this is rare.
            again = _compute_scores(scorer.model, rows)
            is_random = _differs_early(scores[0], again[0], rows, tolerance)
            raise ValueError((explain_random if is_random else explain_sight)(scorer.model))


def _make_rows(pool: Pool) -> np.ndarray:
    """`(2, length)`: the first tokens of the pool, and the same with other tokens of the pool at the end."""
    tokens = np.concatenate([pool.preamble, pool.tokens])
    row = tokens[: KEPT + EXCHANGED]
    least, most = tokens.min(), tokens.max()
    other = row.copy()
    kept = min(KEPT, len(row) // 2)
    other[kept:] = np.where(row[kept:] == least, most, least)
    return np.stack([row, other])


def _compute_scores(model: nn.Module, rows: np.ndarray) -> torch.Tensor:
    """
    `(2, positions, scores)`: the logits; behind TRL's fused head the log-probability of the first row's next token.

    Where there is a fused head, the model's own is not run: under ZeRO-3, DeepSpeed would fetch its weight ahead in the
    next forward, in which TRL gathers it, and stop with "Cannot partition a param in flight".
    """
    ids = torch.from_numpy(rows.astype(np.int64)).to(get_device(model))
    inputs: ForwardInputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if has_fused_head(model):
        labels = ids[:1].repeat(len(ids), 1)
        return run_root_forward(model, inputs, labels=labels, fused_lm_head=True).log_probs.float().unsqueeze(-1)
    return run_root_forward(model, inputs).logits.float()


def _differs_early(scores: torch.Tensor, others: torch.Tensor, rows: np.ndarray, tolerance: float) -> bool:
    """Whether scores of a row differ before its exchanged tokens, measured by how much they differ behind."""
    changes = (scores - others).abs().amax(dim=-1).cpu().numpy()
    kept = int((rows[0] == rows[1]).argmin())
    # NaN compares as false: the round will say that no loss is finite.
    return bool(changes[:kept].max(initial=0) > tolerance * changes[kept:].max(initial=0))
