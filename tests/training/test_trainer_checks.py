"""What is told in `attach`, before anything is computed: other Trainers, other models, inputs that scoring lacks."""

import functools
import re
from dataclasses import field, make_dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import datasets
import pytest
import torch
import trl
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    DataCollatorForSeq2Seq,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from miwv_trainer import MIWVConfig, attach, tokenize
from miwv_trainer.training.trainer_checks import OTHER_TRAINERS, check_split_head
from tests.helpers.chats import find_trainer
from tests.helpers.tiny import instruction_rows, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.trainers import arguments, qwen_tokenizer

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


@pytest.mark.parametrize("value", [None, []])
@pytest.mark.parametrize("is_made_on_request", [False, True])
def test_columns_of_media_that_are_empty_are_no_matter(value: Any, is_made_on_request: bool, tmp_path: Path) -> None:
    """LLaMA-Factory's datasets always have them."""
    columns = dict.fromkeys(("images", "videos", "audios"), value)
    trainer = trainer_of(tmp_path, **columns)
    last = trainer.train_dataset[len(trainer.train_dataset) - 1]
    rows = [*list(trainer.train_dataset)[:-1], {**last, "videos": ["a.mp4"]}]
    if is_made_on_request:
        trainer.train_dataset = trainer.train_dataset.with_transform(lambda batch: dict(batch))
    attach(trainer, CONFIG)
    # One video in the last sample is enough.
    with_video = trainer_of(tmp_path)
    with_video.train_dataset = datasets.Dataset.from_list(rows)
    with pytest.raises(ValueError, match="has the column `videos`, which the model is given in training"):
        attach(with_video, CONFIG)


def test_columns_that_the_model_does_not_take_are_no_matter(tmp_path: Path) -> None:
    attach(trainer_of(tmp_path, token_type_ids=[0], source="web"), CONFIG)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that knows where it lies: some Trainers load a second one from there, as a reference."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model(tiny_config(pad_token_id=1)).save_pretrained(folder)
    return str(folder)


