"""What a token in a row of trees attends to: the same in all three ways, and nothing of another branch."""

from typing import Any

import numpy as np
import pytest
import torch

from miwv_trainer.scoring.attention import (
    SEGMENTS,
    TOKENS_PER_CALL,
    Attention,
    _find_spans,
    _make_block_mask,
    _make_mask,
    _make_segments,
    choose_tree_attention,
    use_tree_attention,
)
from miwv_trainer.scoring.row_losses import compute_tree_losses
from miwv_trainer.scoring.trees import Tree, TreeRow, make_tree_row, plan_trees
from tests.helpers.trees import CONTEXT, FULL_ATTENTION, SMALL, random_case, random_model, synthetic_pool

CPU = torch.device("cpu")


def sees(row: TreeRow) -> np.ndarray:
    """`(length, length)` by the definition, token by token."""
    length = len(row.ids)
    seen = np.zeros((length, length), dtype=bool)
    for query in range(length):
        for key in range(query + 1):
            same_branch = row.branch[key] == row.branch[query]
            seen[query, key] = row.tree[key] == row.tree[query] and (row.branch[key] == 0 or same_branch)
    return seen


def a_row(seed: int, budget: int = 600) -> TreeRow:
    pool, exemplars, context, _ = random_case(seed)
    return make_tree_row(plan_trees(pool, exemplars, context, budget)[0], pool)


@pytest.mark.parametrize("seed", range(6))
def test_the_mask_is_what_a_branch_and_its_trunk_mean(seed: int) -> None:
    rows = [a_row(seed), a_row(seed + 1)]
    for implementation in ("sdpa", "eager"):
        mask = _make_mask(random_model("Llama", SMALL, implementation), rows, CPU)
        shown = mask if implementation == "sdpa" else mask == 0
        for number, row in enumerate(rows):
            length = len(row.ids)
            assert np.array_equal(shown[number, 0, :length, :length].numpy(), sees(row))
            assert not shown[number, 0, :length, length:].any()


@pytest.mark.parametrize("seed", range(6))
def test_the_block_mask_shows_and_looks_at_the_same(seed: int) -> None:
    from torch.nn.attention.flex_attention import create_block_mask, create_mask

    row = a_row(seed)
    length = len(row.ids)
    mask = _make_block_mask(row, CPU)
    dense = create_mask(mask.mask_mod, 1, 1, length, length, device="cpu")[0, 0]
    assert np.array_equal(dense.numpy(), sees(row))
    assert length > 300
    needed = create_block_mask(mask.mask_mod, 1, None, length, length, device="cpu").to_dense()[0, 0].bool()
    looked_at = mask.to_dense()[0, 0].bool()
    assert not (needed & ~looked_at).any()


def test_distant_trees_cost_flex_attention_nothing() -> None:
    pool = synthetic_pool([40] * 100)
    row = make_tree_row([Tree(i, (i + 1,), True, CONTEXT) for i in range(0, 100, 2)], pool)
    looked_at = _make_block_mask(row, CPU).to_dense()[0, 0]
    assert len(row.ids) > 4000
    assert looked_at.sum() <= 2 * len(looked_at)


@pytest.mark.parametrize("seed", range(6))
def test_segments_cover_the_row_once_and_show_the_same(seed: int) -> None:
    row = a_row(seed)
    expected = sees(row)
    shown = np.zeros_like(expected)
    end = 0
    for segment in _make_segments(row, CPU):
        assert segment.own.start == end
        end = segment.own.stop
        if segment.trunk is None:
            length = end - segment.own.start
            shown[segment.own, segment.own] = np.tril(np.ones((length, length), dtype=bool))
            continue
        width = segment.trunk.stop - segment.trunk.start
        mask = segment.mask[0, 0].numpy()
        shown[segment.own, segment.trunk], shown[segment.own, segment.own] = mask[:, :width], mask[:, width:]
    assert end == len(row.ids)
    assert np.array_equal(shown, expected)


