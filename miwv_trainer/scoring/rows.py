"""
The padded layout: each sample is one row without its exemplar (zero-shot loss) and one behind it (one-shot loss), or
one behind each of several exemplars.

Rows are sorted by length, so that little is padded. The price is that an exemplar is forwarded again for each sample
that retrieved it: about three times the pool's own tokens in all. Every causal model takes these rows.

Rows are composed over the whole pool before they are dealt to ranks, so that scores do not depend on the number of
ranks. (The same row in another batch has other last bits: lm-evaluation-harness#1645.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from miwv_trainer.data.pool import NO_EXEMPLAR, Pool, rank_columns
from miwv_trainer.scoring.sharing import ALL_SHARE, Sharing

# Which loss of a sample a row gives: behind its prompt, behind exemplar and prompt, or of its response alone. The kinds
# from 3 on are behind further exemplars: 3 behind the second nearest, 4 behind the third.
ZERO_SHOT, ONE_SHOT, RESPONSE = 0, 1, 2


def get_one_shot_kind(rank: int) -> int:
    """The kind of the loss behind the exemplar of a rank, 0 for the nearest."""
    return ONE_SHOT if rank == 0 else RESPONSE + rank


def get_rank(kind: int) -> int:
    """The rank of the exemplar that a one-shot loss is behind, 0 for the nearest."""
    return 0 if kind == ONE_SHOT else kind - RESPONSE


def count_kinds(exemplars_per_sample: int) -> int:
    """How many losses a sample may have: behind its prompt, alone, and behind each of its exemplars."""
    return 2 + exemplars_per_sample


@dataclass(frozen=True)
class Row:
    """One sequence: `(length,)` token ids, and `(targets,)` positions of the response tokens that are scored in it."""

    ids: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class PaddedBatch:
    """
    Rows that are forwarded together.

    Args:
        samples: `(rows,)` index of each row's sample.
        kinds: `(rows,)` which of the sample's losses the row gives: `ZERO_SHOT`, `RESPONSE`, or one behind an exemplar.
        lengths: `(rows,)` each row's tokens, without padding.
    """

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
        """The same rows in two batches; none if there is only one row."""
        middle = len(self.samples) // 2
        if not middle:
            return []
        return [
            PaddedBatch(self.samples[part], self.kinds[part], self.lengths[part])
            for part in (slice(None, middle), slice(middle, None))
        ]


def find_scorable(pool: Pool, exemplars: np.ndarray, context: int) -> np.ndarray:
    """`(N,)` bool: the samples with prompt, response and exemplar that leave room for at least one exemplar token."""
    fits = len(pool.preamble) + pool.lengths < context
    return pool.has_prompt_and_response & (rank_columns(exemplars)[:, 0] != NO_EXEMPLAR) & fits


def restrict_exemplars(samples: np.ndarray, exemplars: np.ndarray) -> np.ndarray:
    """The exemplars of `samples` (indices or a mask), and none for the others, which are then not scored."""
    chosen = np.full_like(exemplars, NO_EXEMPLAR)
    chosen[samples] = exemplars[samples]
    return chosen


def make_zero_shot_row(pool: Pool, sample: int) -> Row:
    """The sample without an exemplar: preamble, prompt, response."""
    start = len(pool.preamble)
    ids = np.concatenate([pool.preamble, pool.sample(sample)])
    return Row(ids, start + np.flatnonzero(pool.response_mask(sample)))


def make_one_shot_row(pool: Pool, sample: int, exemplar: int, context: int) -> Row:
    """
    The sample behind its exemplar: preamble, exemplar, prompt, response.

    An exemplar that does not fit loses its beginning, so that its response and end of turn stay. The sample is never
    cut: its two losses must be over the same tokens.
    """
    room = context - len(pool.preamble) - int(pool.lengths[sample])
    shown = pool.sample(exemplar)[-room:]
    start = len(pool.preamble) + len(shown)
    ids = np.concatenate([pool.preamble, shown, pool.sample(sample)])
    return Row(ids, start + np.flatnonzero(pool.response_mask(sample)))


def make_response_row(pool: Pool, sample: int) -> Row:
    """
    The response without its prompt: preamble, generation prompt, response. Each turn of several has its own opening,
    shorter where the last characters of the opening and the first of the response are one token.

    Where nothing stands before it, the first token of the row is predicted by none and is not scored.
    """
    ids, mask = pool.sample(sample), pool.response_mask(sample)
    begins = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0) == 1)
    ends = np.flatnonzero(np.diff(mask.astype(np.int8), append=0) == -1) + 1
    lengths = _measure_openings(pool, pool.offsets[sample] + begins)
    parts, is_target = [pool.preamble], [np.zeros(len(pool.preamble), dtype=bool)]
    for begin, end, length in zip(begins, ends, lengths.tolist(), strict=True):
        parts += [_get_opening(pool)[:length], ids[begin:end]]
        is_target += [np.zeros(length, dtype=bool), np.ones(end - begin, dtype=bool)]
    targets = np.flatnonzero(np.concatenate(is_target))
    return Row(np.concatenate(parts), targets[targets > 0])


def count_response_row_tokens(pool: Pool) -> np.ndarray:
    """`(N,)` tokens of each sample's row of the response alone; 0 where it would score no token."""
    begins = pool.response_begins
    of_sample = np.searchsorted(pool.offsets, begins, side="right") - 1
    openings = np.bincount(of_sample, weights=_measure_openings(pool, begins), minlength=len(pool)).astype(np.int64)
    lengths = len(pool.preamble) + pool.response_tokens + openings
    has_target = pool.response_tokens > (0 if len(pool.preamble) + len(_get_opening(pool)) else 1)
    return np.where(has_target, lengths, 0)


