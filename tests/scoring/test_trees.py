"""The tree layout: what the planner promises, and the same losses as padded rows or an announced fallback."""

import logging
import re
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from miwv_trainer.compat import is_at_least
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.scoring import layout as layout_module
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import check_layout, choose_layout
from miwv_trainer.scoring.losses import Losses
from miwv_trainer.scoring.scorer import Scorer, prepare_scorer
from miwv_trainer.scoring.tree_masks import RowSegments
from miwv_trainer.scoring.trees import Tree, TreeBatch, make_tree_batches, make_tree_row, plan_trees
from tests.helpers.forks import fork_python
from tests.helpers.fused import add_fused_head
from tests.helpers.tiny import LOCAL_WINDOWS, tiny_model
from tests.helpers.trees import (
    CONTEXT,
    EAGER_ONLY,
    FULL_ATTENTION,
    PREAMBLE,
    SEVERAL_WINDOWS,
    SMALL,
    WINDOWED,
    both_layouts,
    random_case,
    random_model,
    several_windows,
    synthetic_pool,
)

WORLD = World(0, 1, torch.device("cpu"))


def scorable(pool: Pool, exemplars: np.ndarray, context: int) -> list[int]:
    return [i for i in range(len(pool)) if exemplars[i] >= 0 and PREAMBLE + pool.lengths[i] < context]


@pytest.mark.parametrize("seed", range(40))
def test_each_sample_is_scored_once_as_a_trunk_and_once_as_a_branch(seed: int) -> None:
    pool, exemplars, context, budget = random_case(seed)
    trees = [tree for row in plan_trees(pool, exemplars, context, budget) for tree in row]
    trunks = sorted(tree.trunk for tree in trees if tree.scores_trunk)
    branches = sorted(branch for tree in trees for branch in tree.branches)
    assert trunks == branches == scorable(pool, exemplars, context)
    assert all(exemplars[branch] == tree.trunk for tree in trees for branch in tree.branches)
    # Context only: nothing of it is forwarded for nothing.
    assert all(tree.scores_trunk or tree.branches for tree in trees)


@pytest.mark.parametrize("seed", range(40))
def test_no_row_is_over_budget_unless_a_single_sample_behind_its_exemplar_is(seed: int) -> None:
    pool, exemplars, context, budget = random_case(seed)
    for row in plan_trees(pool, exemplars, context, budget):
        tokens = len(make_tree_row(row, pool).ids)
        assert tokens == sum(tree.count_tokens(pool) for tree in row)
        if tokens > budget:
            (tree,) = row
            longest = max((int(pool.lengths[i]) for i in np.flatnonzero(exemplars == tree.trunk)), default=0)
            assert tokens <= PREAMBLE + int(pool.lengths[tree.trunk]) + longest


@pytest.mark.parametrize("seed", range(40))
def test_every_branch_reads_as_its_one_shot_sequence_and_every_trunk_as_its_zero_shot_one(seed: int) -> None:
    pool, exemplars, context, budget = random_case(seed)
    for trees in plan_trees(pool, exemplars, context, budget):
        row = make_tree_row(trees, pool)
        for number, tree in enumerate(trees):
            trunk = row.ids[(row.tree == number) & (row.branch == 0)]
            if tree.scores_trunk:
                assert trunk.tolist() == [*range(PREAMBLE), *pool.sample(tree.trunk)]
            for branch, sample in enumerate(tree.branches, start=1):
                mine = (row.tree == number) & ((row.branch == 0) | (row.branch == branch))
                room = context - PREAMBLE - int(pool.lengths[sample])
                expected = [*range(PREAMBLE), *pool.sample(tree.trunk)[-room:], *pool.sample(sample)]
                assert row.ids[mine].tolist() == expected
                assert row.positions[mine].tolist() == list(range(len(expected)))
                assert len(expected) <= context


