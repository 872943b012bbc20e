"""What is told in `attach`, before anything is computed: other Trainers, other models, inputs that scoring lacks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForSeq2Seq,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    PreTrainedModel,
    Trainer,
)

from miwv_trainer import MIWVConfig, attach, tokenize
from tests.helpers.tiny import tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.trainers import arguments

CONFIG = MIWVConfig(fraction=0.25, embedder="tfidf")


def trainer_of(folder: Path, model: Any = None, kind: type[Trainer] = Trainer, **column: Any) -> Trainer:
    tokenizer = tiny_tokenizer()
    pool = tokenize(tiny_dataset(12), tokenizer)
    for name, value in column.items():
        pool = pool.add_column(name, [value] * len(pool))
    return kind(
        model or tiny_model(),
        arguments(folder, num_train_epochs=1),
        train_dataset=pool,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )


class WithTypes(PreTrainedModel):
    """Takes token types, as GPT-2 does."""

    config_class = type(tiny_config())

    def __init__(self) -> None:
        super().__init__(tiny_config())
        self.inside = tiny_model()

    def forward(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None, **kwargs: Any) -> Any:
        return self.inside(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


@pytest.mark.parametrize(
    ("model", "column"),
    [
        (tiny_model, {"pixel_values": [0.0]}),
        (tiny_model, {"images": [[0]]}),
        (tiny_model, {"input_features": [0.0]}),
        (WithTypes, {"token_type_ids": [0]}),
        (tiny_model, {"inputs_embeds": [[0.0]]}),
    ],
)
def test_a_column_that_the_model_sees_in_training_alone_is_refused_by_name(
    model: Any, column: dict[str, Any], tmp_path: Path
) -> None:
    (name,) = column
    with pytest.raises(ValueError, match=rf"has the column `{name}`, which the model is given in training.*remove the"):
        attach(trainer_of(tmp_path, model(), **column), CONFIG)


def test_columns_that_the_model_does_not_take_are_no_matter(tmp_path: Path) -> None:
    attach(trainer_of(tmp_path, token_type_ids=[0], source="web"), CONFIG)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("DPOTrainer", r"DPOTrainer compares a chosen answer.*`miwv score`.*the chosen answer counts"),
        ("GRPOTrainer", r"GRPOTrainer samples its answers itself.*nothing to score"),
        ("RewardTrainer", r"RewardTrainer trains a reward model"),
        ("SentenceTransformerTrainer", r"trains embeddings of sentences"),
    ],
)
def test_trainers_of_other_things_are_told_apart_by_their_names(name: str, words: str, tmp_path: Path) -> None:
    kind = type("Own", (type(name, (Trainer,), {}),), {})  # a user's subclass of it
    with pytest.raises(ValueError, match=words):
        attach(trainer_of(tmp_path, kind=kind), CONFIG)


def test_the_trainers_that_are_named_exist_in_trl() -> None:
    import trl

    for name in ("DPOTrainer", "GRPOTrainer", "RewardTrainer", "RLOOTrainer", "KTOTrainer"):
        assert hasattr(trl, name)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: LlamaForSequenceClassification(tiny_config()), "LlamaForSequenceClassification is no causal language"),
        (lambda: LlamaForTokenClassification(tiny_config()), "it classifies tokens"),
        (
            lambda: BertForMaskedLM(
                BertConfig(vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
            ),
            "it fills masked tokens in",
        ),
        (lambda: nn.Linear(2, 2), "is a Linear, which is no `PreTrainedModel`"),
    ],
)
def test_models_for_other_tasks_are_refused(model: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        attach(trainer_of(tmp_path, model()), CONFIG)


def test_what_is_no_trainer_or_no_configuration_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="takes a Trainer that has been made, but got the class Trainer"):
        attach(Trainer, CONFIG)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be a MIWVConfig or a mapping.*got 0.05.*fraction=0.05"):
        attach(trainer_of(tmp_path), 0.05)  # type: ignore[arg-type]


class NoOptions(PreTrainedModel):
    """A forward that takes what a Trainer gives and nothing else, and returns a dictionary."""

    config_class = type(tiny_config())

    def __init__(self) -> None:
        super().__init__(tiny_config())
        self.inside = tiny_model()

    def get_output_embeddings(self) -> nn.Module:
        return self.inside.lm_head

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> dict[str, torch.Tensor]:
        found = self.inside(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        return {"loss": found.loss, "logits": found.logits} if labels is not None else {"logits": found.logits}


class Tuples(NoOptions):
    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
        return tuple(super().forward(input_ids, attention_mask, labels).values())


@pytest.mark.parametrize("kind", [NoOptions, Tuples])
def test_a_forward_without_options_that_returns_a_dict_or_a_tuple_has_the_same_losses(
    kind: type[NoOptions], tmp_path: Path
) -> None:
    plain, own = trainer_of(tmp_path / "plain"), trainer_of(tmp_path / "own", kind())
    rounds = []
    for trainer in (plain, own):
        callback = attach(trainer, CONFIG)
        trainer.train()
        rounds.append(callback.rounds[0])
    for name in ("zero_shot_loss", "one_shot_loss"):
        torch.testing.assert_close(
            torch.tensor(rounds[1].column(name)), torch.tensor(rounds[0].column(name)), atol=2e-5, rtol=0
        )
    assert rounds[0].selection.tolist() == rounds[1].selection.tolist()


def test_an_image_processor_as_processing_class_is_no_tokenizer(tmp_path: Path) -> None:
    from transformers import ImageProcessingMixin

    trainer = trainer_of(tmp_path)
    trainer.processing_class = ImageProcessingMixin()
    callback = attach(trainer, CONFIG)
    assert callback.pool is not None and len(callback.pool) == 12
