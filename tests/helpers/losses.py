"""Random samples, and their losses by a plain forward."""

import numpy as np
import torch

from miwv_trainer.data.pool import Pool

PREAMBLE = [1, 2]


CONTEXT = 128


def random_samples(count: int = 9, seed: int = 0) -> list[list[tuple[int, bool]]]:
    """Samples as (token, is response) pairs, of uneven lengths; the last two have two response spans."""
    generator = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        spans = [(int(generator.integers(3, 14)), False), (int(generator.integers(1, 12)), True)]
        spans *= 1 + (index >= count - 2)
        samples.append([(int(generator.integers(3, 512)), flag) for length, flag in spans for _ in range(length)])
    return samples


def pool_of(samples: list[list[tuple[int, bool]]]) -> Pool:
    pairs = [pair for sample in samples for pair in sample]
    return Pool(
        preamble=np.asarray(PREAMBLE, dtype=np.int32),
        tokens=np.asarray([token for token, _ in pairs], dtype=np.int32),
        is_response=np.asarray([flag for _, flag in pairs]),
        offsets=np.cumsum([0, *map(len, samples)]),
    )


SAMPLES = random_samples()


EXEMPLARS = np.array([4, 0, 5, 1, 8, 7, 2, 3, 6])


def loss_by_hand(model, before: list[int], sample: list[tuple[int, bool]]) -> float:
    """One sequence, all logits, the log-softmax read out token by token."""
    ids = before + [token for token, _ in sample]
    with torch.no_grad():
        inputs = torch.tensor([ids])
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits[0]
    log_p = logits.float().log_softmax(dim=-1)
    positions = [len(before) + offset for offset, (_, is_response) in enumerate(sample) if is_response]
    return -sum(log_p[t - 1, ids[t]].item() for t in positions) / len(positions)


def losses_by_hand(model, samples=SAMPLES, exemplars=EXEMPLARS, context: int = CONTEXT) -> np.ndarray:
    """`(2, N)` zero-shot and one-shot losses."""
    losses = []
    for sample, exemplar in zip(samples, exemplars, strict=True):
        room = context - len(PREAMBLE) - len(sample)
        shown = [token for token, _ in samples[exemplar]]
        shown = shown[max(len(shown) - room, 0) :]
        losses.append([loss_by_hand(model, PREAMBLE, sample), loss_by_hand(model, PREAMBLE + shown, sample)])
    return np.transpose(losses)
