"""What a token in a row of trees attends to: the same in all three ways, and nothing of another branch."""

from typing import Any

import numpy as np
import pytest
import torch

from miwv_trainer.scoring.attention import (
    SEGMENTS,
    Attention,
    _make_masks,
    choose_tree_attention,
    use_tree_attention,
)
from miwv_trainer.scoring.row_losses import compute_tree_losses
from miwv_trainer.scoring.tree_masks import TOKENS_PER_CALL, Segment, find_spans, make_block_mask, make_segments
from miwv_trainer.scoring.trees import Tree, make_tree_row, plan_trees
from tests.helpers.trees import (
    CONTEXT,
    EAGER_ONLY,
    FULL_ATTENTION,
    SMALL,
    WINDOWED,
    WINDOWS,
    a_row,
    both_layouts,
    random_case,
    random_model,
    sees,
    several_windows,
    skip_if_masked,
    synthetic_pool,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("seed", range(3))
def test_the_mask_is_what_a_branch_and_its_trunk_mean(seed: int, window: int | None) -> None:
    rows = [a_row(seed), a_row(seed + 1)]
    for implementation in ("sdpa", "eager"):
        model = random_model("Mistral", {**SMALL, "sliding_window": window}, implementation)
        mask = _make_masks(model, rows, "mask", CPU)
        shown = mask if implementation == "sdpa" else mask == 0
        for number, row in enumerate(rows):
            length = len(row.ids)
            assert np.array_equal(shown[number, 0, :length, :length].numpy(), sees(row, window))
            assert not shown[number, 0, :length, length:].any()


def test_layers_of_two_kinds_get_a_mask_for_each() -> None:
    model = random_model("Gemma3Text", {**SMALL, "head_dim": 8, "sliding_window": 7})
    row = a_row(1)
    masks = _make_masks(model, [row], "mask", CPU)
    assert set(masks) == {"full_attention", "sliding_attention"}
    assert np.array_equal(masks["full_attention"][0, 0].numpy(), sees(row))
    assert np.array_equal(masks["sliding_attention"][0, 0].numpy(), sees(row, 7))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("seed", range(3))
def test_the_block_mask_shows_and_looks_at_the_same(seed: int, window: int | None) -> None:
    from torch.nn.attention.flex_attention import create_block_mask, create_mask

    row = a_row(seed)
    length = len(row.ids)
    mask = make_block_mask(row, CPU, window)
    dense = create_mask(mask.mask_mod, 1, 1, length, length, device="cpu")[0, 0]
    assert np.array_equal(dense.numpy(), sees(row, window))
    assert length > 300
    needed = create_block_mask(mask.mask_mod, 1, None, length, length, device="cpu").to_dense()[0, 0].bool()
    looked_at = mask.to_dense()[0, 0].bool()
    assert not (needed & ~looked_at).any()


def test_distant_trees_cost_flex_attention_nothing() -> None:
    pool = synthetic_pool([40] * 100)
    row = make_tree_row([Tree(i, (i + 1,), True, CONTEXT) for i in range(0, 100, 2)], pool)
    looked_at = make_block_mask(row, CPU).to_dense()[0, 0]
    assert len(row.ids) > 4000
    assert looked_at.sum() <= 2 * len(looked_at)


def shown_by(segments: list[Segment], length: int) -> np.ndarray:
    """What segments show, which must cover the row once and in order."""
    shown = np.zeros((length, length), dtype=bool)
    end = 0
    for segment in segments:
        queries = segment.span.queries
        assert queries.start == end
        end = queries.stop
        keys = np.concatenate([np.arange(length)[part] for part in segment.span.keys])
        if segment.mask is None:
            assert segment.span.keys == (queries,)
            mask = np.tril(np.ones((len(keys), len(keys)), dtype=bool))
        else:
            mask = segment.mask[0, 0].numpy()
        shown[np.ix_(np.arange(length)[queries], keys)] = mask
    assert end == length
    return shown


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("seed", range(3))
def test_segments_cover_the_row_once_and_show_the_same(seed: int, window: int | None) -> None:
    row = a_row(seed)
    assert np.array_equal(shown_by(make_segments(row, CPU, window), len(row.ids)), sees(row, window))


@pytest.mark.parametrize("window", [1, 5, 256, 300, 699])
def test_long_trunks_and_branches_in_pieces_show_the_same_and_look_at_little_more(window: int) -> None:
    pool = synthetic_pool([700, 600, *[90] * 3, 20])
    row = make_tree_row([Tree(0, (1, 2, 3, 4, 5), True, CONTEXT * 10), Tree(5, (0,), True, CONTEXT * 10)], pool)
    segments = make_segments(row, CPU, window)
    assert np.array_equal(shown_by(segments, len(row.ids)), sees(row, window))
    for segment in segments:
        queries, keys = (
            sum(part.stop - part.start for part in p) for p in ((segment.span.queries,), segment.span.keys)
        )
        assert keys <= queries + 2 * window  # of its own sequence, and of the trunk for other branches of its group


def test_short_branches_share_a_call_and_long_ones_do_not() -> None:
    pool = synthetic_pool([50, *[10] * 40, *[200] * 3])
    row = make_tree_row([Tree(0, tuple(range(1, 44)), True, 10_000)], pool)
    lengths = [each.queries.stop - each.queries.start for each in find_spans(row) if len(each.keys) > 1]
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


@pytest.mark.parametrize("family", [*FULL_ATTENTION, *WINDOWED])
def test_segments_and_masks_give_the_same_losses(family: str) -> None:
    if family in EAGER_ONLY:
        pytest.skip("it has no sdpa")
    skip_if_masked(family)
    model = random_model(family, (FULL_ATTENTION | WINDOWED)[family], "sdpa").eval()
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


@pytest.mark.parametrize("family", ["Mistral", "Qwen2", "Gemma2", "Gemma3Text"])
def test_block_masks_hide_what_lies_before_the_window(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By flex attention as it is written, without the compiler, against padded rows of eager attention."""
    flex = pytest.importorskip("transformers.integrations.flex_attention")
    if not hasattr(flex, "compile_friendly_flex_attention"):
        pytest.skip("this transformers has no place where flex attention can be taken uncompiled")
    from torch.nn.attention import flex_attention

    def attend(*args: Any, training: bool = False, **kwargs: Any) -> Any:
        return flex_attention.flex_attention(*args, **{**kwargs, "kernel_options": None})

    monkeypatch.setattr(flex, "compile_friendly_flex_attention", attend)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True, raising=False)
    values = {**WINDOWED[family], "hidden_size": 64, "head_dim": 16}  # flex attention takes no heads below 16
    case, settings = several_windows("branches are longer than the window")
    rows = plan_trees(*case, CONTEXT, settings["tokens_per_row"])
    model = random_model(family, values, "flex_attention")
    assert choose_tree_attention(model) == "blocks"
    found = scoring_of(model, rows, case[0], "blocks")
    expected = scoring_of(random_model(family, values, "eager"), rows, case[0], "mask")
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)
    _, padded = both_layouts(random_model(family, values, "eager"), case, **settings)
    losses = np.concatenate([padded[0], padded[1][np.isfinite(padded[1])]])
    for loss in found:
        assert np.abs(losses - loss).min() < 2e-5
    unlimited = {**values, "sliding_window": 512}
    others = scoring_of(random_model(family, unlimited, "eager"), rows, case[0], "mask")
    assert np.abs(others - expected).max() > 1e-3  # the windows hide something here


def scoring_of(model: Any, rows: list[list[Tree]], pool: Any, attention: Attention) -> np.ndarray:
    with torch.no_grad():
        return np.concatenate(
            [
                compute_tree_losses(model.eval(), [make_tree_row(row, pool)], attention, 256, "chunked")[2]
                for row in rows
            ]
        )