def _measure_openings(pool: Pool, begins: np.ndarray) -> np.ndarray:
    """
    How many tokens of the opening stand before each response when it is alone: all, or as many as its prompt ends with.

    Args:
        begins: `(responses,)` where they begin among the pool's tokens.
    """
    opening = _get_opening(pool)
    lengths = np.full(len(begins), len(opening))
    for length in range(1, len(opening) + 1):
        # Positions before the first token wrap around; such a response has no prompt and is not scored.
        window = pool.tokens[begins[:, None] - np.arange(length, 0, -1)]
        lengths[(window == opening[:length]).all(axis=1)] = length
    return lengths


def _get_opening(pool: Pool) -> np.ndarray:
    return np.empty(0, dtype=np.int32) if pool.opening is None else pool.opening


def make_rows(batch: PaddedBatch, pool: Pool, exemplars: np.ndarray | None, context: int) -> list[Row]:
    """
    The rows of a batch, in its order.

    Args:
        exemplars: `(N,)` index of each sample's exemplar, or `(N, m)` of its nearest ones; None if no row is one-shot.

    Raises:
        ValueError: a row is one-shot and there are no exemplars.
    """
    rows, ranked = [], None if exemplars is None else rank_columns(exemplars)
    for sample, kind in zip(batch.samples.tolist(), batch.kinds.tolist(), strict=True):
        if kind == ZERO_SHOT:
            rows.append(make_zero_shot_row(pool, sample))
        elif kind == RESPONSE:
            rows.append(make_response_row(pool, sample))
        elif ranked is None:
            raise ValueError(f"Sample {sample} is to be scored behind its exemplar, but no exemplars were given.")
        else:
            rows.append(make_one_shot_row(pool, sample, int(ranked[sample, get_rank(kind)]), context))
    return rows


def plan_padded(
    pool: Pool, exemplars: np.ndarray, context: int, tokens_per_batch: int, sharing: Sharing = ALL_SHARE
) -> list[PaddedBatch]:
    """Batches with each scorable sample once without and once behind each of its exemplars, longest first."""
    return plan_losses(pool, exemplars, context, tokens_per_batch, sharing, kinds=(ZERO_SHOT, ONE_SHOT))


