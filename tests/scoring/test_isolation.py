"""Scoring leaves no trace in the model or in random states: training ends in the same bits as without it."""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import DataCollatorForSeq2Seq, Trainer

import miwv_trainer.scoring.isolation
import miwv_trainer.training.callback
from miwv_trainer import MIWVConfig, MIWVDataSampler, attach, tokenize
from miwv_trainer.scoring.isolation import leave_no_trace, preserve_rng
from tests.helpers.losses import as_array, score
from tests.helpers.tiny import tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.trainers import arguments, lora

COUNT, EPOCHS, SEED = 12, 2, 3


class PlainOrder(Sampler[int]):
    """The order of a MIWVDataSampler over the whole pool, written out."""

    def __init__(self) -> None:
        sampler = MIWVDataSampler(COUNT, fraction=1.0, seed=SEED)
        sampler.set_selection(np.arange(COUNT))
        self.epochs = [sampler.order(epoch).tolist() for epoch in range(EPOCHS)]
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(self.epochs[self.epoch])

    def __len__(self) -> int:
        return COUNT


def draws_when_scored(module: Any, *_: Any) -> None:
    """Stands for whatever may draw random numbers in a scoring forward: a router's noise, an embedder."""
    if not module.training:
        random.random(), np.random.rand(), torch.rand(1)


def final_weights(folder: Path, workers: int, attached: bool) -> dict[str, torch.Tensor]:
    tokenizer = tiny_tokenizer()
    model = lora(tiny_model(), dropout=0.1)
    model.register_forward_pre_hook(draws_when_scored)
    trainer = Trainer(
        model=model,
        args=arguments(
            folder,
            num_train_epochs=EPOCHS,
            dataloader_num_workers=workers,
            neftune_noise_alpha=5.0,
            learning_rate=1e-2,
            seed=SEED,
        ),
        train_dataset=tokenize(tiny_dataset(COUNT), tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    if attached:
        attach(trainer, MIWVConfig(fraction=1.0, embedder="tfidf", rescore_strategy="epoch"))
    else:
        order = PlainOrder()
        trainer._get_train_sampler = lambda *args, **kwargs: order
    random.seed(SEED), np.random.seed(SEED), torch.manual_seed(SEED)
    trainer.train()
    return {name: value.detach().clone() for name, value in model.named_parameters() if "lora" in name}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("workers", [0, 2])
def test_selecting_everything_ends_in_the_same_bits_as_a_plain_sampler(tmp_path: Path, workers: int) -> None:
    plain = final_weights(tmp_path / "plain", workers, attached=False)
    scored = final_weights(tmp_path / "scored", workers, attached=True)
    assert same(plain, scored)


def test_without_the_guard_the_bits_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = final_weights(tmp_path / "plain", 0, attached=False)
    for module in (miwv_trainer.scoring.isolation, miwv_trainer.training.callback):
        monkeypatch.setattr(module, "preserve_rng", contextlib.nullcontext)
    assert not same(plain, final_weights(tmp_path / "scored", 0, attached=True))


def draw_from_all() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()


def random_states() -> tuple:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


@pytest.mark.parametrize(
    "guard", [preserve_rng, lambda: leave_no_trace(nn.Dropout())], ids=["preserve_rng", "leave_no_trace"]
)
@pytest.mark.parametrize("raising", [False, True])
def test_random_states_come_back_although_the_block_draws_from_all_of_them(guard, raising):
    before = random_states()
    context = pytest.raises(RuntimeError, match="in the block") if raising else contextlib.nullcontext()
    with context, guard():
        draw_from_all()
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        assert all(inside != outside for inside, outside in zip(random_states(), before, strict=True))
        if raising:
            raise RuntimeError("in the block")
    assert random_states() == before


def test_without_the_guard_random_states_do_not_come_back():
    before = random_states()
    draw_from_all()
    assert all(after != outside for after, outside in zip(random_states(), before, strict=True))


@pytest.mark.parametrize("raising", [False, True])
def test_every_module_gets_its_own_training_flag_back(model, raising):
    model.train()
    model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    assert len(set(before.values())) == 2
    context = pytest.raises(RuntimeError, match="in the block") if raising else contextlib.nullcontext()
    with context, leave_no_trace(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        if raising:
            raise RuntimeError("in the block")
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.is_grad_enabled()


def test_a_model_with_dropout_in_training_mode_gives_the_losses_of_evaluation_mode():
    model = tiny_model(tiny_config(attention_dropout=0.5))
    in_evaluation = as_array(score(model))
    model.train()
    assert not np.array_equal(as_array(score(model)), in_evaluation)
    with leave_no_trace(model):
        assert np.array_equal(as_array(score(model)), in_evaluation)
    assert model.training


def test_scoring_leaves_weights_and_gradients_alone(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with leave_no_trace(model):
        score(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
