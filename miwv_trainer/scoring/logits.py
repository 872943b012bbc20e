"""
From the head's output to negative log-likelihoods: the scale and cap that a family puts on its logits.

A head that is run by itself skips what the model's forward does to its output, and losses would be wrong without any
error. So scale and cap are read from the configuration, by all names that families of transformers 5.23 give them, and
`head_check` compares the result with the model's own forward.
"""

import torch
from transformers import PretrainedConfig


def finish_logits(logits: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """
    Float32 logits as the model's forward returns them: scaled, then capped by `cap * tanh(logits / cap)`.

    `logits` fresh from the head are changed in place if they are float32 already.
    """
    logits = logits.float()
    scale = _read_scale(config)
    if scale != 1.0:
        logits.mul_(scale)
    cap = _read_first_number(config, "final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    if cap is not None:  # Gemma 2 to 4; RecurrentGemma; xLSTM
        logits.div_(cap).tanh_().mul_(cap)
    return logits


def _read_scale(config: PretrainedConfig) -> float:
    """What the head's output is multiplied by."""
    scale = _read_first_number(config, "logit_scale", "output_multiplier", "lm_head_multiplier")
    if scale is not None:  # Cohere; Muse Glimmer; Falcon-H1
        return scale
    scaling = _read_first_number(config, "logits_scaling")
    if scaling is None or config.model_type == "minicpm3":  # MiniCPM3 divides the hidden states, before the head.
        return 1.0
    # One name, two meanings: HyperCLOVA X multiplies by it, Granite divides.
    return scaling if config.model_type == "hyperclovax" else 1 / scaling


def _read_first_number(config: PretrainedConfig, *names: str) -> float | None:
    """The first of these entries that is a number. (MPT's `logit_scale` may be a word, which its forward ignores.)"""
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if isinstance(value, int | float)), None)


def compute_nll(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """`(targets,)` -log p of each answer under `(targets, vocabulary)` float32 logits, which are overwritten."""
    # In place: `cross_entropy` makes a second matrix of this size, which costs more than the arithmetic.
    given = logits.gather(-1, answers[:, None])[:, 0]
    largest = logits.amax(dim=-1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(dim=-1)
    return total.log() + (largest[:, 0] - given)