def plan_losses(
    pool: Pool,
    exemplars: np.ndarray,
    context: int,
    tokens_per_batch: int,
    sharing: Sharing = ALL_SHARE,
    *,
    kinds: Sequence[int],
) -> list[PaddedBatch]:
    """
    Batches with a row of each kind for each scorable sample, longest first.

    Args:
        exemplars: `(N,)` index of each sample's exemplar, or `(N, m)` of its nearest ones, each of which gives a row of
            the kind `ONE_SHOT`; where no row is one-shot, any index makes a sample scorable.
    """
    samples = np.flatnonzero(find_scorable(pool, exemplars, context))
    zero_shot = len(pool.preamble) + pool.lengths[samples]
    lengths_of = {ZERO_SHOT: zero_shot}
    if RESPONSE in kinds:
        lengths_of[RESPONSE] = count_response_row_tokens(pool)[samples]
    ranked = rank_columns(exemplars)[samples]
    if ONE_SHOT in kinds:
        at = kinds.index(ONE_SHOT)
        one_shot = [get_one_shot_kind(rank) for rank in range(ranked.shape[1])]
        kinds = [*kinds[:at], *one_shot, *kinds[at + 1 :]]
        for kind, shown in zip(one_shot, ranked.T, strict=True):
            behind = np.minimum(zero_shot + pool.lengths[shown], context)
            lengths_of[kind] = np.where(shown == NO_EXEMPLAR, 0, behind)
    lengths = np.concatenate([lengths_of[kind] for kind in kinds])
    is_row = lengths > 0
    all_kinds, all_samples = np.repeat(kinds, len(samples)), np.tile(samples, len(kinds))
    return _fill_batches(all_samples[is_row], all_kinds[is_row], lengths[is_row], tokens_per_batch, sharing)


def plan_zero_shot(
    pool: Pool,
    context: int,
    tokens_per_batch: int,
    among: np.ndarray | None = None,
    sharing: Sharing = ALL_SHARE,
) -> list[PaddedBatch]:
    """
    Batches of samples with prompt and response that fit the context, without exemplars, longest first.

    Args:
        among: Indices of the samples that may be taken; None for all.
    """
    lengths = len(pool.preamble) + pool.lengths
    samples = np.flatnonzero(pool.has_prompt_and_response & (lengths <= context))
    samples = samples if among is None else np.intersect1d(samples, among)
    return _fill_batches(samples, np.full(len(samples), ZERO_SHOT), lengths[samples], tokens_per_batch, sharing)


def plan_prompts(pool: Pool, context: int, tokens_per_batch: int, sharing: Sharing = ALL_SHARE) -> list[PaddedBatch]:
    """Batches of each sample's prompt behind the preamble, longest first: the rows of the `"model"` embedder."""
    lengths = np.minimum(len(pool.preamble) + pool.prompt_tokens, context)
    samples = np.flatnonzero(lengths > 0)
    return _fill_batches(samples, np.zeros(len(samples), dtype=np.int64), lengths[samples], tokens_per_batch, sharing)


def make_prompt_row(pool: Pool, sample: int, context: int) -> Row:
    """Preamble and prompt, cut to the context; `targets` are the prompt's positions."""
    ids = np.concatenate([pool.preamble, pool.prompt(sample)])[:context]
    return Row(ids, np.arange(min(len(pool.preamble), len(ids) - 1), len(ids)))


def _fill_batches(
    samples: np.ndarray, kinds: np.ndarray, lengths: np.ndarray, tokens_per_batch: int, sharing: Sharing
) -> list[PaddedBatch]:
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = int(lengths[order[start]])
        rows = order[start : start + max(tokens_per_batch // longest, 1)]
        rows = rows[: sharing.count_companions(lengths[rows])]
        batches.append(PaddedBatch(samples[rows], kinds[rows], lengths[rows]))
        start += len(rows)
    return batches