def test_short_branches_share_a_call_and_long_ones_do_not() -> None:
    pool = synthetic_pool([50, *[10] * 40, *[200] * 3])
    row = make_tree_row([Tree(0, tuple(range(1, 44)), True, 10_000)], pool)
    lengths = [own.stop - own.start for own, trunk in _find_spans(row) if trunk is not None]
    assert all(length <= TOKENS_PER_CALL for length in lengths)
    assert len(lengths) == 2 + 3


@pytest.mark.parametrize("attention", ["segments", "mask"])
def test_no_branch_sees_another(attention: Attention) -> None:
    """Other tokens in one branch change its own losses and no other."""
    pool = synthetic_pool([12, 9, 7, 11])
    model = random_model("Llama", SMALL).eval()
    row = make_tree_row([Tree(0, (1, 2, 3), True, CONTEXT)], pool)
    changed = make_tree_row([Tree(0, (1, 2, 3), True, CONTEXT)], pool)
    changed.ids[changed.branch == 2] = 77
    with torch.no_grad(), use_tree_attention(model, attention):
        (_, samples, before), (_, _, after) = (
            compute_tree_losses(model, [each], attention, 256, "chunked") for each in (row, changed)
        )
    moved = np.abs(before - after) > 1e-6
    assert samples[moved].tolist() == [2]


@pytest.mark.parametrize("family", FULL_ATTENTION)
def test_segments_and_masks_give_the_same_losses(family: str) -> None:
    model = random_model(family, FULL_ATTENTION[family], "sdpa").eval()
    assert choose_tree_attention(model) == "segments"
    pool, exemplars, context, budget = random_case(11)
    rows = [make_tree_row(row, pool) for row in plan_trees(pool, exemplars, context, budget)]
    with torch.no_grad():
        with use_tree_attention(model, "segments"):
            by_segment = [compute_tree_losses(model, [row], "segments", 256, "chunked") for row in rows]
        by_mask = compute_tree_losses(model, rows, "mask", 256, "chunked")
    found = {
        (kind, sample): loss
        for kinds, samples, losses in by_segment
        for kind, sample, loss in zip(kinds.tolist(), samples.tolist(), losses, strict=True)
    }
    expected = {(kind, sample): loss for kind, sample, loss in zip(*(x.tolist() for x in by_mask), strict=True)}
    assert found.keys() == expected.keys() and len(found) > 10
    assert max(abs(found[key] - expected[key]) for key in found) < 2e-5


def test_the_models_own_attention_comes_back(monkeypatch: Any) -> None:
    model = random_model("Llama", SMALL, "sdpa")
    with pytest.raises(RuntimeError, match="in between"), use_tree_attention(model, "segments"):
        assert model.config._attn_implementation == SEGMENTS
        raise RuntimeError("in between")
    assert model.config._attn_implementation == "sdpa"
    assert choose_tree_attention(random_model("Llama", SMALL, "eager")) == "mask"
    assert choose_tree_attention(random_model("Llama", SMALL, "flex_attention")) == "blocks"


@pytest.mark.slow
def test_flex_attention_has_the_same_losses_as_masks() -> None:
    """Slow because it compiles; on a CPU that needs a C++ compiler."""
    values = {**SMALL, "hidden_size": 64}
    pool, exemplars, context, _ = random_case(11)
    rows = plan_trees(pool, exemplars, context, 400)
    expected = scoring_of(random_model("Llama", values, "sdpa"), rows, pool, "mask")
    found = scoring_of(random_model("Llama", values, "flex_attention"), rows, pool, "blocks")
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


def scoring_of(model: Any, rows: list[list[Tree]], pool: Any, attention: Attention) -> np.ndarray:
    with torch.no_grad():
        return np.concatenate(
            [
                compute_tree_losses(model.eval(), [make_tree_row(row, pool)], attention, 256, "chunked")[2]
                for row in rows
            ]
        )