def test_rows_behind_a_trunk_longer_than_the_budget_are_as_long_as_its_longest_sample_makes_them() -> None:
    pool = synthetic_pool([300, 85, *[20] * 8])
    exemplars = np.array([1, *[0] * 9])
    rows = [row for row in plan_trees(pool, exemplars, 4096, 100) if row[0].trunk == 0]
    assert sorted(len(row[0].branches) for row in rows) == [1, 4, 4]


def test_rows_are_the_same_in_another_process_and_for_any_number_of_ranks() -> None:
    pool, exemplars, context, budget = random_case(3)
    rows = plan_trees(pool, exemplars, context, budget)
    code = (
        "from miwv_trainer.scoring.trees import plan_trees; from tests.helpers.trees import random_case\n"
        "pool, exemplars, context, budget = random_case(3)\n"
        "print(plan_trees(pool, exemplars, context, budget))"
    )
    other = fork_python("-c", code)
    assert other.stdout.strip() == str(rows), other.stderr
    batches = make_tree_batches(rows, pool, 2 * budget, is_padded=False)
    for size in (1, 2, 4, 8):
        shares = [World(rank, size, torch.device("cpu")).split_between_ranks(batches) for rank in range(size)]
        assert sorted(map(str, chain(*shares))) == sorted(map(str, batches))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("is_padded", [False, True])
def test_halves_of_a_batch_score_what_it_scores(seed: int, is_padded: bool) -> None:
    pool, exemplars, context, budget = random_case(seed)
    rows = plan_trees(pool, exemplars, context, budget)
    batches = make_tree_batches(rows, pool, 3 * budget, is_padded)
    assert [row for batch in batches for row in batch.rows] == rows
    scored = sorted(losses_of(batches, pool))
    smaller = 0
    while any(batch.halve() for batch in batches):
        halves = [batch.halve() for batch in batches]
        batches = [part for batch, two in zip(batches, halves, strict=True) for part in two or [batch]]
        smaller += 1
    assert smaller
    assert sorted(losses_of(batches, pool)) == scored
    assert all(len(losses_of([batch], pool)) == 1 for batch in batches)


def losses_of(batches: list[TreeBatch], pool: Pool) -> list[tuple[int, int]]:
    rows = [make_tree_row(row, pool) for batch in batches for row in batch.rows]
    assert [len(row.ids) for row in rows] == [length for batch in batches for length in batch.lengths]
    return [loss for row in rows for loss in set(zip(row.kinds.tolist(), row.samples.tolist(), strict=True))]


def test_targets_are_the_response_tokens_of_a_hand_worked_row() -> None:
    pool = synthetic_pool([6, 3, 4])  # tokens 3..8, 9..11, 12..15; responses 7 8, 11, 15
    row = make_tree_row([Tree(0, (1, 2), True, CONTEXT), Tree(2, (), True, CONTEXT)], pool)
    assert row.ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 12, 13, 14, 15]
    assert row.positions.tolist() == [*range(9), 9, 10, 11, 9, 10, 11, 12, *range(7)]
    assert row.ids[row.targets].tolist() == [7, 8, 11, 15, 15]
    assert list(zip(row.samples.tolist(), row.kinds.tolist(), strict=True)) == [(0, 0), (0, 0), (1, 1), (2, 1), (2, 0)]


def test_long_rows_forward_hardly_more_than_twice_the_pool() -> None:
    generator = np.random.default_rng(0)
    pool = synthetic_pool(generator.integers(20, 200, 2000).tolist())
    exemplars = (np.arange(2000) + 1 + generator.integers(0, 5, 2000)) % 2000
    rows = plan_trees(pool, exemplars, 4096, 2048)
    tokens = sum(tree.count_tokens(pool) for row in rows for tree in row)
    assert tokens <= 2.1 * (pool.lengths.sum() + PREAMBLE * len(pool))
    assert len(rows) <= 1.05 * tokens / 2048 + 1  # filled to the brim


