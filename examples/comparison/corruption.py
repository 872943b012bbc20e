"""Faults of a pool as people have them, made on purpose: swapped, truncated and duplicated samples.

They are made of token ids, so that they do not depend on the columns of a dataset. Held-out samples stay clean.
"""

import argparse
from dataclasses import dataclass

import datasets
import numpy as np

IGNORED = -100  # the label of a token that is not response
KINDS = ("swapped", "truncated", "duplicated")
SHORTEST, LONGEST = 0.1, 0.6  # shares of its tokens to which a response is cut


@dataclass(frozen=True)
class Tokens:
    """One sample as lists: token ids, and their labels."""

    ids: list[int]
    labels: list[int]

    @property
    def start(self) -> int:
        """The position of the first response token; behind the last token if there is none."""
        return next((place for place, label in enumerate(self.labels) if label != IGNORED), len(self.labels))


def parse_corruptions(typed: str) -> dict[str, float]:
    """`{"swapped": 0.3}` from `swapped=0.3`, and several of them from a list with commas."""
    found: dict[str, float] = {}
    for part in typed.split(","):
        kind, _, share = (word.strip() for word in part.partition("="))
        try:
            value = float(share)
        except ValueError:
            value = 0
        if kind not in KINDS or not 0 < value <= 1:
            raise argparse.ArgumentTypeError(
                f"must be one of {', '.join(KINDS)} with a share of the pool, as in swapped=0.3, but got "
                f"{part.strip()!r}"
            )
        found[kind] = value
    return found


def merge_corruptions(given: list[dict[str, float]] | None) -> dict[str, float]:
    """All that was typed after `--corrupt`, in the order of `KINDS`. A sample has one fault at most."""
    merged = {kind: share for one in given or [] for kind, share in one.items()}
    if sum(merged.values()) > 1:
        raise SystemExit(f"--corrupt asks for more than the whole pool: {merged}. The shares may add up to 1.")
    return {kind: merged[kind] for kind in KINDS if kind in merged}


def corrupt(
    samples: datasets.Dataset, shares: dict[str, float], seed: int = 0
) -> tuple[datasets.Dataset, dict[str, np.ndarray]]:
    """
    Spoils a share of tokenised samples for each kind of fault.

    Args:
        samples: With `input_ids` and `labels`. Other columns stay; a copy has those of what it is a copy of.
        shares: From `merge_corruptions`.

    Returns:
        The samples, and for each kind an `(N,)` mask of those that have it.

    Raises:
        SystemExit: a share is of less than one sample, or of a single one to be swapped.
    """
    if not shares:
        return samples, {}
    both = zip(samples["input_ids"], samples["labels"], strict=True)
    tokens = [Tokens(list(ids), list(labels)) for ids, labels in both]
    sources = np.arange(len(tokens))
    generator = np.random.default_rng([seed, len(tokens)])
    order = generator.permutation(len(tokens))
    masks: dict[str, np.ndarray] = {}
    begin = 0
    for kind, share in shares.items():
        chosen = order[begin : begin + int(share * len(tokens) + 1e-9)]
        begin += len(chosen)
        least = 2 if kind == "swapped" else 1
        if len(chosen) < least:
            raise SystemExit(f"--corrupt {kind}={share} of {len(tokens)} samples is {len(chosen)}: at least {least}.")
        masks[kind] = np.isin(np.arange(len(tokens)), chosen)
        if kind == "duplicated":
            sources[chosen] = draw_originals(len(tokens), chosen, generator)
            continue
        for index, sample in zip(chosen, _spoil(kind, tokens, chosen, generator), strict=True):
            tokens[index] = sample
    return _replace_tokens(samples.select(sources), [tokens[source] for source in sources]), masks


def _spoil(kind: str, tokens: list[Tokens], chosen: np.ndarray, generator: np.random.Generator) -> list[Tokens]:
    if kind == "swapped":
        return swap_responses([tokens[index] for index in chosen])
    ending = find_common_ending([response_of(sample) for sample in tokens])
    shares = generator.uniform(SHORTEST, LONGEST, len(chosen))
    return [truncate(tokens[index], share, ending) for index, share in zip(chosen, shares, strict=True)]


def draw_originals(count: int, copies: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Of `count` samples, for each that becomes a copy the one that it is a copy of."""
    others = np.setdiff1d(np.arange(count), copies)
    if not len(others):
        raise SystemExit("--corrupt duplicated=1 leaves no sample to make copies of.")
    return generator.choice(others, len(copies))


def swap_responses(samples: list[Tokens]) -> list[Tokens]:
    """Gives each sample the response of the next one. What comes after the first response token goes with it."""
    swapped = []
    for sample, other in zip(samples, samples[1:] + samples[:1], strict=True):
        ids = sample.ids[: sample.start] + other.ids[other.start :]
        swapped.append(Tokens(ids, sample.labels[: sample.start] + other.labels[other.start :]))
    return swapped


def truncate(sample: Tokens, share: float, ending: int) -> Tokens:
    """
    Keeps a share of the response, at least a token, and the ending that all responses have (an end of turn).

    Args:
        ending: Number of its tokens.
    """
    start, count = sample.start, len(sample.ids)
    kept = start + max(1, int(share * (count - ending - start)))
    if kept >= count - ending:
        return sample
    return Tokens(
        sample.ids[:kept] + sample.ids[count - ending :], sample.labels[:kept] + sample.labels[count - ending :]
    )


def response_of(sample: Tokens) -> list[int]:
    """Its tokens from the first response token on."""
    return sample.ids[sample.start :]


def find_common_ending(responses: list[list[int]]) -> int:
    """How many tokens at their end are the same in all responses."""
    shortest = min(map(len, responses))
    for length in range(shortest):
        if len({response[-1 - length] for response in responses}) > 1:
            return length
    return shortest


def _replace_tokens(samples: datasets.Dataset, tokens: list[Tokens]) -> datasets.Dataset:
    columns = {"input_ids": [sample.ids for sample in tokens], "labels": [sample.labels for sample in tokens]}
    if "attention_mask" in samples.column_names:
        columns["attention_mask"] = [[1] * len(sample.ids) for sample in tokens]
    for name, values in columns.items():
        samples = samples.remove_columns(name).add_column(name, values)
    return samples