def reward_nothing(completions: list[str], **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def list_rows(**columns: Any) -> datasets.Dataset:
    """Eight rows: a prompt, and the columns that are given."""
    return datasets.Dataset.from_list([{"prompt": row["instruction"], **columns} for row in instruction_rows(8)])


COMPARED = {"chosen": "yes", "rejected": "no"}
NO_LOSS = r"MIWV is the loss of a given response behind its prompt"
AS_FILES = rf"{NO_LOSS}\. Score the answers as a file \(`miwv score`\), and train this Trainer on what `miwv select`"


@pytest.mark.parametrize(
    ("name", "columns", "more", "words"),
    [
        ("DPO", COMPARED, {}, rf"The DPOTrainer compares a chosen answer.*{AS_FILES}.*the chosen answer counts"),
        ("KTO", {"completion": "yes", "label": True}, {}, rf"The KTOTrainer learns .* good or bad; {AS_FILES}"),
        ("GRPO", {}, {"reward_funcs": reward_nothing}, rf"The GRPOTrainer samples its answers itself; {NO_LOSS}"),
        ("Reward", COMPARED, {}, rf"The RewardTrainer trains a reward model.*{NO_LOSS}.*train it without a selection"),
        ("Distillation", {}, {}, rf"The DistillationTrainer follows a teacher.*{NO_LOSS}"),
    ],
)
def test_trl_trainers_of_other_things_are_told_what_they_are_and_what_to_do(
    name: str, columns: dict[str, Any], more: dict[str, Any], words: str, model_folder: str, tmp_path: Path
) -> None:
    kind, configuration = find_trainer(name), getattr(trl, f"{name}Config")
    own = type("Own", (kind,), {})  # a user's subclass of it
    auto = AutoModelForSequenceClassification if name == "Reward" else AutoModelForCausalLM
    values = {"num_labels": 1} if name == "Reward" else {}
    trainer = own(
        model=auto.from_pretrained(model_folder, **values),
        args=configuration(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none"),
        train_dataset=list_rows(**columns),
        processing_class=qwen_tokenizer(),
        **({"teacher_model": tiny_model()} if name == "Distillation" else {}),
        **more,
    )
    with pytest.raises(ValueError, match=words) as refused:
        attach(trainer, CONFIG)
    assert "SFTTrainer" not in str(refused.value)


def test_a_loss_past_the_head_is_refused_where_the_head_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """What TRL 1.14 does to a model; tests/project/test_examples.py has its SFTTrainer under ZeRO-3."""

    def _chunked_ce_forward(self: Any, **_: Any) -> None: ...

    model = tiny_model()
    model.forward = MethodType(_chunked_ce_forward, model)
    check_split_head(model)
    monkeypatch.setattr("miwv_trainer.training.trainer_checks.is_sharded", lambda _: True)
    with pytest.raises(ValueError, match=r'before 1\.15 computes its loss.*Set `loss_type="nll"` in SFTConfig'):
        check_split_head(model)
    del model.forward
    check_split_head(model)


def test_the_trainers_that_are_named_and_no_others_are_trls() -> None:
    """Found in TRL's own files, so that one that is added later must be named, or be known not to matter."""
    pattern = re.compile(r"^class (\w+Trainer)\((\w+)\):", re.MULTILINE)
    files = Path(trl.__file__).parent.rglob("*_trainer.py")
    kinds = {name: base for file in files for name, base in pattern.findall(file.read_text())}
    named = {name for name in kinds if name in OTHER_TRAINERS}
    derived = {name for name, base in kinds.items() if base.removeprefix("_") in OTHER_TRAINERS}
    assert kinds.keys() - named - derived == {"SFTTrainer", "_BaseTrainer", "BaseTrainer"} & kinds.keys()


@pytest.mark.parametrize("name", ["SentenceTransformerTrainer", "SparseEncoderTrainer", "CrossEncoderTrainer"])
def test_trainers_of_sentence_transformers_are_told_by_their_package(name: str, tmp_path: Path) -> None:
    import sentence_transformers

    kind = getattr(sentence_transformers, name)
    # Made without its constructor, which wants a model of its own: the class is what is looked at.
    trainer = kind.__new__(kind)
    with pytest.raises(ValueError, match=rf"The {name} trains an encoder of sentences.*train it without a selection"):
        attach(trainer, CONFIG)


def test_classes_that_unsloth_makes_of_trls_are_known(tmp_path: Path) -> None:
    kind = type("UnslothDPOTrainer", (type("_UnslothDPOTrainer", (Trainer,), {}),), {})
    with pytest.raises(ValueError, match="The UnslothDPOTrainer compares a chosen answer"):
        attach(trainer_of(tmp_path, kind=kind), CONFIG)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"chosen_input_ids": [1], "rejected_input_ids": [2]}, rf"compares answers \(columns: .*{AS_FILES}"),
        ({"input_ids": [1, 2], "labels": 1}, r"one label for a whole sample \(1\), as classification has.*tokenize"),
        ({"input_ids": [1, 2], "labels": 0.5}, r"one label for a whole sample \(0\.5\)"),
        ({"text": "words"}, r"no `input_ids` \(columns: prompt, text\): tokenise it .* or use TRL's SFTTrainer"),
    ],
)
def test_datasets_of_other_tasks_are_told_apart(columns: dict[str, Any], words: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.train_dataset = list_rows(**columns)
    with pytest.raises(ValueError, match=words):
        attach(trainer, CONFIG)


@pytest.mark.parametrize(
    ("name", "does"), [("sample_packing", "composes lines"), ("curriculum_sampling", "trains samples in the order")]
)
def test_orders_of_axolotls_own_are_refused_by_name(name: str, does: str, tmp_path: Path) -> None:
    """axolotl's arguments have these fields, and its `_get_train_sampler` follows them."""
    arguments = make_dataclass("AxolotlArguments", [(name, bool, field(default=False))], bases=(TrainingArguments,))
    for is_set in (False, True):
        trainer = trainer_of(tmp_path)
        trainer.args = arguments(str(tmp_path), use_cpu=True, report_to="none", **{name: is_set})
        if not is_set:
            attach(trainer, CONFIG)
            continue
        with pytest.raises(ValueError, match=rf"axolotl's `{name}: true` {does} .*Set `{name}: false`"):
            attach(trainer, CONFIG)


def test_ms_swifts_own_loader_is_refused_until_the_trainer_has_that_of_transformers(tmp_path: Path) -> None:
    class SwiftMixin:
        def get_train_dataloader(self, skip_batches: int = 0) -> DataLoader:
            return DataLoader(self.train_dataset, batch_size=4)  # type: ignore[attr-defined]

    trainer = trainer_of(tmp_path, kind=type("SwiftTrainer", (SwiftMixin, Trainer), {}))
    with pytest.raises(ValueError, match=r"ms-swift's Trainer draws its batches itself.*Trainer.get_train_dataloader"):
        attach(trainer, CONFIG)
    trainer.get_train_dataloader = functools.partial(Trainer.get_train_dataloader, trainer)
    attach(trainer, CONFIG)


def test_an_sft_trainer_that_left_its_dataset_as_it_was_is_not_told_to_use_itself(tmp_path: Path) -> None:
    values = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    trainer = trl.SFTTrainer(
        tiny_model(),
        trl.SFTConfig(**values, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=list_rows(completion="yes"),
        processing_class=qwen_tokenizer(),
    )
    with pytest.raises(ValueError, match=r"SFTTrainer left it as it was; let it prepare .*`skip_prepare_dataset`"):
        attach(trainer, CONFIG)


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
        (
            lambda: BertLMHeadModel(
                BertConfig(vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
            ),
            "BertLMHeadModel sees the tokens that follow.*Load it with `is_decoder=True`",
        ),
        (
            lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=512, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
            ),
            r"is an encoder-decoder model.*Train an `AutoModelForCausalLM`",
        ),
        (
            lambda: LlamaModel(tiny_config()),
            "LlamaModel has no output layer that predicts tokens.*AutoModelForCausalLM",
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


NO_TOKENIZER = "has no tokenizer (`processing_class`), so the"


def train_with(folder: Path, caplog: pytest.LogCaptureFixture, dataset: Any, tokenizer: Any, **config: Any) -> Any:
    """The callback of one short training on an already tokenised dataset."""
    trainer = Trainer(
        tiny_model(tiny_config(**config)),
        arguments(folder, num_train_epochs=1),
        train_dataset=dataset,
        data_collator=DataCollatorForSeq2Seq(tiny_tokenizer()),
        processing_class=tokenizer,
    )
    callback = attach(trainer, MIWVConfig(fraction=0.25, embedder="model"))
    caplog.clear()
    trainer.train()
    return callback


def test_tokens_that_may_be_a_system_turn_are_told_where_there_is_no_tokenizer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tiny_tokenizer()
    dataset = tokenize(tiny_dataset(12), tokenizer)
    whole = [row["input_ids"] for row in dataset]
    count = next(n for n, ids in enumerate(zip(*whole, strict=False)) if len(set(ids)) > 1)
    train_with(tmp_path / "without", caplog, dataset, None)
    assert caplog.text.count(NO_TOKENIZER) == 1
    assert f"the {count} tokens with which all prompts begin" in caplog.text
    callback = train_with(tmp_path / "with", caplog, dataset, tokenizer)
    assert NO_TOKENIZER not in caplog.text and 0 < len(callback.pool.preamble) < count


def test_without_a_tokenizer_prompts_that_begin_otherwise_are_no_matter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = tokenize(tiny_dataset(12), tiny_tokenizer())
    numbered = dataset.map(lambda row, index: {"input_ids": [20 + index, *row["input_ids"][1:]]}, with_indices=True)
    train_with(tmp_path, caplog, numbered, None)
    assert "processing_class" not in caplog.text


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_padding_without_a_mask_is_told(
    side: str, has_tokenizer: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tiny_tokenizer()
    pad = tokenizer.pad_token_id
    dataset = tokenize(tiny_dataset(12), tokenizer)
    longest = max(len(row["input_ids"]) for row in dataset)
    short = sum(len(row["input_ids"]) <= longest - 2 for row in dataset)

    def fill(values: list[int], token: int) -> list[int]:
        filling = [token] * (longest - len(values))
        return [*values, *filling] if side == "right" else [*filling, *values]

    padded = dataset.map(
        lambda row: {"input_ids": fill(row["input_ids"], pad), "labels": fill(row["labels"], -100)}
    ).remove_columns("attention_mask")
    train_with(tmp_path / "padded", caplog, padded, tokenizer if has_tokenizer else None, pad_token_id=pad)
    assert f"{short} of 12 samples begin or end with several pad tokens (id {pad})" in caplog.text
    train_with(tmp_path / "plain", caplog, dataset.remove_columns("attention_mask"), tokenizer)
    assert "pad tokens" not in caplog.text
