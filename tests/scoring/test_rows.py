from collections import Counter

import numpy as np
import pytest

from miwv_trainer.data.pool import NO_EXEMPLAR, Pool
from miwv_trainer.scoring.rows import (
    ONE_SHOT,
    ZERO_SHOT,
    PaddedBatch,
    find_scorable,
    make_one_shot_row,
    make_prompt_row,
    make_rows,
    make_zero_shot_row,
    plan_padded,
    plan_prompts,
    plan_zero_shot,
)

PREAMBLE = [900, 901]


def pool_of(*samples: str, preamble: list[int] = PREAMBLE) -> Pool:
    """One string a sample, one letter a token: `p` is prompt, `r` is response. Every token id is different."""
    joined = "".join(samples)
    return Pool(
        preamble=np.asarray(preamble, dtype=np.int32),
        tokens=np.arange(len(joined), dtype=np.int32),
        is_response=np.asarray([letter == "r" for letter in joined]),
        offsets=np.cumsum([0, *map(len, samples)]),
    )


def random_pool(count: int = 60, seed: int = 0) -> tuple[Pool, np.ndarray]:
    generator = np.random.default_rng(seed)
    samples = ["p" * generator.integers(1, 12) + "r" * generator.integers(1, 15) for _ in range(count)]
    samples[4], samples[9] = "rrr", "ppp"
    exemplars = (np.arange(count) + generator.integers(1, count, size=count)) % count
    exemplars[7] = NO_EXEMPLAR
    return pool_of(*samples), exemplars


def planned(batches: list[PaddedBatch]) -> list[tuple[int, int]]:
    return [(s, k) for batch in batches for s, k in zip(batch.samples.tolist(), batch.kinds.tolist(), strict=True)]


def test_a_zero_shot_row_is_preamble_prompt_response():
    row = make_zero_shot_row(pool_of("pppr", "pprr"), 1)
    assert row.ids.tolist() == [900, 901, 4, 5, 6, 7]
    assert row.targets.tolist() == [4, 5]


def test_a_one_shot_row_shows_the_preamble_once_and_scores_the_sample_alone():
    row = make_one_shot_row(pool_of("pppr", "pprr"), 1, 0, context=100)
    assert row.ids.tolist() == [900, 901, 0, 1, 2, 3, 4, 5, 6, 7]
    assert row.targets.tolist() == [8, 9]


def test_several_response_spans_are_all_scored():
    pool = pool_of("pr", "pprpprr", preamble=[])
    assert make_zero_shot_row(pool, 1).targets.tolist() == [2, 5, 6]
    assert make_one_shot_row(pool, 1, 0, context=100).targets.tolist() == [4, 7, 8]


def test_both_rows_score_the_same_tokens_whatever_is_cut():
    pool = pool_of("ppppprrrrr", "pprr")
    for context in range(7, 20):
        alone, behind = make_zero_shot_row(pool, 1), make_one_shot_row(pool, 1, 0, context)
        assert alone.ids[alone.targets].tolist() == behind.ids[behind.targets].tolist() == [12, 13]


def test_an_exemplar_that_does_not_fit_loses_its_beginning_and_the_sample_loses_nothing():
    pool = pool_of("ppprrr", "pprr")
    whole = [900, 901, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert make_one_shot_row(pool, 1, 0, context=12).ids.tolist() == whole
    for cut in range(1, 6):
        row = make_one_shot_row(pool, 1, 0, context=12 - cut)
        assert row.ids.tolist() == [900, 901, *whole[2 + cut :]]
        assert row.ids[row.targets].tolist() == [8, 9]


def test_the_rows_of_a_batch_follow_its_order_and_kinds():
    pool = pool_of("pppr", "pprr")
    batch = PaddedBatch(np.array([1, 0, 1]), np.array([ONE_SHOT, ZERO_SHOT, ZERO_SHOT]), np.array([10, 6, 6]))
    rows = make_rows(batch, pool, np.array([1, 0]), context=100)
    assert [row.ids.tolist() for row in rows] == [
        [900, 901, 0, 1, 2, 3, 4, 5, 6, 7],
        [900, 901, 0, 1, 2, 3],
        [900, 901, 4, 5, 6, 7],
    ]


def test_a_one_shot_row_without_exemplars_is_refused():
    batch = PaddedBatch(np.array([1]), np.array([ONE_SHOT]), np.array([10]))
    with pytest.raises(ValueError, match="Sample 1 is to be scored behind its exemplar, but no exemplars were given"):
        make_rows(batch, pool_of("pppr", "pprr"), None, context=100)


def test_a_sample_is_scorable_with_prompt_response_exemplar_and_room_for_one_exemplar_token():
    pool = pool_of("pr", "rr", "pp", "pprr", "pprrr", "pr")
    exemplars = np.array([3, 0, 0, 0, 0, NO_EXEMPLAR])
    assert find_scorable(pool, exemplars, context=7).tolist() == [True, False, False, True, False, False]
    assert find_scorable(pool, exemplars, context=8).tolist() == [True, False, False, True, True, False]


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 100, 10_000])
def test_every_scorable_sample_is_planned_exactly_once_per_kind(tokens_per_batch):
    pool, exemplars = random_pool()
    batches = plan_padded(pool, exemplars, context=40, tokens_per_batch=tokens_per_batch)
    wanted = [sample for sample in range(60) if sample not in (4, 7, 9)]
    assert Counter(planned(batches)) == Counter((sample, kind) for sample in wanted for kind in (ZERO_SHOT, ONE_SHOT))


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 100, 10_000])
def test_a_batch_stays_within_the_budget_unless_it_is_a_single_row(tokens_per_batch):
    pool, exemplars = random_pool()
    batches = plan_padded(pool, exemplars, context=40, tokens_per_batch=tokens_per_batch)
    for batch in batches:
        longest = max(len(row.ids) for row in make_rows(batch, pool, exemplars, context=40))
        assert batch.padded_length == longest
        assert batch.tokens == len(batch.samples) * longest
        assert batch.tokens <= tokens_per_batch or len(batch.samples) == 1


