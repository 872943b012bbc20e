"""What forwards before the first row have found is not asked again in the same training, unless something changed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import choose_layout
from miwv_trainer.scoring.scorer import CheckedModel, prepare_scorer
from tests.helpers.families import EXEMPLARS, FAMILIES, build_family, make_samples
from tests.helpers.losses import pool_of
from tests.helpers.tiny import tiny_model

WORLD = World(0, 1, torch.device("cpu"), quiet=True)
POOL = pool_of(make_samples())


def count_forwards(model: Any, checked: dict[str, CheckedModel], **values: Any) -> tuple[str, int]:
    """The layout that a round takes, and how many forwards it took to find it."""
    calls: list[int] = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    with leave_no_trace(model):
        layout = choose_layout(prepare_scorer(model, POOL, MIWVConfig(**values), WORLD, checked), EXEMPLARS)
    handle.remove()
    return layout, len(calls)


def shrink_context(model: Any) -> dict[str, Any]:
    return {"scoring_max_length": 90}


def shrink_forwards(model: Any) -> dict[str, Any]:
    return {"tokens_per_batch": 512}


def change_an_entry(model: Any) -> dict[str, Any]:
    model.config.rms_norm_eps = 1e-4
    return {}


def change_the_dtype(model: Any) -> dict[str, Any]:
    model.double()
    return {}


def change_the_attention(model: Any) -> dict[str, Any]:
    model.set_attn_implementation("eager")
    return {}


CHANGES = [shrink_context, shrink_forwards, change_an_entry, change_the_dtype, change_the_attention]


def test_a_later_round_asks_nothing() -> None:
    model, checked = tiny_model(), {}
    layout, first = count_forwards(model, checked)
    assert first > 5
    with torch.no_grad():  # training changes weights
        model.lm_head.weight.mul_(1.5)
    assert count_forwards(model, checked) == (layout, 0)
    # Another training, or another process, knows nothing of it.
    assert count_forwards(model, {}) == (layout, first)


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_asked_again(change: Callable[[Any], dict[str, Any]]) -> None:
    model, checked = tiny_model(), {}
    count_forwards(model, checked)
    values = change(model)
    assert count_forwards(model, checked, **values)[1] > 5


def test_obstacles_that_were_found_stay() -> None:
    layouts = {"gpt_neo": "padded", "dots3_note_text": "equal"}
    for family in sorted(layouts.keys() & set(FAMILIES)):  # older versions of transformers lack the second
        model, layout = build_family(family), layouts[family]
        checked: dict[str, CheckedModel] = {}
        assert count_forwards(model, checked)[0] == layout
        assert count_forwards(model, checked) == (layout, 0)


def make_pool(count: int) -> tuple[Pool, np.ndarray]:
    """Samples of 20 to 250 tokens, half of each response; every fourth one stands behind each of the next three."""
    lengths = np.random.default_rng(0).integers(10, 126, count)
    samples = [[(3 + number % 100, False)] * length + [(7, True)] * length for number, length in enumerate(lengths)]
    exemplars = np.arange(count) // 4 * 4
    exemplars[::4] = (exemplars[::4] + 1) % count
    return pool_of(samples), exemplars


@pytest.mark.parametrize(("count", "least_row"), [(40, 0), (2000, 700)])
def test_checks_are_cheap_beside_a_small_pool_and_take_long_rows_of_a_large_one(count: int, least_row: int) -> None:
    model, (pool, exemplars) = tiny_model(), make_pool(count)
    shapes: list[tuple[int, ...]] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    with leave_no_trace(model):
        assert choose_layout(prepare_scorer(model, pool, MIWVConfig(), WORLD), exemplars) == "tree"
    handle.remove()
    assert max(length for _, length in shapes) >= least_row
    # Two dozen rows of at most 256 tokens, or of at most 1/256 of the pass.
    assert sum(rows * length for rows, length in shapes) < max(25 * 256, 0.05 * 2 * pool.lengths.sum())
