"""The `"model"` embedder: the mean of the trained model's last hidden states over each prompt."""

import numpy as np
import torch
from torch import nn

from miwv_trainer.distributed.wrappers import get_inner_model
from miwv_trainer.scoring.forwards import run_forwards
from miwv_trainer.scoring.isolation import get_device
from miwv_trainer.scoring.root_forward import forward_one_position
from miwv_trainer.scoring.row_losses import pad_rows
from miwv_trainer.scoring.rows import PaddedBatch, Row, make_prompt_row
from miwv_trainer.scoring.scorer import Scorer


def embed_prompts(scorer: Scorer, batches: list[PaddedBatch]) -> np.ndarray:
    """
    `(N, hidden)` float32 means of the last hidden states over each prompt's tokens, on every rank.

    Args:
        batches: From [`~miwv_trainer.scoring.rows.plan_prompts`].
    """
    model, pool, world = scorer.model, scorer.pool, scorer.world

    def embed(batch: PaddedBatch) -> np.ndarray:
        rows = [make_prompt_row(pool, sample, scorer.context) for sample in batch.samples.tolist()]
        return average_hidden_states(model, rows)

    embeddings: np.ndarray | None = None
    for batch, means in run_forwards(model, batches, embed, world, "embedding the prompts with the model"):
        if embeddings is None:
            embeddings = np.zeros((len(pool), means.shape[1]), dtype=np.float32)
        embeddings[batch.samples] = means
    # Rank 0 always has a batch; a rank without one learns the width from it.
    width = world.broadcast_from_main(0 if embeddings is None else embeddings.shape[1])
    if embeddings is None:
        embeddings = np.zeros((len(pool), width), dtype=np.float32)
    return world.all_reduce_sum(embeddings)


def average_hidden_states(model: nn.Module, rows: list[Row]) -> np.ndarray:
    """`(rows, hidden)` means over each row's targets of what the backbone puts out during a root forward."""
    inputs = pad_rows(rows, get_device(model))
    outputs: list[torch.Tensor] = []
    # A hook rather than `output_hidden_states=True`, which keeps the states of every layer.
    hook = get_inner_model(model).base_model.register_forward_hook(
        lambda module, args, output: outputs.append(output.last_hidden_state)
    )
    try:
        forward_one_position(model, inputs)
    finally:
        hook.remove()
    (hidden,) = outputs
    is_prompt = torch.zeros(hidden.shape[:2], device=hidden.device)
    for number, row in enumerate(rows):
        is_prompt[number, torch.as_tensor(row.targets, device=hidden.device)] = 1
    means = torch.einsum("bth,bt->bh", hidden.float(), is_prompt) / is_prompt.sum(dim=1, keepdim=True)
    return means.cpu().numpy()