def test_a_batch_is_filled_as_far_as_the_budget_allows():
    pool, exemplars = random_pool()
    for batch in plan_padded(pool, exemplars, context=40, tokens_per_batch=100)[:-1]:
        assert batch.tokens + batch.padded_length > 100


def test_rows_come_longest_first():
    pool, exemplars = random_pool()
    batches = plan_padded(pool, exemplars, context=40, tokens_per_batch=100)
    lengths = [len(row.ids) for batch in batches for row in make_rows(batch, pool, exemplars, context=40)]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 10


def test_no_row_is_longer_than_the_context():
    pool, exemplars = random_pool()
    uncut = [2 + len(pool.sample(i)) + len(pool.sample(exemplars[i])) for i in range(60) if exemplars[i] >= 0]
    assert max(uncut) > 30
    for batch in plan_padded(pool, exemplars, context=30, tokens_per_batch=100):
        assert all(len(row.ids) <= 30 for row in make_rows(batch, pool, exemplars, context=30))


def test_nothing_scorable_plans_no_batch():
    pool = pool_of("pr", "pr")
    assert plan_padded(pool, np.array([NO_EXEMPLAR, NO_EXEMPLAR]), context=40, tokens_per_batch=100) == []


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 10_000])
def test_zero_shot_rows_are_planned_once_for_every_sample_that_fits_alone_longest_first(tokens_per_batch):
    pool, _ = random_pool()
    lengths = [2 + len(pool.sample(sample)) for sample in range(60)]
    context = sorted(lengths)[50]
    batches = plan_zero_shot(pool, context, tokens_per_batch)
    wanted = [sample for sample in range(60) if sample not in (4, 9) and lengths[sample] <= context]
    assert 0 < len(wanted) < 58
    assert Counter(planned(batches)) == Counter((sample, ZERO_SHOT) for sample in wanted)
    in_order = [lengths[sample] for sample, _ in planned(batches)]
    assert in_order == sorted(in_order, reverse=True)
    assert all(batch.tokens <= tokens_per_batch or len(batch.samples) == 1 for batch in batches)


def test_every_prompt_is_planned_once_for_the_model_embedder_whether_scorable_or_not():
    pool, _ = random_pool()
    batches = plan_prompts(pool, context=40, tokens_per_batch=50)
    assert sorted(sample for sample, _ in planned(batches)) == list(range(60))
    for batch in batches:
        assert batch.padded_length == max(len(make_prompt_row(pool, s, 40).ids) for s in batch.samples.tolist())
        assert batch.tokens <= 50


def test_a_sample_without_a_single_prompt_token_is_not_planned_for_the_model_embedder():
    pool = pool_of("pr", "rr", preamble=[])
    assert planned(plan_prompts(pool, context=40, tokens_per_batch=50)) == [(0, 0)]


def test_a_prompt_row_is_preamble_and_prompt_without_response():
    row = make_prompt_row(pool_of("pppr", "ppprpr"), 1, context=100)
    assert row.ids.tolist() == [900, 901, 4, 5, 6]
    assert row.ids[row.targets].tolist() == [4, 5, 6]


def test_a_prompt_longer_than_the_context_keeps_its_beginning():
    row = make_prompt_row(pool_of("pppr", "ppppr"), 1, context=4)
    assert row.ids.tolist() == [900, 901, 4, 5]
    assert row.ids[row.targets].tolist() == [4, 5]
