"""Models that see the tokens that follow are refused before anything is scored, whatever their family."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, BertLMHeadModel, FlaubertConfig, FlaubertWithLMHeadModel

from miwv_trainer.compat import is_at_least
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.scoring.causality import check_causal
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import choose_layout
from miwv_trainer.scoring.model_checks import SEEING_ALWAYS, SEEING_UNLESS_SWITCHED, check_model_kind
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


# In between, these three look in both directions whatever their configuration says, and are rightly refused.
LOOK_BOTH_WAYS = {"big_bird", "rembert", "roformer"}
IN_BETWEEN = is_at_least("transformers", "5.7") and not is_at_least("transformers", "5.19")


def skip_if_ignored(family: str, families: set[str]) -> None:
    """Skips one of these families where the installed transformers may not do what its configuration says."""
    if family in families and IN_BETWEEN:
        pytest.skip("transformers from 5.7 to 5.18 may ignore is_decoder in this family")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "switch"),
    [("bert", "is_decoder"), ("roberta", "is_decoder"), ("electra", "is_decoder"), ("big_bird", "is_decoder")]
    + [("rembert", "is_decoder"), ("xlm", "causal"), ("roformer", "is_decoder"), ("camembert", "is_decoder")],
)
def test_a_family_that_attends_in_both_directions_is_refused_until_it_is_told_not_to(
    family: str, switch: str, dtype: torch.dtype
) -> None:
    skip_if_ignored(family, LOOK_BOTH_WAYS)
    check(build_family(family, **{switch: True}).to(dtype))
    with pytest.raises(ValueError, match=rf"sees the tokens that follow.*Load it with `{switch}=True`"):
        check(build_family(family, **{switch: False}).to(dtype))


def test_a_family_without_a_switch_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="XLNetLMHeadModel sees the tokens that follow.*Train a causal language model"):
        check(build_family("xlnet"))


@pytest.mark.parametrize("family", sorted(SEEING_UNLESS_SWITCHED - {"flaubert"} | SEEING_ALWAYS))
def test_what_is_told_of_a_family_by_its_configuration_is_what_its_forwards_show(family: str) -> None:
    skip_if_ignored(family, LOOK_BOTH_WAYS | {"megatron-bert"})
    known = AutoConfig.for_model(family)
    switch = "causal" if hasattr(known, "causal") else "is_decoder"
    model = build_family(family, **({switch: False} if family in SEEING_UNLESS_SWITCHED else {}))
    with pytest.raises(ValueError, match="sees the tokens that follow") as told:
        check_model_kind(model)
    with pytest.raises(ValueError, match="sees the tokens that follow") as shown:
        check(model)
    assert str(told.value) == str(shown.value)
    if family in SEEING_UNLESS_SWITCHED:
        causal = build_family(family, **{switch: True})
        check_model_kind(causal)
        check(causal)


def test_flaubert_is_told_too_which_no_auto_class_loads() -> None:
    sizes = {"vocab_size": 128, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "init_std": 0.3, "embed_init_std": 0.3}
    for causal in (False, True):
        model = FlaubertWithLMHeadModel(FlaubertConfig(**sizes, causal=causal)).eval()
        for ask in (check_model_kind, check):
            with nullcontext() if causal else pytest.raises(ValueError, match="Flaubert.*Load it with `causal=True`"):
                ask(model)


def test_entries_that_change_nothing_and_classes_of_ones_own_are_left_to_the_forwards() -> None:
    for family in ("gpt_neox", "bart", "trocr"):
        model = build_family(family, is_decoder=False)
        check_model_kind(model)
        check(model)

    class Masked(BertLMHeadModel):
        """Might pass a causal mask of its own to BERT."""

    model = Masked(build_family("bert", is_decoder=False).config)
    check_model_kind(model)
    with pytest.raises(ValueError, match="Masked sees the tokens that follow"):
        check(model.eval())


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
