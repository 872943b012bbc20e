"""Rows of trees as sequences for variable-length attention: what they show, and the same losses as padded rows."""

import inspect
import json
import logging
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from miwv_trainer.compat import load_varlen_attention
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.scoring import layout as layout_module
from miwv_trainer.scoring import losses as losses_module
from miwv_trainer.scoring import varlen as varlen_module
from miwv_trainer.scoring.attention import choose_tree_attention, find_tree_obstacle, use_tree_attention
from miwv_trainer.scoring.float32 import use_float32
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import check_layout, choose_layout, plan_scoring
from miwv_trainer.scoring.scorer import ScoringPlan, prepare_scorer
from miwv_trainer.scoring.tree_masks import find_sequences
from miwv_trainer.scoring.trees import Tree, make_tree_row
from miwv_trainer.scoring.varlen import KERNELS, VARLEN, Sequences, VarlenKernel, find_varlen_obstacle, make_sequences
from miwv_trainer.storage.store import Store
from tests.helpers.families import build_family, score_family
from tests.helpers.tiny import tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.tiny_rounds import finished_round
from tests.helpers.trees import (
    CONTEXT,
    EAGER_ONLY,
    FULL_ATTENTION,
    SEVERAL_WINDOWS,
    SMALL,
    WINDOWED,
    WINDOWS,
    a_row,
    both_layouts,
    random_model,
    sees,
    several_windows,
    skip_if_masked,
    synthetic_pool,
)
from tests.helpers.varlen import attend_by_definition, varlen_on_cpu

__all__ = ["varlen_on_cpu"]
CPU = torch.device("cpu")
WORLD = World(0, 1, CPU, quiet=True)
FLASH = "flash_stand_in"


def shown_by(sequences: Sequences, length: int) -> np.ndarray:
    """What the kernel's documentation says that each token of the row sees: causal from the bottom right, windowed."""
    keys = np.arange(length) if sequences.keys is None else sequences.keys.numpy()
    shown = np.zeros((length, length), dtype=bool)
    ends = zip(pairwise(sequences.query_ends.tolist()), pairwise(sequences.key_ends.tolist()), strict=True)
    for (first, last), (start, end) in ends:
        for query in range(first, last):
            newest = end - (last - query)
            oldest = start if sequences.window[0] < 0 else max(start, newest - sequences.window[0])
            shown[query, keys[oldest : newest + 1]] = True
    assert sequences.query_ends[-1] == length and sequences.key_ends[-1] == len(keys)
    assert sequences.longest_query == sequences.query_ends.diff().max()
    assert sequences.longest_key == sequences.key_ends.diff().max()
    return shown


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("seed", range(3))
def test_sequences_show_what_a_branch_and_its_trunk_mean(seed: int, window: int | None) -> None:
    row = a_row(seed)
    assert np.array_equal(shown_by(make_sequences(row, CPU, window), len(row.ids)), sees(row, window))


@pytest.mark.parametrize("window", [1, 5, 256, 300, 699])
def test_with_a_window_no_key_is_copied_that_no_query_sees(window: int) -> None:
    pool = synthetic_pool([700, 600, *[90] * 3, 20])
    row = make_tree_row([Tree(0, (1, 2, 3, 4, 5), True, CONTEXT * 10), Tree(5, (0,), True, CONTEXT * 10)], pool)
    sequences = make_sequences(row, CPU, window)
    shown = sees(row, window)
    assert np.array_equal(shown_by(sequences, len(row.ids)), shown)
    seen = sum(int(shown[own].any(axis=0).sum()) for own, _ in find_sequences(row))
    assert sequences.key_ends[-1] == seen


def test_a_row_without_branches_copies_no_keys() -> None:
    row = make_tree_row([Tree(0, (), True, CONTEXT), Tree(1, (), True, CONTEXT)], synthetic_pool([9, 7]))
    assert make_sequences(row, CPU).keys is None


def choose(model: Any, case: tuple[Pool, np.ndarray], **values: Any) -> str:
    with leave_no_trace(model):
        return choose_layout(prepare_scorer(model, case[0], MIWVConfig(**values), WORLD), case[1])


