"""The losses of a model on a pool's responses, without exemplars: of held-out samples, say."""

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from miwv_trainer.checks import check_argument
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import A_POOL, Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.scoring.causality import check_causal
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.losses import score_batches
from miwv_trainer.scoring.model_checks import A_MODEL, check_model
from miwv_trainer.scoring.padding import settle_padding
from miwv_trainer.scoring.rows import plan_zero_shot
from miwv_trainer.scoring.scorer import prepare_scorer


def compute_response_losses(
    model: PreTrainedModel, pool: Pool, tokens_per_batch: int = 4096, show_progress: bool = False
) -> np.ndarray:
    """
    Computes the mean negative log-likelihood of each response in nats per token, which is a round's zero-shot loss.

    Leaves no trace in the model. Each process computes all of it, so the model must be whole on each.

    Args:
        model: A causal language model of transformers, or a PEFT model around one.
        pool: From `pool_from_rows` or `pool_from_tokenized`.
        tokens_per_batch: Most tokens of one forward, padding included. A longer sample is forwarded alone.
        show_progress: Whether a progress bar is shown.

    Returns:
        `(N,)` float32; NaN where a sample has no prompt or no response, does not fit the context, or its loss is not
        finite.

    Raises:
        TypeError: the model is none, or the pool.
        ValueError: the model is no causal language model, is prompt-tuned, or has another vocabulary than the pool.
    """
    call = "compute_response_losses(model, pool)"
    check_argument(call, "model", model, nn.Module, A_MODEL)
    check_argument(call, "pool", pool, Pool, A_POOL)
    check_model(model, pool)
    scorer = prepare_scorer(model, pool, MIWVConfig(), World(0, 1, model.device, quiet=not show_progress))
    with leave_no_trace(scorer.model):
        check_causal(scorer)
        scorer = settle_padding(scorer)
        batches = plan_zero_shot(pool, scorer.context, tokens_per_batch, sharing=scorer.sharing)
        return score_batches(scorer, batches).zero_shot
