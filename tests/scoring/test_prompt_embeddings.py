"""The `model` embedder: means of the last hidden states over each prompt."""

import numpy as np
import pytest
import torch

from miwv_trainer.scoring.prompt_embeddings import embed_prompts
from miwv_trainer.scoring.rows import plan_prompts
from tests.helpers.losses import CONTEXT, POOL, PREAMBLE, SAMPLES, model_named, scorer_of


@pytest.mark.parametrize("family", ["llama", "gpt2", "lora", "without logits_to_keep"])
@pytest.mark.parametrize("tokens_per_batch", [1, 60])
def test_model_embeddings_equal_the_mean_of_the_last_hidden_states_over_the_prompt(family, tokens_per_batch):
    model = model_named(family)
    batches = plan_prompts(POOL, CONTEXT, tokens_per_batch)
    with torch.no_grad():
        embeddings = embed_prompts(scorer_of(model), batches)
    base = model.get_base_model() if family == "lora" else model
    for index, sample in enumerate(SAMPLES):
        flags = [is_response for _, is_response in sample]
        prompt = [token for token, _ in sample[: flags.index(True)]]
        with torch.no_grad():
            hidden = base.base_model(input_ids=torch.tensor([PREAMBLE + prompt])).last_hidden_state[0]
        by_hand = hidden[len(PREAMBLE) :].mean(dim=0)
        np.testing.assert_allclose(embeddings[index], by_hand.numpy(), rtol=0, atol=1e-5)


def test_model_embeddings_of_different_prompts_differ(model):
    with torch.no_grad():
        embeddings = embed_prompts(scorer_of(model), plan_prompts(POOL, CONTEXT, 60))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert (unit @ unit.T - 2 * np.eye(len(SAMPLES))).max() < 0.99