@pytest.mark.parametrize("family", FULL_ATTENTION)
def test_families_with_full_attention_have_the_losses_of_padded_rows(
    family: str, case: tuple[Pool, np.ndarray], varlen_on_cpu: None
) -> None:
    skip_if_masked(family)
    model = random_model(family, FULL_ATTENTION[family], "sdpa")
    assert choose_tree_attention(model) == "varlen"
    assert choose(model, case) == "tree"
    tree, padded = both_layouts(model, case, tokens_per_row=200)
    np.testing.assert_allclose(tree, padded, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", WINDOWED)
def test_families_with_windows_have_the_losses_of_padded_rows(family: str, varlen_on_cpu: None) -> None:
    """Trunks, branches, or both are longer than the window."""
    model = random_model(family, WINDOWED[family])
    assert (choose_tree_attention(model) == "varlen") is (family not in EAGER_ONLY)
    for number, name in enumerate(SEVERAL_WINDOWS):
        case, values = several_windows(name)
        assert number or choose(model, case, **values) == "tree"
        tree, padded = both_layouts(model, case, **values)
        np.testing.assert_allclose(tree, padded, atol=2e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize("family", ["Mistral", "Gemma3Text"])
@pytest.mark.parametrize("window", [1, 2, 300])
def test_windows_of_any_length_have_the_losses_of_padded_rows(family: str, window: int, varlen_on_cpu: None) -> None:
    model = random_model(family, {**WINDOWED[family], "sliding_window": window})
    pool = synthetic_pool([300, 320, 10, 40, 280])
    case = Pool(pool.preamble, pool.tokens % 512, pool.is_response, pool.offsets), np.array([1, 0, 0, 0, 2])
    tree, padded = both_layouts(model, case, scoring_max_length=1024, tokens_per_row=1100)
    np.testing.assert_allclose(tree, padded, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "changed"),
    [("deepseek_v3", {"v_head_dim": 12}), ("glm4_moe_lite", {"v_head_dim": 4}), ("llama", {"head_dim": 12})],
)
def test_heads_of_any_width_are_filled_up(family: str, changed: dict[str, int], varlen_on_cpu: None) -> None:
    """Latent attention has values of another width than keys; the kernel takes multiples of eight."""
    model = build_family(family, **changed)
    assert choose_tree_attention(model) == "varlen"
    outcome = score_family(model)
    assert outcome.layout == "tree" and outcome.difference < 1e-4, outcome


@pytest.fixture
def flash_stand_in(monkeypatch: pytest.MonkeyPatch) -> str:
    """
    The name of an attention function that a model is loaded with like FlashAttention, and that is no mask of ours.

    The packages of FlashAttention run on a GPU only. Rows are padded on the right, so causal attention without a mask
    is what they would compute.
    """

    def attend(module: nn.Module, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        assert query.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled("cpu")
        return sdpa_attention_forward(module, query, args[0], args[1], None, **kwargs)

    AttentionInterface.register(FLASH, attend)
    # transformers would import the package behind each name that holds "flash".
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", lambda name: None)
    return FLASH


def half_precision_kernel(monkeypatch: pytest.MonkeyPatch, device_type: str = "cpu") -> None:
    monkeypatch.setitem(
        KERNELS, device_type, VarlenKernel(lambda: attend_by_definition, (torch.bfloat16, torch.float16))
    )


def test_a_model_loaded_with_flash_attention_takes_trees_and_gets_it_back(
    flash_stand_in: str, case: tuple[Pool, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    half_precision_kernel(monkeypatch)
    model = random_model("Llama", SMALL, flash_stand_in).bfloat16()
    assert choose(model, case) == "tree" and choose_tree_attention(model) == "varlen"
    tree, padded = both_layouts(model, case)
    assert model.config._attn_implementation == flash_stand_in
    # Both layouts round to 8 bits in other places.
    model.set_attn_implementation("sdpa")
    exact = both_layouts(model.float(), case)[1]
    np.testing.assert_allclose(tree, exact, atol=0.2, rtol=0)
    assert np.abs(tree - exact).mean() < 2 * np.abs(padded - exact).mean() + 1e-3


def test_float32_near_the_threshold_attends_by_segments_where_the_kernel_computes_no_float32(
    flash_stand_in: str, case: tuple[Pool, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    half_precision_kernel(monkeypatch)
    model = random_model("Llama", SMALL, flash_stand_in).bfloat16().eval()
    with torch.no_grad(), use_float32(model):
        assert choose_tree_attention(model) == "segments"
        scorer = prepare_scorer(model, case[0], MIWVConfig(), WORLD)
        found = layout_module.score_pool(scorer, case[1], "tree").one_shot
    assert choose_tree_attention(model) == "varlen"
    model.set_attn_implementation("sdpa")
    np.testing.assert_allclose(found, both_layouts(model.float(), case)[1][1], atol=2e-5, rtol=0)


def test_the_attention_of_a_model_comes_back_after_an_error(flash_stand_in: str, varlen_on_cpu: None) -> None:
    model = random_model("Llama", SMALL, flash_stand_in)
    with pytest.raises(RuntimeError, match="in between"), use_tree_attention(model, "varlen"):
        assert model.config._attn_implementation == VARLEN
        raise RuntimeError("in between")
    assert model.config._attn_implementation == flash_stand_in


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"])
def test_models_loaded_with_flash_attention_fall_back_where_it_cannot_be_called(
    name: str, case: tuple[Pool, np.ndarray], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    model = tiny_model()
    # FlashAttention is not installed, so nothing can be forwarded.
    monkeypatch.setattr(layout_module, "settle_padding", lambda scorer, exemplars: scorer)
    monkeypatch.setattr(layout_module, "check_causal", lambda scorer: None)
    model.config._attn_implementation = name
    assert choose(model, case) == "padded"
    assert f"its attention is {name!r}, which takes no mask of its own for each row, and variable-length" in caplog.text
    assert "it runs on CUDA devices only, and the model is on a device of the type 'cpu'" in caplog.text


def softcapped() -> Any:
    return random_model("Gemma2", WINDOWED["Gemma2"]).bfloat16()


def with_sinks() -> Any:
    return random_model("GptOss", WINDOWED["GptOss"]).bfloat16()


def with_wide_heads() -> Any:
    return random_model("Llama", {**SMALL, "head_dim": 264}).bfloat16()


def with_wide_full_layers() -> Any:
    return build_family("gemma4_text", global_head_dim=512).bfloat16()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (softcapped, "it computes no soft-capped scores"),
        (with_sinks, "it computes no attention sinks"),
        (with_wide_heads, "it takes attention heads of at most 256 numbers, and the model's have 264"),
        (with_wide_full_layers, "it takes attention heads of at most 256 numbers, and the model's have 512"),
        (
            lambda: tiny_model(),
            "it computes in torch.bfloat16 or torch.float16, and the model's weights are torch.float32",
        ),
        (lambda: tiny_model().double(), "and the model's weights are torch.float64"),
    ],
)
def test_what_the_kernel_cannot_compute_is_told_before_the_first_forward(
    make: Callable[[], Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_precision_kernel(monkeypatch)
    model = make()
    assert reason in str(find_varlen_obstacle(model))
    assert choose_tree_attention(model) in ("mask", "segments")  # what it took before there was the kernel
    model.config._attn_implementation = "flash_attention_2"
    obstacle = find_tree_obstacle(model, CONTEXT)
    assert reason in str(obstacle) and "'flash_attention_2'" in str(obstacle)


def test_a_torch_without_the_function_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "cpu", VarlenKernel(lambda: None, (torch.float32,)))
    assert find_varlen_obstacle(tiny_model()) == "it comes with torch 2.12, and an earlier version is installed"


def pretend_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0), has_flash: bool = True, hip: Any = None
) -> torch.device:
    half_precision_kernel(monkeypatch, "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: has_flash)
    monkeypatch.setattr(torch.version, "hip", hip)
    return torch.device("cuda")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, None),
        ({"capability": (7, 5)}, "it needs a GPU of the compute capability 8.0 (Ampere) or higher"),
        ({"has_flash": False}, "this torch is built without FlashAttention"),
        ({"hip": "6.4"}, "nobody has tried it on ROCm"),
    ],
)
def test_a_gpu_or_a_torch_that_cannot_is_told(
    values: dict[str, Any], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = pretend_gpu(monkeypatch, **values)
    assert find_varlen_obstacle(tiny_model().bfloat16(), device) == expected


@pytest.mark.parametrize(
    ("argument", "text"),
    [("softcap", "soft-capped scores"), ("s_aux", "attention sinks"), ("position_bias", "position biases")],
)
def test_layers_that_ask_for_more_than_the_kernel_has_fall_back(
    argument: str, text: str, case: tuple[Pool, np.ndarray], varlen_on_cpu: None, monkeypatch: Any, caplog: Any
) -> None:
    """The configuration says nothing of it here, as with a family of the user's own."""
    own = varlen_module._attend_in_sequences

    def attend(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs, **{argument: torch.ones(1)})

    monkeypatch.setitem(AttentionInterface._global_mapping, VARLEN, attend)
    assert choose(tiny_model(), case) == "padded"
    assert "a forward of trees fails (ValueError: " in caplog.text
    assert '(by `attention="varlen"`)' in caplog.text
    assert f"variable-length attention computes no {text}" in caplog.text


def align_at_the_top_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """As FlashAttention before its version 2.1 (Dao-AILab/flash-attention#1075)."""

    def attend(query: Any, key: Any, value: Any, ends: Any, key_ends: Any, *_: Any, **options: Any) -> torch.Tensor:
        # A query that sees as many keys as there are queries up to it, counted from the first key.
        firsts = torch.cat([torch.arange(a, a + q) for a, q in zip(key_ends[:-1], ends.diff(), strict=True)])
        return attend_by_definition(
            query, key[firsts], value[firsts], ends, ends, int(ends.diff().max()), int(ends.diff().max()), **options
        )

    monkeypatch.setitem(KERNELS, "cpu", VarlenKernel(lambda: attend, (torch.float32, torch.bfloat16)))


@pytest.mark.parametrize("implementation", ["sdpa", FLASH])
def test_attention_that_is_not_causal_from_the_bottom_right_is_noticed(
    implementation: str, case: tuple[Pool, np.ndarray], flash_stand_in: str, monkeypatch: Any, caplog: Any
) -> None:
    align_at_the_top_left(monkeypatch)
    model = random_model("Llama", SMALL, implementation)
    model = model.bfloat16() if implementation == FLASH else model
    with caplog.at_level(logging.WARNING):
        assert choose(model, case) == "padded"
    assert "is scored in padded rows" in caplog.text and "samples differ by" in caplog.text
    assert '(by `attention="varlen"`)' in caplog.text


def test_masks_are_tried_before_padded_rows(
    case: tuple[Pool, np.ndarray], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    align_at_the_top_left(monkeypatch)
    model = tiny_model()
    with leave_no_trace(model), caplog.at_level(logging.WARNING):
        scorer = prepare_scorer(model, case[0], MIWVConfig(), WORLD)
        plan = plan_scoring(scorer, case[1])
        trees = layout_module.score_pool(scorer.follow(plan), case[1], plan.layout)
        padded = layout_module.score_pool(scorer, case[1], "padded")
        again = plan_scoring(prepare_scorer(model, case[0], MIWVConfig(), WORLD, scorer.checked), case[1])
    assert (plan.layout, plan.attention) == (again.layout, again.attention) == ("tree", "mask")
    # Rows with masks are shorter, as their price grows with the square of the length.
    assert plan.memory.longest_row < scorer.memory.longest_row
    np.testing.assert_allclose(trees.one_shot, padded.one_shot, atol=1e-5)
    (warning,) = caplog.messages
    assert re.fullmatch(
        r"LlamaForCausalLM attends by masks in rows of trees: otherwise the losses of . samples differ by \S+ on "
        r'average \(by `attention="varlen"`\). `attention="mask"` silences this.', warning,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("implementation", "values", "expected"),
    [
        ("sdpa", {"attention": "varlen"}, ("padded", "varlen")),
        ("sdpa", {"layout": "padded"}, ("padded", "auto")),
        ("sdpa", {"attention": "segments"}, ("tree", "segments")),
        (FLASH, {}, ("padded", "auto")),  # takes no masks
    ],
)
def test_masks_are_not_tried_where_another_way_is_asked_for_or_the_model_takes_none(
    implementation: str,
    values: dict[str, Any],
    expected: tuple[str, str],
    case: tuple[Pool, np.ndarray],
    flash_stand_in: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    align_at_the_top_left(monkeypatch)
    model = random_model("Llama", SMALL, implementation)
    model = model.bfloat16() if implementation == FLASH else model
    with leave_no_trace(model):
        plan = plan_scoring(prepare_scorer(model, case[0], MIWVConfig(**values), WORLD), case[1])
    assert (plan.layout, plan.attention) == expected


def test_a_resumed_round_attends_as_its_journal_says_or_as_is_asked_for_now(case: tuple[Pool, np.ndarray]) -> None:
    scorer = prepare_scorer(tiny_model(), case[0], MIWVConfig(), WORLD)
    plan = ScoringPlan(scorer.context, "tree", scorer.memory, "mask")
    read = ScoringPlan.from_header(json.loads(json.dumps(plan.to_header())))
    assert read == plan
    assert scorer.follow(read).config.attention == "mask"
    asked = prepare_scorer(tiny_model(), case[0], MIWVConfig(attention="segments"), WORLD)
    assert asked.follow(read).config.attention == "segments"
    before = plan.to_header()
    del before["attention"]  # a journal of an earlier version
    assert ScoringPlan.from_header(before).attention == "auto"


def test_a_round_says_that_masks_took_the_place_of_the_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    align_at_the_top_left(monkeypatch)
    pool = pool_from_rows(tiny_dataset(24), tiny_tokenizer())
    finished = finished_round(tiny_model(), pool, Store(tmp_path))
    assert (finished.summary["layout"], finished.summary["attention"]) == ("tree", "mask")


@pytest.mark.parametrize(("autocast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_under_autocast_the_kernel_computes_in_its_dtype(
    autocast: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def attend(query: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        seen.add(query.dtype)
        return attend_by_definition(query, *args, **options)

    monkeypatch.setitem(KERNELS, "cpu", VarlenKernel(lambda: attend, (torch.float32, torch.bfloat16)))
    pool = synthetic_pool([12, 9, 7, 11])
    case = pool, np.array([1, 0, 0, 0])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        both_layouts(random_model("Qwen3", FULL_ATTENTION["Qwen3"]), case)
    assert seen == {expected}


def test_queries_and_keys_that_norms_have_cast_to_float32_come_back_to_the_models_dtype(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PEFT's `prepare_model_for_kbit_training` leaves norms in float32, and queries and keys with them."""
    half_precision_kernel(monkeypatch)
    states = [torch.randn(4, 6, 8), torch.randn(2, 6, 8), torch.randn(2, 6, 8).bfloat16()]
    row = make_tree_row([Tree(0, (), True, CONTEXT)], synthetic_pool([3]))
    found = varlen_module._call_kernel(*states, make_sequences(row, CPU), 0.5)
    assert found.dtype == torch.bfloat16 and found.shape == (6, 4, 8)
    with pytest.raises(ValueError, match=r"computes in torch.bfloat16 or torch.float16, and got torch.float32"):
        varlen_module._call_kernel(*(each.float() for each in states), make_sequences(row, CPU), 0.5)


@pytest.mark.parametrize("window", [None, 5])
def test_torchs_own_function_takes_what_a_layer_gives_it(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without numbers, for which the function needs no GPU."""
    if load_varlen_attention() is None:
        pytest.skip("this torch has no variable-length attention with windows")
    monkeypatch.setitem(KERNELS, "meta", KERNELS["cuda"])
    # Autocast knows no such device.
    monkeypatch.setattr(varlen_module, "_choose_dtype", lambda allowed, states: torch.bfloat16)
    row, device = a_row(0), torch.device("meta")
    states = [torch.empty(heads, len(row.ids), width, device=device) for heads, width in ((4, 20), (2, 20), (2, 12))]
    found = varlen_module._call_kernel(*states, make_sequences(row, device, window), 0.5)
    assert found.shape == (len(row.ids), 4, 12) and found.dtype == torch.bfloat16


def test_torchs_own_function_takes_the_arguments_of_the_definition() -> None:
    attend = load_varlen_attention()
    if attend is None:
        pytest.skip("this torch has no variable-length attention with windows")
    own, ours = (inspect.signature(each).parameters for each in (attend, attend_by_definition))
    assert {name: each.kind for name, each in ours.items()} == {name: own[name].kind for name in ours}


ASKED_FOR = [
    ("varlen", "sdpa", "it runs on CUDA devices only, and the model is on a device of the type 'cpu'"),
    ("blocks", "sdpa", "its attention is 'sdpa', which takes no block mask"),
    ("mask", "flex_attention", "its attention is 'flex_attention', which takes no mask of its own for each row"),
]


@pytest.mark.parametrize(("asked", "implementation", "reason"), ASKED_FOR)
def test_an_attention_that_is_asked_for_and_cannot_be_is_refused(
    asked: str, implementation: str, reason: str, case: tuple[Pool, np.ndarray]
) -> None:
    model = random_model("Llama", SMALL, implementation)
    expected = f'LlamaForCausalLM cannot be scored with `attention="{asked}"`: {reason}.*Use "auto", or leave it out'
    with pytest.raises(ValueError, match=expected):
        check_layout(model, MIWVConfig(attention=asked), CPU)
    with pytest.raises(ValueError, match=expected):
        choose(model, case, attention=asked)


@pytest.mark.parametrize(("family", "part"), [("Gemma2", "soft-capped scores"), ("GptOss", "attention sinks")])
def test_segments_are_refused_where_torchs_attention_lacks_a_part_of_the_models(
    family: str, part: str, case: tuple[Pool, np.ndarray]
) -> None:
    model = random_model(family, WINDOWED[family])
    expected = f'`attention="segments"`: segments call torch\'s scaled dot product attention, which computes no {part}'
    with pytest.raises(ValueError, match=expected):
        check_layout(model, MIWVConfig(attention="segments"), CPU)
    assert choose(model, case) == "tree"  # by masks, which the family's own attention takes


@pytest.mark.parametrize("asked", ["segments", "varlen"])
def test_layers_that_call_an_attention_of_their_own_are_refused(asked: str, varlen_on_cpu: None) -> None:
    expected = f'`attention="{asked}"`: its layers call an attention function of their own'
    with pytest.raises(ValueError, match=expected):
        check_layout(build_family("mpt"), MIWVConfig(attention=asked), CPU)


@pytest.mark.parametrize(
    ("asked", "implementation", "taken"),
    [
        ("auto", "sdpa", "varlen"),
        ("auto", "eager", "mask"),
        ("auto", "flex_attention", "blocks"),
        ("varlen", "eager", "varlen"),
        ("varlen", "flex_attention", "varlen"),
        ("segments", "sdpa", "segments"),
        ("mask", "sdpa", "mask"),
        ("mask", "eager", "mask"),
    ],
)
def test_what_is_asked_for_is_taken_and_gives_the_same_losses(
    asked: str, implementation: str, taken: str, case: tuple[Pool, np.ndarray], varlen_on_cpu: None, monkeypatch: Any
) -> None:
    model = random_model("Llama", SMALL, implementation)
    assert choose_tree_attention(model, asked) == taken
    if implementation == "flex_attention":  # its padded rows compile, for minutes
        return
    used: list[str] = []
    own = losses_module.use_tree_attention
    monkeypatch.setattr(
        losses_module, "use_tree_attention", lambda model, attention: used.append(attention) or own(model, attention)
    )
    few = case[0], np.where(np.arange(len(case[1])) < 8, case[1], -1)
    tree, padded = both_layouts(model, few, attention=asked)
    assert used == [taken]
    np.testing.assert_allclose(tree, padded, atol=2e-5, rtol=0)


def test_a_proxy_that_waits_on_the_cpu_is_asked_where_it_will_score(monkeypatch: pytest.MonkeyPatch) -> None:
    device = pretend_gpu(monkeypatch)
    model = tiny_model().bfloat16()
    check_layout(model, MIWVConfig(attention="varlen"), device)
    with pytest.raises(ValueError, match="on a device of the type 'cpu'"):
        check_layout(model, MIWVConfig(attention="varlen"), CPU)


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Gemma3Text"])
def test_branches_of_several_exemplars_have_the_losses_of_padded_rows(family: str, varlen_on_cpu: None) -> None:
    """Each sample stands behind its three nearest, so a tree holds losses of several kinds."""
    case, values = several_windows("all are several windows long")
    exemplars = np.array([[1, 2, 4], [0, 3, 5], [0, 1, 3], [0, 5, -1], [3, 1, 0], [4, -1, -1]])
    config = MIWVConfig(score="influence", exemplars_per_sample=3, **values)
    model = random_model(family, (FULL_ATTENTION | WINDOWED)[family])
    assert choose_tree_attention(model) == "varlen"
    with leave_no_trace(model):
        tree, padded = (
            layout_module.score_pool(prepare_scorer(model, case[0], config, WORLD), exemplars, layout)
            for layout in ("tree", "padded")
        )
    for name in ("zero_shot", "one_shot", "further"):
        np.testing.assert_allclose(getattr(tree, name), getattr(padded, name), atol=2e-5, rtol=0)
    assert np.isfinite(tree.further).sum() == 9


def test_a_round_of_a_model_loaded_with_flash_attention_selects_as_float32_does(
    flash_stand_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trees in half precision by the kernel, and near the threshold in float32, which the kernel does not compute."""
    half_precision_kernel(monkeypatch)
    pool = pool_from_rows(tiny_dataset(48), tiny_tokenizer())
    config = MIWVConfig(embedder="tfidf", fraction=0.25, layout="tree")
    model = tiny_model(seed=3).to(torch.bfloat16)
    exact = finished_round(tiny_model(seed=3).bfloat16().float(), pool, Store(tmp_path / "exact"), config)
    model.set_attn_implementation(flash_stand_in)
    found = finished_round(model, pool, Store(tmp_path / "low"), config)
    assert (found.summary["layout"], found.summary["attention"]) == ("tree", "varlen")
    assert exact.summary["attention"] == "segments"
    assert 0 < found.summary["refined_samples"] < len(pool)
    assert found.selection.tolist() == exact.selection.tolist()
    assert model.config._attn_implementation == flash_stand_in


@pytest.mark.parametrize("implementation", ["sdpa", FLASH])
def test_weights_in_float32_go_to_the_kernel_under_the_autocast_of_accelerate(
    implementation: str, flash_stand_in: str, bf16_accelerator: Accelerator, tmp_path: Path, monkeypatch: Any
) -> None:
    """And near the threshold, where the model computes in float32 without autocast, they do not."""
    half_precision_kernel(monkeypatch)
    pool = pool_from_rows(tiny_dataset(48), tiny_tokenizer())
    config = MIWVConfig(embedder="tfidf", fraction=0.25, layout="tree")
    exact = finished_round(tiny_model(seed=3), pool, Store(tmp_path / "exact"), config)
    model = tiny_model(seed=3)
    model.set_attn_implementation(implementation)
    model = bf16_accelerator.prepare_model(model)
    assert choose_tree_attention(model) == "varlen"
    with use_float32(model):
        assert choose_tree_attention(model) == "segments"
    found = finished_round(model, pool, Store(tmp_path / "low"), config)
    assert found.summary["layout"] == "tree" and 0 < found.summary["refined_samples"] < len(pool)
    assert found.selection.tolist() == exact.selection.tolist()
    difference = np.abs(found.column("one_shot_loss") - exact.column("one_shot_loss"))
    assert 1e-5 < difference.max() < 0.1
