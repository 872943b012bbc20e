"""How samples share a forward. Rows are composed over the whole pool before they are dealt to ranks, so that scores do
not depend on the number of ranks.

The padded layout: every sample is one row without an exemplar (its zero-shot loss) and one row behind its exemplar
(its one-shot loss). Rows are sorted by length, so that little is padded. The price is that an exemplar is forwarded
again for every sample that retrieved it: about three times the pool's own tokens in all.

The tree layout: attention is causal and the exemplar comes first, so an exemplar's own sequence is a trunk behind which
every sample that retrieved it is a branch, which sees the trunk and itself. The trunk gives the exemplar's zero-shot
loss, each branch its sample's one-shot loss: about twice the pool's own tokens. The price is a mask of its own for each
row, and trunks that stand again where their branches fill several rows.
"""

from dataclasses import dataclass

import numpy as np

from miwv_trainer.data.pool import NO_EXEMPLAR, Pool

ZERO_SHOT, ONE_SHOT = 0, 1


@dataclass(frozen=True)
class Row:
    """One sequence to forward: `(length,)` ids, and the positions of the response tokens that are scored in it."""

    ids: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class PaddedBatch:
    """Rows forwarded together: for each, the sample, which of its two losses (`ZERO_SHOT`, `ONE_SHOT`), and tokens."""

    samples: np.ndarray
    kinds: np.ndarray
    lengths: np.ndarray

    @property
    def padded_length(self) -> int:
        """Tokens that every row is padded to."""
        return int(self.lengths.max())

    @property
    def tokens(self) -> int:
        """Tokens forwarded, padding included."""
        return len(self.samples) * self.padded_length

    def halve(self) -> "list[PaddedBatch]":
        """The same rows in two batches; none where there is one row only."""
        middle = len(self.samples) // 2
        if not middle:
            return []
        return [
            PaddedBatch(self.samples[part], self.kinds[part], self.lengths[part])
            for part in (slice(None, middle), slice(middle, None))
        ]


def find_scorable(pool: Pool, exemplars: np.ndarray, context: int) -> np.ndarray:
    """`(N,)` which samples have prompt, response and exemplar, and leave room for at least one exemplar token."""
    fits = len(pool.preamble) + pool.lengths < context
    return pool.has_prompt_and_response & (exemplars != NO_EXEMPLAR) & fits


def restrict_exemplars(samples: np.ndarray, exemplars: np.ndarray) -> np.ndarray:
    """`(N,)` exemplars with which only `samples` (indices, or a mask) are scored."""
    chosen = np.full_like(exemplars, NO_EXEMPLAR)
    chosen[samples] = exemplars[samples]
    return chosen


def make_zero_shot_row(pool: Pool, sample: int) -> Row:
    """The sample by itself: preamble, prompt, response."""
    before = len(pool.preamble)
    ids = np.concatenate([pool.preamble, pool.sample(sample)])
    return Row(ids, before + np.flatnonzero(pool.response_mask(sample)))


def make_one_shot_row(pool: Pool, sample: int, exemplar: int, context: int) -> Row:
    """
    The sample behind its exemplar: preamble, exemplar, prompt, response.

    An exemplar that does not fit loses its beginning, so that its response and end of turn stay; the sample is never
    cut.
    """
    room = context - len(pool.preamble) - int(pool.lengths[sample])
    shown = pool.sample(exemplar)[-room:]
    before = len(pool.preamble) + len(shown)
    ids = np.concatenate([pool.preamble, shown, pool.sample(sample)])
    return Row(ids, before + np.flatnonzero(pool.response_mask(sample)))


def make_rows(batch: PaddedBatch, pool: Pool, exemplars: np.ndarray | None, context: int) -> list[Row]:
    """The rows of a batch, in its order. `exemplars` may be None where no row is one-shot."""
    rows = []
    for sample, kind in zip(batch.samples.tolist(), batch.kinds.tolist(), strict=True):
        if kind == ZERO_SHOT:
            rows.append(make_zero_shot_row(pool, sample))
        elif exemplars is None:
            raise ValueError(f"Sample {sample} is to be scored behind its exemplar, but no exemplars were given.")
        else:
            rows.append(make_one_shot_row(pool, sample, int(exemplars[sample]), context))
    return rows


def plan_padded(pool: Pool, exemplars: np.ndarray, context: int, tokens_per_batch: int) -> list[PaddedBatch]:
    """Every scorable sample once without and once behind its exemplar, longest first."""
    samples = np.flatnonzero(find_scorable(pool, exemplars, context))
    alone = len(pool.preamble) + pool.lengths[samples]
    behind = np.minimum(alone + pool.lengths[exemplars[samples]], context)
    lengths = np.concatenate([alone, behind])
    kinds = np.repeat([ZERO_SHOT, ONE_SHOT], len(samples))
    return _fill_batches(np.tile(samples, 2), kinds, lengths, tokens_per_batch)


def plan_zero_shot(
    pool: Pool, context: int, tokens_per_batch: int, among: np.ndarray | None = None
) -> list[PaddedBatch]:
    """Samples (`among` these) with prompt and response that fit the context, without an exemplar, longest first."""
    lengths = len(pool.preamble) + pool.lengths
    samples = np.flatnonzero(pool.has_prompt_and_response & (lengths <= context))
    samples = samples if among is None else np.intersect1d(samples, among)
    return _fill_batches(samples, np.full(len(samples), ZERO_SHOT), lengths[samples], tokens_per_batch)


def plan_prompts(pool: Pool, context: int, tokens_per_batch: int) -> list[PaddedBatch]:
    """Every sample's prompt behind the preamble, longest first: the rows of the `"model"` embedder."""
    lengths = np.minimum(len(pool.preamble) + pool.prompt_tokens, context)
    samples = np.flatnonzero(lengths > 0)
    return _fill_batches(samples, np.zeros(len(samples), dtype=np.int64), lengths[samples], tokens_per_batch)


def make_prompt_row(pool: Pool, sample: int, context: int) -> Row:
    """Preamble and prompt; `targets` are the prompt's positions."""
    ids = np.concatenate([pool.preamble, pool.prompt(sample)])[:context]
    return Row(ids, np.arange(min(len(pool.preamble), len(ids) - 1), len(ids)))


def _fill_batches(
    samples: np.ndarray, kinds: np.ndarray, lengths: np.ndarray, tokens_per_batch: int
) -> list[PaddedBatch]:
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = int(lengths[order[start]])
        rows = order[start : start + max(tokens_per_batch // longest, 1)]
        batches.append(PaddedBatch(samples[rows], kinds[rows], lengths[rows]))
        start += len(rows)
    return batches
