"""Models that see the tokens that follow are refused before anything is scored, whatever their family."""

from typing import Any

import numpy as np
import pytest
import torch

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.scoring.causality import check_causal
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import choose_layout
from miwv_trainer.scoring.response_losses import compute_response_losses
from miwv_trainer.scoring.scorer import prepare_scorer
from tests.helpers.families import EXEMPLARS, build_family, make_samples
from tests.helpers.losses import pool_of
from tests.helpers.tiny import tiny_model

WORLD = World(0, 1, torch.device("cpu"), quiet=True)
POOL = pool_of(make_samples())


def check(model: Any, pool: Pool = POOL, **values: Any) -> None:
    with leave_no_trace(model):
        check_causal(prepare_scorer(model, pool, MIWVConfig(**values), WORLD))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "switch"),
    [("bert", "is_decoder"), ("roberta", "is_decoder"), ("electra", "is_decoder"), ("big_bird", "is_decoder")]
    + [("rembert", "is_decoder"), ("xlm", "causal"), ("roformer", "is_decoder"), ("camembert", "is_decoder")],
)
def test_a_family_that_attends_in_both_directions_is_refused_until_it_is_told_not_to(
    family: str, switch: str, dtype: torch.dtype
) -> None:
    check(build_family(family, **{switch: True}).to(dtype))
    with pytest.raises(ValueError, match=rf"sees the tokens that follow.*Load it with `{switch}=True`"):
        check(build_family(family, **{switch: False}).to(dtype))


def test_a_family_without_a_switch_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="XLNetLMHeadModel sees the tokens that follow.*Train a causal language model"):
        check(build_family("xlnet"))


def test_whatever_asks_for_losses_asks_first() -> None:
    model = build_family("bert", is_decoder=False)
    with leave_no_trace(model):
        for values in ({}, {"layout": "padded"}, {"score": "zero_shot_loss"}):
            with pytest.raises(ValueError, match="BertLMHeadModel sees the tokens that follow"):
                choose_layout(prepare_scorer(model, POOL, MIWVConfig(**values), WORLD), EXEMPLARS)
    with pytest.raises(ValueError, match="BertLMHeadModel sees the tokens that follow"):
        compute_response_losses(model, POOL)


def test_experts_rounding_and_pools_of_one_token_are_no_sight() -> None:
    check(build_family("mixtral").bfloat16())
    same = pool_of([[(5, False), (5, True)]] * 2)
    check(tiny_model(), Pool(np.full(1, 5, dtype=np.int32), same.tokens, same.is_response, same.offsets))
