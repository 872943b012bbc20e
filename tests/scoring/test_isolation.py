"""Scoring leaves no trace: selecting everything trains to the same bits as never having scored."""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Sampler
from transformers import DataCollatorForSeq2Seq, Trainer

import miwv_trainer.scoring.isolation
import miwv_trainer.training.callback
from miwv_trainer import MIWVConfig, MIWVDataSampler, attach, tokenize
from tests.helpers.tiny import tiny_dataset, tiny_model, tiny_tokenizer
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