OTHERS = {
    "GPTNeo": (
        {**LOCAL_WINDOWS.to_diff_dict(), "max_position_embeddings": CONTEXT},
        f"its attention slides over a window of 16 tokens, less than the context of {CONTEXT}",
    ),
    "Llama4Text": ({**SMALL, "head_dim": 8, "num_local_experts": 2}, "it has layers of chunked_attention"),
    "Mamba": ({"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2}, "it has layers of linear_attention"),
    "Jamba": (
        {**SMALL, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
        "it has layers of linear_attention",
    ),
    "Qwen3Next": (
        {
            **SMALL,
            "head_dim": 8,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "layer_types": ["linear_attention", "full_attention"],
        },
        "it has layers of linear_attention",
    ),
    "Lfm2": ({**SMALL, "layer_types": ["conv", "full_attention"]}, "it has layers of conv"),
    "FalconH1": (
        {**SMALL, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
        "it has layers of hybrid",
    ),
    "Bloom": ({"vocab_size": 512, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "takes no `position_ids`"),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FULL_ATTENTION)
def test_families_with_full_attention_have_the_same_losses_by_tree(
    family: str, attention: str, case: tuple[Pool, np.ndarray]
) -> None:
    model = random_model(family, FULL_ATTENTION[family], attention)
    with leave_no_trace(model):
        assert choose_layout(prepare_scorer(model, case[0], MIWVConfig(), WORLD), case[1]) == "tree"
    tree, padded = both_layouts(model, case, tokens_per_row=200)
    np.testing.assert_allclose(tree, padded, atol=2e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", WINDOWED)
def test_families_with_windows_have_the_same_losses_by_tree(family: str, attention: str) -> None:
    """Rows are as long as several windows, so that they hide something from trunks and from branches."""
    if attention == "sdpa" and family in EAGER_ONLY:
        pytest.skip("it has no sdpa")
    model = random_model(family, WINDOWED[family], attention)
    for name in SEVERAL_WINDOWS:
        case, values = several_windows(name)
        with leave_no_trace(model):
            assert choose_layout(prepare_scorer(model, case[0], MIWVConfig(**values), WORLD), case[1]) == "tree"
        tree, padded = both_layouts(model, case, **values)
        np.testing.assert_allclose(tree, padded, atol=2e-5, rtol=0, err_msg=name)
    longer = random_model(family, {**WINDOWED[family], "sliding_window": CONTEXT}, attention)
    assert np.abs(both_layouts(longer, case, **values)[1] - padded).max() > 1e-3  # the window does something


@pytest.mark.parametrize(("family", "attention"), [("Mistral", "sdpa"), ("Gemma3Text", "sdpa"), ("Gemma2", "eager")])
@pytest.mark.parametrize("window", [1, 2, 300])
def test_windows_of_any_length_have_the_same_losses_by_tree(family: str, attention: str, window: int) -> None:
    """Trunks and branches of more than 256 tokens are attended to in pieces."""
    model = random_model(family, {**WINDOWED[family], "sliding_window": window}, attention)
    case = synthetic_pool([300, 320, 10, 40, 280]), np.array([1, 0, 0, 0, 2])
    case = Pool(case[0].preamble, case[0].tokens % 512, case[0].is_response, case[0].offsets), case[1]
    values = {"scoring_max_length": 1024, "tokens_per_row": 1100}
    with leave_no_trace(model):
        assert choose_layout(prepare_scorer(model, case[0], MIWVConfig(**values), WORLD), case[1]) == "tree"
    tree, padded = both_layouts(model, case, **values)
    np.testing.assert_allclose(tree, padded, atol=2e-5, rtol=0)


def test_a_window_that_does_not_reach_the_attention_is_noticed_where_only_one_sample_is_longer(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """A family that slides by itself and hands its attention no window: right until a sequence is longer than it."""
    lengths = [10, 12, 9, 11, 150, 8]
    case = synthetic_pool(lengths), np.array([1, 0, 0, 0, 5, 0])
    values = {"tokens_per_row": 60}

    def choose(model: Any) -> str:
        caplog.clear()
        with leave_no_trace(model):
            return choose_layout(prepare_scorer(model, case[0], MIWVConfig(**values), WORLD), case[1])

    model = random_model("Mistral", {**SMALL, "sliding_window": 64})
    assert choose(model) == "tree"
    find = RowSegments.find
    monkeypatch.setattr(RowSegments, "find", lambda self, window: find(self, None))
    assert choose(model) == "padded"
    assert "the losses of 1 samples differ by" in caplog.text


@pytest.mark.parametrize(
    ("family", "attention"),
    [("Mistral", "sdpa"), ("Mistral", "eager"), ("Phi3", "sdpa"), ("Gemma2", "eager"), ("Gemma3Text", "sdpa")],
)
def test_a_window_that_hides_nothing_is_no_obstacle(family: str, attention: str, case: tuple[Pool, np.ndarray]) -> None:
    """No sequence is longer than the window, although a row of several trees is."""
    longest = 96
    model = random_model(family, {**SMALL, "head_dim": 8, "sliding_window": longest}, attention)
    config = MIWVConfig(scoring_max_length=longest, tokens_per_row=400)
    with leave_no_trace(model):
        assert choose_layout(prepare_scorer(model, case[0], config, WORLD), case[1]) == "tree"
    tree, padded = both_layouts(model, case, scoring_max_length=longest, tokens_per_row=400)
    np.testing.assert_allclose(tree, padded, atol=2e-5, rtol=0)


class OfTwo(World):
    """Rank 0 of two; on the other one a forward of trees failed."""

    def all_reduce_sum(self, array: np.ndarray) -> np.ndarray:
        return array

    def all_gather(self, value: Any) -> list[Any]:
        is_about_padding = isinstance(value, float)
        return [value, value if is_about_padding else "a forward of trees fails (RuntimeError: no tea)"]


def test_ranks_choose_the_same_layout_where_trees_fail_on_one_alone(case: tuple[Pool, np.ndarray], caplog: Any) -> None:
    model = tiny_model()
    with leave_no_trace(model):
        assert choose_layout(prepare_scorer(model, case[0], MIWVConfig(), WORLD), case[1]) == "tree"
        assert (
            choose_layout(prepare_scorer(model, case[0], MIWVConfig(), OfTwo(0, 2, torch.device("cpu"))), case[1])
            == "padded"
        )
    assert "a forward of trees fails (RuntimeError: no tea)" in caplog.text


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_fall_back_with_a_warning_that_says_why(
    family: str, case: tuple[Pool, np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    values, reason = OTHERS[family]
    model = random_model(family, values)
    if family in ("Mamba", "Jamba", "FalconH1") and not is_at_least("transformers", "5.0"):
        if family == "Jamba":
            pytest.skip("before transformers 5.0, Jamba runs on a GPU only")
        # Their configurations do not name their layers. The comparison of a few samples finds what they do.
        with leave_no_trace(model):
            assert choose_layout(prepare_scorer(model, case[0], MIWVConfig(), WORLD), case[1]) == "padded"
        return
    if family in ("Mamba", "Jamba"):
        # Their layers had a type of their own before transformers called it linear attention.
        (kind,) = set(model.config.layer_types) - {"full_attention"}
        reason = reason.replace("linear_attention", kind)
    with leave_no_trace(model), caplog.at_level(logging.WARNING, logger="miwv_trainer"):
        assert choose_layout(prepare_scorer(model, case[0], MIWVConfig(), WORLD), case[1]) == "padded"
        # transformers itself warns that kernels of recurrent layers are not installed.
        (warning,) = (message for message in caplog.messages if "is scored in" in message)
        assert type(model).__name__ in warning and reason in warning and '`layout="padded"` silences' in warning
        with pytest.raises(ValueError, match='cannot be scored with `layout="tree"`.*Use "auto" or "padded"'):
            choose_layout(prepare_scorer(model, case[0], MIWVConfig(layout="tree"), WORLD), case[1])
        with pytest.raises(ValueError, match=f"{type(model).__name__} cannot be scored with .*{re.escape(reason)}"):
            check_layout(model, MIWVConfig(layout="tree"), WORLD.device)
        check_layout(model, MIWVConfig(), WORLD.device)
        caplog.clear()
        assert (
            choose_layout(prepare_scorer(model, case[0], MIWVConfig(), WORLD), case[1]) == "padded"
        )  # the next round says nothing new
        assert choose_layout(prepare_scorer(model, case[0], MIWVConfig(layout="padded"), WORLD), case[1]) == "padded"
    assert not [message for message in caplog.messages if "is scored in" in message]


@pytest.mark.parametrize("family", ["GPTNeo", "Bloom", "Llama4Text"])
def test_an_attention_that_is_asked_for_in_vain_is_told_with_advice_that_can_be_followed(
    family: str, case: tuple[Pool, np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    values, reason = OTHERS[family]
    model, config = random_model(family, values), MIWVConfig(attention="mask")
    with leave_no_trace(model), caplog.at_level(logging.WARNING, logger="miwv_trainer"):
        check_layout(model, config, WORLD.device)
        assert choose_layout(prepare_scorer(model, case[0], config, WORLD), case[1]) == "padded"
        (warning,) = (message for message in caplog.messages if "is scored in" in message)
        assert reason in warning and '`attention="mask"` has no effect there: leave it out' in warning
        with pytest.raises(ValueError, match='`attention` is .*and `layout` is "padded"'):
            MIWVConfig(attention="mask", layout="padded")
        assert 'without it, `layout="padded"` silences this' in warning
        caplog.clear()
        assert choose_layout(prepare_scorer(model, case[0], config, WORLD), case[1]) == "padded"
        assert not [message for message in caplog.messages if "is scored in" in message]


def test_an_attention_that_is_asked_for_in_rows_of_equal_length_is_told_to_have_no_effect(
    case: tuple[Pool, np.ndarray], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def find_that_padding_changes_losses(scorer: Scorer, exemplars: Any) -> Scorer:
        return replace(scorer, sharing=scorer.sharing.without_padding())

    monkeypatch.setattr(layout_module, "settle_padding", find_that_padding_changes_losses)
    model = tiny_model()
    with leave_no_trace(model), caplog.at_level(logging.WARNING, logger="miwv_trainer"):
        assert choose_layout(prepare_scorer(model, case[0], MIWVConfig(), WORLD), case[1]) == "equal"
        assert not caplog.messages
        asked = prepare_scorer(model, case[0], MIWVConfig(attention="mask"), WORLD)
        assert choose_layout(asked, case[1]) == "equal" and choose_layout(asked, case[1]) == "equal"
    (warning,) = caplog.messages
    assert warning == (
        'LlamaForCausalLM is scored in rows of equal length, where `attention="mask"` has no effect: leave it out.'
    )


def test_attention_that_takes_no_mask_falls_back(
    case: tuple[Pool, np.ndarray], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    model = tiny_model()
    # FlashAttention is not installed, so nothing can be forwarded.
    monkeypatch.setattr(layout_module, "settle_padding", lambda scorer, exemplars: scorer)
    monkeypatch.setattr(layout_module, "check_causal", lambda scorer: None)
    model.config._attn_implementation = "flash_attention_2"
    with leave_no_trace(model):
        assert choose_layout(prepare_scorer(model, case[0], MIWVConfig(), WORLD), case[1]) == "padded"
    assert "its attention is 'flash_attention_2', which takes no mask of its own" in caplog.text


def test_a_mask_that_does_not_reach_every_layer_is_noticed(
    case: tuple[Pool, np.ndarray], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """The configuration says nothing here; only the losses of a few real samples do."""
    model = random_model("Llama", SMALL, "eager")
    original = model.model.layers[1].forward

    def forward_without_a_tree_mask(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        length = kwargs["position_ids"].shape[-1]
        causal = torch.full((1, 1, length, length), -1e9).triu(1)
        return original(*args, attention_mask=causal, **kwargs)

    monkeypatch.setattr(model.model.layers[1], "forward", forward_without_a_tree_mask)
    with leave_no_trace(model):
        assert choose_layout(prepare_scorer(model, case[0], MIWVConfig(), WORLD), case[1]) == "padded"
    assert "differ by" in caplog.text


def test_a_forward_that_refuses_the_mask_falls_back(
    case: tuple[Pool, np.ndarray], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    model = random_model("Llama", SMALL, "eager")
    original = model.model.forward

    def forward(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.ndim == 4:
            raise ValueError("two dimensions, please")
        return original(*args, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(model.model, "forward", forward)
    with leave_no_trace(model):
        assert choose_layout(prepare_scorer(model, case[0], MIWVConfig(), WORLD), case[1]) == "padded"
    assert "a forward of trees fails (ValueError: two dimensions, please)" in caplog.text


@pytest.mark.parametrize(("autocast", "expected"), [(True, "tree"), (False, "padded")])
def test_a_difference_of_a_hundredth_is_rounding_under_the_autocast_of_accelerate_only(
    autocast: bool, expected: str, case: tuple[Pool, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    if autocast:
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)

    def score(scorer: Any, exemplars: Any, layout: str) -> Losses:
        model(torch.zeros((1, 2), dtype=torch.long))
        losses = np.full(len(scorer.pool), 2.01 if layout == "tree" else 2.0, dtype=np.float32)
        return Losses(losses, losses, 0)

    monkeypatch.setattr(layout_module, "score_pool", score)
    with leave_no_trace(model):
        assert choose_layout(prepare_scorer(model, case[0], MIWVConfig(), WORLD), case[1]) == expected


def test_lora_and_trls_fused_head_have_the_same_losses_by_tree(case: tuple[Pool, np.ndarray]) -> None:
    model = tiny_model()
    add_fused_head(model)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    tree, padded = both_layouts(model, case)
    np.testing.assert_allclose(tree, padded, atol=2e-5, rtol=0)
    assert np.abs(padded - both_layouts(tiny_model(), case)[1]).max() > 1e-3  # the adapter does something


def test_exemplars_cut_to_fit_the_context_are_cut_alike(case: tuple[Pool, np.ndarray]) -> None:
    pool, exemplars = case
    context = int(len(pool.preamble) + pool.lengths.max() + 5)
    tree, padded = both_layouts(tiny_model(), case, scoring_max_length=context)
    assert (len(pool.preamble) + pool.lengths + pool.lengths[exemplars] > context).any()
    np.testing.assert_allclose(tree, padded, atol=2e-5, rtol=0)


def test_a_loss_that_is_not_finite_stays_with_its_own_sample(case: tuple[Pool, np.ndarray]) -> None:
    pool, exemplars = case
    model = tiny_model()
    words, counts = np.unique(pool.tokens, return_counts=True)
    rare = int(words[np.argmin(counts)])
    with torch.no_grad():
        model.model.embed_tokens.weight[rare] = torch.nan
    holds_it = np.array([rare in pool.sample(index) for index in range(len(pool))])
    tree, padded = both_layouts(model, case)
    assert np.array_equal(np.isnan(tree), np.isnan(padded))
    assert np.isnan(tree).any() and not np.isnan(tree[:, ~holds_it & ~holds_it[exemplars]]).any()
    np.testing.assert_allclose(tree, padded, atol=2e-5, rtol=0)
