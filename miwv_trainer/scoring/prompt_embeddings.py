"""The `"model"` embedder: the mean of the trained model's last hidden states over each prompt."""

from typing import Literal

import numpy as np
import torch
from torch import nn
from transformers.utils import ModelOutput

from miwv_trainer.distributed.wrappers import get_inner_model
from miwv_trainer.scoring.forwards import run_forwards
from miwv_trainer.scoring.isolation import get_device
from miwv_trainer.scoring.root_forward import (
    PADDING_ID,
    ForwardInputs,
    forward_one_position,
    hook_head_input,
    keep_first_position,
    run_root_forward,
)
from miwv_trainer.scoring.row_losses import pad_rows
from miwv_trainer.scoring.rows import PaddedBatch, Row, make_prompt_row
from miwv_trainer.scoring.scorer import Scorer

# What the backbone puts out, or what the head gets.
HiddenStates = Literal["backbone", "head"]


def embed_prompts(scorer: Scorer, batches: list[PaddedBatch]) -> np.ndarray:
    """
    `(N, hidden)` float32 means of the last hidden states over each prompt's tokens, on every rank.

    Args:
        batches: From [`~miwv_trainer.scoring.rows.plan_prompts`].
    """
    model, pool, world = scorer.model, scorer.pool, scorer.world
    with world.run_turn("embedding the prompts with the model"):
        source = choose_hidden_states(model)

    def embed(batch: PaddedBatch) -> np.ndarray:
        rows = [make_prompt_row(pool, sample, scorer.context) for sample in batch.samples.tolist()]
        return average_hidden_states(model, rows, source)

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


def choose_hidden_states(model: nn.Module) -> HiddenStates:
    """
    Where the last hidden states of a model are read, from a root forward of four tokens: what its backbone puts out,
    or, where the forward does not call the backbone as a module (OPT, decoders of BART's kind), what its head gets.

    Raises:
        ValueError: neither has one vector a token.
    """
    ids = torch.full((2, 2), PADDING_ID, dtype=torch.long, device=get_device(model))
    inputs: ForwardInputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    sources: tuple[HiddenStates, ...] = ("backbone", "head")
    for source in sources:
        found = _record_hidden_states(model, inputs, source)
        if len(found) == 1 and found[0].ndim == 3 and found[0].shape[:2] == ids.shape:
            return source
    raise ValueError(
        f"{type(get_inner_model(model)).__name__} cannot embed the prompts: its forward shows the last hidden state of "
        'each token neither as the output of its backbone nor before its head. Use another `embedder` than "model".'
    )


def _record_hidden_states(model: nn.Module, inputs: ForwardInputs, source: HiddenStates) -> list[torch.Tensor]:
    """The hidden states that pass the source in one root forward."""
    found: list[torch.Tensor] = []

    def record_input(module: nn.Module, args: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
        found.extend(args[:1])
        return keep_first_position(args[0]) if args and args[0].ndim == 3 else None

    def record_output(module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, ModelOutput) and isinstance(output.get("last_hidden_state"), torch.Tensor):
            found.append(output["last_hidden_state"])

    if source == "head":
        # Without `logits_to_keep`, which would cut the head's input to one position.
        with hook_head_input(model, record_input):
            run_root_forward(model, inputs)
        return found
    # A hook rather than `output_hidden_states=True`, which keeps the states of every layer.
    hook = get_inner_model(model).base_model.register_forward_hook(record_output)
    try:
        forward_one_position(model, inputs)
    finally:
        hook.remove()
    return found


def average_hidden_states(model: nn.Module, rows: list[Row], source: HiddenStates = "backbone") -> np.ndarray:
    """`(rows, hidden)` means over each row's targets of the last hidden states in a root forward."""
    (hidden,) = _record_hidden_states(model, pad_rows(rows, get_device(model)), source)
    is_prompt = torch.zeros(hidden.shape[:2], device=hidden.device)
    for number, row in enumerate(rows):
        is_prompt[number, torch.as_tensor(row.targets, device=hidden.device)] = 1
    means = torch.einsum("bth,bt->bh", hidden.float(), is_prompt) / is_prompt.sum(dim=1, keepdim=True)
    return means.cpu().numpy()
