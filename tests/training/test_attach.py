"""`attach` on real Trainers: what is trained is what was selected, and the Trainer's arithmetic stays true."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig
from transformers import (
    Trainer,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from miwv_trainer import MIWVCallback, MIWVConfig, MIWVDataSampler, attach, tokenize
from miwv_trainer.compat import is_at_least
from tests.helpers.tiny import instruction_rows, tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.trainers import (
    NotingTrainer,
    arguments,
    by_epoch,
    conversations,
    lora,
    noting_trainer,
    prompt_completions,
    qwen_tokenizer,
    rebuilt,
)


@pytest.mark.parametrize(
    ("adapter", "workers", "accumulation"), [("full", 0, 1), ("lora", 0, 2), ("full", 2, 2), ("lora", 2, 1)]
)
def test_each_selected_sample_is_trained_once_an_epoch_and_no_other(
    tmp_path: Path, adapter: str, workers: int, accumulation: int
) -> None:
    model = lora(tiny_model()) if adapter == "lora" else tiny_model()
    trainer = noting_trainer(
        tmp_path,
        model=model,
        dataloader_num_workers=workers,
        gradient_accumulation_steps=accumulation,
    )
    callback = attach(trainer, MIWVConfig(fraction=0.5, embedder="tfidf", rescore_strategy="epoch"))
    trainer.train()
    assert len(callback.rounds) == 2
    for positions, current in zip(by_epoch(), callback.rounds, strict=True):
        assert sorted(positions) == current.selection.tolist()
        assert positions != current.selection.tolist()  # shuffled
    # 16 of 32 samples are 4 batches an epoch; the Trainer announced these steps before the first score existed.
    assert trainer.state.global_step == trainer.state.max_steps == 2 * 4 // accumulation
    assert trainer.lr_scheduler.get_last_lr()[-1] == 0.0


@pytest.mark.skipif(not is_at_least("transformers", "5.0"), reason="asked of the Trainer's method as of transformers 5")
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"max_steps": 7},
        {"dataloader_drop_last": True},
        {"num_train_epochs": 1.5, "dataloader_num_workers": 1},
    ],
)
def test_the_trainer_counts_steps_and_samples_as_one_that_trains_the_selected_samples_alone(
    overrides: dict[str, Any], tmp_path: Path
) -> None:
    count = 18  # of 36; with 4 a batch, 2 samples are left over
    trainer, alone = (noting_trainer(tmp_path, number, **overrides) for number in (2 * count, count))
    attach(trainer, MIWVConfig(fraction=0.5, embedder="tfidf"))
    values, expected = (
        list(each.set_initial_training_values(each.args, each.get_train_dataloader())) for each in (trainer, alone)
    )
    if "dataloader_drop_last" in overrides:  # the Trainer counts samples that it never trains
        assert expected[2:4] == [18, 36]
        expected[2:4] = [16, 32]
    assert values == expected
    assert trainer.num_examples(trainer.get_eval_dataloader(trainer.train_dataset)) == 2 * count


def test_throughput_is_of_the_samples_that_were_trained(tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path)
    attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf"))
    metrics = trainer.train().metrics
    assert metrics["train_samples_per_second"] * metrics["train_runtime"] == pytest.approx(2 * 8, rel=0.02)


def test_the_second_round_scores_the_model_as_it_is_after_the_first_epoch(tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path, learning_rate=5e-2)
    callback = attach(trainer, MIWVConfig(fraction=0.5, embedder="tfidf", rescore_strategy="epoch"))
    trainer.train()
    first, second = callback.rounds
    assert (first.summary["global_step"], second.summary["global_step"]) == (0, 4)
    assert not np.array_equal(first.column("miwv"), second.column("miwv"))
    assert np.array_equal(first.column("exemplar"), second.column("exemplar"))
    assert first.selection.tolist() != second.selection.tolist()


def test_without_rescoring_all_epochs_train_the_same_samples_in_other_orders(tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path)
    callback = attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf"))
    trainer.train()
    first, second = by_epoch()
    assert len(callback.rounds) == 1
    assert sorted(first) == sorted(second) == callback.rounds[0].selection.tolist()
    assert first != second


@pytest.mark.parametrize("when", ["before", "after"])
def test_other_callbacks_may_be_added_before_or_after(tmp_path: Path, when: str) -> None:
    class Counter(TrainerCallback):
        steps = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps += 1

    trainer, counter = noting_trainer(tmp_path), Counter()
    if when == "before":
        trainer.add_callback(counter)
    attach(trainer, {"fraction": 0.25, "embedder": "tfidf"})
    if when == "after":
        trainer.add_callback(counter)
    trainer.train()
    assert counter.steps == 4


class NotingSFTTrainer(SFTTrainer):
    """Notes the token ids of every row that is trained, without padding."""

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        pairs = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
        trained_rows.extend(tuple(token for token, kept in zip(*pair, strict=True) if kept) for pair in pairs)
        return super().training_step(model, inputs, num_items_in_batch)


trained_rows: list[tuple[int, ...]] = []


# The other two pairs are trained by TRL's own script, in test_foreign.py.
@pytest.mark.parametrize(("kind", "adapter"), [("prompt_completion", "lora"), ("messages", "full")])
def test_sft_trainer_trains_its_selection(tmp_path: Path, kind: str, adapter: str) -> None:
    import datasets

    rows = prompt_completions(24) if kind == "prompt_completion" else conversations(24)
    values = arguments(tmp_path).to_dict()
    kept = ("output_dir", "num_train_epochs", "per_device_train_batch_size", "use_cpu", "disable_tqdm", "save_strategy")
    trained_rows.clear()
    trainer = NotingSFTTrainer(
        model=tiny_model(),
        args=SFTConfig(
            **{name: values[name] for name in kept},
            report_to="none",
            bf16=False,
            assistant_only_loss=kind == "messages",
            max_length=256,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=qwen_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj"]) if adapter == "lora" else None,
    )
    callback = attach(trainer, MIWVConfig(fraction=0.5, embedder="tfidf", rescore_strategy="epoch"))
    trainer.train()
    pool = callback.pool
    whole = [(*pool.preamble.tolist(), *pool.sample(index).tolist()) for index in range(24)]
    assert len(set(whole)) == 24
    for current, rows in zip(callback.rounds, (trained_rows[:12], trained_rows[12:]), strict=True):
        assert sorted(rows) == sorted(whole[index] for index in current.selection)
    assert trainer.state.global_step == trainer.state.max_steps == 6
    assert not np.isnan(callback.rounds[0].column("miwv")).any()


def test_by_hand_gives_the_same_order_and_the_same_weights_as_attach(tmp_path: Path) -> None:
    config = MIWVConfig(fraction=0.25, embedder="tfidf", rescore_strategy="epoch")
    attached = noting_trainer(tmp_path / "attached", model=lora(tiny_model(), dropout=0.1))
    attach(attached, config)
    torch.manual_seed(11)
    attached.train()
    order_attached = by_epoch()

    sampler = MIWVDataSampler(32, fraction=0.25, seed=3)

    class ByHand(NotingTrainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> MIWVDataSampler:
            return sampler

    plain = noting_trainer(tmp_path / "by-hand", model=lora(tiny_model(), dropout=0.1))
    by_hand = rebuilt(ByHand, plain, callbacks=[MIWVCallback(config, sampler)])
    torch.manual_seed(11)
    by_hand.train()
    assert by_epoch() == order_attached
    weights = dict(attached.model.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in by_hand.model.named_parameters())


def test_attaching_again_takes_the_dataset_as_it_is_then(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = noting_trainer(tmp_path)
    first = attach(trainer, MIWVConfig(fraction=0.5, embedder="tfidf"))
    trainer.train_dataset = trainer.train_dataset.shuffle(seed=1).select(range(len(trainer.train_dataset) // 2))
    second = attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf"))
    assert "its pool and configuration are replaced" in caplog.text
    assert trainer.callback_handler.callbacks.count(second) == 1 and first not in trainer.callback_handler.callbacks
    trainer.train()
    assert first.rounds == []
    selected = {tuple(trainer.train_dataset[int(index)]["input_ids"]) for index in second.rounds[0].selection}
    assert len(second.rounds[0].selection) == len(trainer.train_dataset) // 4
    trained = {tuple(trainer.train_dataset[index]["input_ids"]) for index in trainer._get_train_sampler()}
    assert trained == selected


def test_a_callback_that_was_given_by_hand_is_not_replaced(tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path)
    sampler = MIWVDataSampler(len(trainer.train_dataset), fraction=0.05, seed=0)
    trainer.add_callback(MIWVCallback(MIWVConfig(fraction=0.05, embedder="tfidf"), sampler))
    with pytest.raises(ValueError, match="was given a MIWVCallback by hand.* Leave that callback out"):
        attach(trainer, MIWVConfig(embedder="tfidf"))


def test_attaching_during_the_training_is_refused(tmp_path: Path) -> None:
    class Late(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            attach(trainer, MIWVConfig(embedder="tfidf"))

    trainer = noting_trainer(tmp_path)
    attach(trainer, MIWVConfig(embedder="tfidf"))
    trainer.add_callback(Late())
    with pytest.raises(ValueError, match=r"The Trainer is training: .*Attach before `train\(\)`"):
        trainer.train()


def test_training_twice_keeps_the_first_run_aside_in_one_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = noting_trainer(tmp_path)
    callback = attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf", rescore_strategy="epoch"))
    trainer.train()
    first = [each.column("miwv") for each in callback.rounds]
    trainer.train()
    assert caplog.text.count("Rounds of an earlier run") == 1
    assert len(callback.rounds) == 2
    kept = tmp_path / "miwv" / "previous-0"
    assert sorted(each.name for each in kept.iterdir()) == ["round-000", "round-001"]
    for number, losses in enumerate(first):
        table = pq.read_table(kept / f"round-{number:03d}" / "scores.parquet")
        assert np.array_equal(table["miwv"].to_numpy(), losses)
    assert not (tmp_path / "miwv" / "previous-1").exists()


def test_training_again_with_the_same_weights_reads_round_0_and_keeps_the_later_rounds_aside(tmp_path: Path) -> None:
    rounds = []
    for _ in range(2):
        trainer = noting_trainer(tmp_path)
        callback = attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf", rescore_strategy="epoch"))
        trainer.train()
        rounds.append(callback.rounds)
    assert [each.was_there for each in rounds[1]] == [True, False]
    assert [each.name for each in (tmp_path / "miwv" / "previous-0").iterdir()] == ["round-001"]
    assert not (tmp_path / "miwv" / "previous-1").exists()


def test_without_a_full_last_batch_dropped_samples_are_counted_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = noting_trainer(tmp_path, dataloader_drop_last=True, num_train_epochs=1)
    callback = attach(trainer, MIWVConfig(fraction=10 / 32, embedder="tfidf"))
    trainer.train()
    assert "selection of 10 is no multiple of 4" in caplog.text
    assert "2 samples are dropped in each epoch" in caplog.text
    (positions,) = by_epoch()
    assert len(positions) == len(set(positions)) == 8
    assert set(positions) < set(callback.rounds[0].selection.tolist())


def test_no_batch_at_all_under_drop_last_is_an_error(tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path, dataloader_drop_last=True)
    with pytest.raises(ValueError, match="no batch to train on: 3 samples are selected"):
        attach(trainer, MIWVConfig(fraction=0.1, embedder="tfidf"))


def test_a_sampler_that_the_trainer_does_not_use_is_refused(tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path)
    config = MIWVConfig(fraction=0.25, embedder="tfidf")
    trainer.add_callback(MIWVCallback(config, MIWVDataSampler(32, fraction=0.25)))
    with pytest.raises(ValueError, match=r"does not use this MIWVDataSampler: .* has a SeedableRandomSampler"):
        trainer.train()


def test_a_trainer_that_builds_its_own_loader_is_refused_but_one_that_wraps_is_not(tmp_path: Path) -> None:
    class Wrapping(NotingTrainer):
        def get_train_dataloader(self) -> Any:
            return super().get_train_dataloader()

    class Building(NotingTrainer):
        def get_train_dataloader(self) -> Any:
            loader = torch.utils.data.DataLoader(self.train_dataset, 4, collate_fn=self.data_collator)
            return self.accelerator.prepare(loader)

    for kind in (Wrapping, Building):
        plain = noting_trainer(tmp_path / kind.__name__)
        trainer = rebuilt(kind, plain)
        attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf"))
        if kind is Building:
            with pytest.raises(ValueError, match="builds a loader of its own"):
                trainer.train()
        else:
            trainer.train()
            assert trainer.state.global_step == 4


def test_callback_and_sampler_of_different_fractions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"made with `fraction` 0.5, the configuration with 0.25"):
        MIWVCallback(MIWVConfig(fraction=0.25), MIWVDataSampler(8, fraction=0.5))


def test_a_replaced_dataset_is_refused(tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path)
    attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf"))
    trainer.train_dataset = trainer.train_dataset.select(range(20))
    with pytest.raises(ValueError, match="pool has 32 samples.*Trainer trains on 20"):
        trainer.train()


def with_dataset(tmp_path: Path, dataset: Any) -> Trainer:
    trainer = noting_trainer(tmp_path)
    trainer.train_dataset = dataset
    return trainer


def test_unusable_datasets_are_refused_when_attached(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    pool = tokenize(tiny_dataset(6), tokenizer)
    config = MIWVConfig(embedder="tfidf")
    refusals = [
        (None, "no `train_dataset`"),
        (pool.select([]), "pool is empty"),
        (pool.select([0]), "pool has one sample"),
        (pool.remove_columns("labels"), "no `labels`"),
        (pool.map(lambda row: {"labels": [-100] * len(row["labels"])}), "all labels are -100"),
        (pool.add_column("seq_lengths", [[3]] * 6), "packed"),
        (tiny_dataset(6), "no `input_ids`"),
    ]
    for dataset, words in refusals:
        with pytest.raises(ValueError, match=words):
            attach(with_dataset(tmp_path, dataset), config)
    with pytest.raises(TypeError, match="must be a map-style dataset.*IterableDataset"):
        attach(with_dataset(tmp_path, pool.to_iterable_dataset()), config)


def test_trl_packing_is_refused(tmp_path: Path) -> None:
    import datasets

    trainer = SFTTrainer(
        model=tiny_model(),
        args=SFTConfig(
            output_dir=str(tmp_path), packing=True, packing_strategy="wrapped", max_length=64, use_cpu=True, bf16=False
        ),
        train_dataset=datasets.Dataset.from_list(prompt_completions(12)),
        processing_class=qwen_tokenizer(),
    )
    with pytest.raises(ValueError, match=r"packs its dataset \(`packing=True`\)"):
        attach(trainer, MIWVConfig(embedder="tfidf"))


def test_text_without_a_prompt_is_refused_in_sft_trainer(tmp_path: Path) -> None:
    import datasets

    trainer = SFTTrainer(
        model=tiny_model(),
        args=SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False),
        train_dataset=datasets.Dataset.from_list([{"text": row["output"]} for row in instruction_rows(8)]),
        processing_class=qwen_tokenizer(),
    )
    with pytest.raises(ValueError, match="No prompt can be told from the response"):
        attach(trainer, MIWVConfig(embedder="tfidf"))


def test_unknown_keys_of_a_mapping_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"Unknown configuration key: 'fractoin'. Did you mean `fraction`\?"):
        attach(noting_trainer(tmp_path), {"fractoin": 0.1})


def test_a_text_embedder_without_text_or_tokenizer_is_refused(tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path)
    trainer.processing_class = trainer.callback_handler.processing_class = None
    attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf"))
    with pytest.raises(ValueError, match='needs the instructions as text.*embedder="model"` or an array'):
        trainer.train()


def test_the_model_embedder_needs_neither_text_nor_tokenizer(tmp_path: Path) -> None:
    trainer = noting_trainer(tmp_path)
    trainer.processing_class = trainer.callback_handler.processing_class = None
    callback = attach(trainer, MIWVConfig(fraction=0.25, embedder="model"))
    trainer.train()
    assert len(callback.rounds[0].selection) == 8


def test_a_wrapper_that_hides_the_loader_is_trusted_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrapper:
        def __init__(self, inner: Any) -> None:
            self.inner, self.dataset = inner, inner.dataset

        def __iter__(self) -> Any:
            return iter(self.inner)

        def __len__(self) -> int:
            return len(self.inner)

    class Hiding(NotingTrainer):
        def get_train_dataloader(self) -> Any:
            return Wrapper(super().get_train_dataloader())

    plain = noting_trainer(tmp_path)
    trainer = rebuilt(Hiding, plain)
    callback = attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf"))
    trainer.train()
    assert "is a Wrapper, in which the sampler cannot be seen" in caplog.text
    assert sorted(by_epoch()[0]) == callback.rounds[0].selection.tolist()


def test_an_array_of_the_wrong_length_is_refused_when_attached(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="array has 31 lines, but the pool has 32 samples"):
        attach(noting_trainer(tmp_path), MIWVConfig(embedder=np.ones((31, 4))))


def test_a_new_run_in_the_folder_of_another_pool_keeps_that_one_aside(tmp_path: Path) -> None:
    config = MIWVConfig(fraction=0.25, embedder="tfidf")
    for count in (32, 24):
        trainer = noting_trainer(tmp_path, count)
        attach(trainer, config)
        trainer.train()
    kept = {path.name for path in (tmp_path / "miwv" / "previous-0").iterdir()}
    assert kept == {"round-000", "exemplars.parquet", "embeddings.safetensors"}
