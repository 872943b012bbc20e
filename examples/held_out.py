"""Evaluates a model on held-out samples: its loss on their responses, and its own answers."""

from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from miwv_trainer import compute_response_losses, pool_from_tokenized
from miwv_trainer.metrics import metric_path


def measure_held_out_loss(
    model: Any, held_out: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, show_progress: bool = False
) -> float:
    """Mean negative log-likelihood per response token, over all response tokens of tokenised samples."""
    pool = pool_from_tokenized(held_out, tokenizer, with_texts=False)
    losses = compute_response_losses(model, pool, show_progress=show_progress)
    scored = np.isfinite(losses)
    metric = evaluate.load(metric_path("response_loss"))
    return metric.compute(predictions=losses[scored], references=pool.response_tokens[scored])["response_loss"]


def score_generations(
    model: Any, held_out: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> dict[str, float]:
    """
    Exact match and ROUGE-L of greedy generations against the held-out responses.

    Args:
        model: The model.
        held_out: Tokenised samples; prompts and references are read from their tokens.
        tokenizer: Its tokenizer.
        max_new_tokens: Longest generation.
    """
    pool = pool_from_tokenized(held_out, tokenizer, with_texts=False)
    prompts = [np.concatenate([pool.preamble, pool.prompt(index)]) for index in range(len(pool))]
    responses = [pool.sample(index)[pool.response_mask(index)] for index in range(len(pool))]
    generated = _generate(model, prompts, tokenizer, max_new_tokens)
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in generated]
    references = [[tokenizer.decode(ids, skip_special_tokens=True).strip()] for ids in responses]
    found: dict[str, float] = {}
    for name in ("exact_match", "rouge_l"):
        found |= evaluate.load(metric_path(name)).compute(predictions=texts, references=references)
    return found


@torch.no_grad()
def _generate(
    model: Any, prompts: list[np.ndarray], tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> torch.Tensor:
    """`(samples, n)` tokens that follow each prompt, n at most `max_new_tokens`."""
    # Padded on the left, so that all prompts end where their answers begin.
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), tokenizer.pad_token_id)
    for row, prompt in zip(ids, prompts, strict=True):
        row[longest - len(prompt) :] = torch.as_tensor(prompt)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = (torch.arange(longest) >= longest - lengths[:, None]).long()
    was_training = model.training
    model.eval()
    try:
        generated = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    finally:
        model.train(was_training)
    return generated[:, longest:]
