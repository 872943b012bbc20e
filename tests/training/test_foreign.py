"""The library in scripts of other people's shapes: at most three lines more, and all it promises."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import trl
from safetensors.torch import load_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
)

from miwv_trainer import MIWVCallback, MIWVConfig, attach, last_complete_checkpoint, tokenize
from tests.helpers.launch import ROOT
from tests.helpers.templates import template
from tests.helpers.tiny import instruction_rows, save_tiny, tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.trainers import arguments

FOREIGN = ROOT / "tests" / "foreign"
COUNT, SELECTED, STEPS_AN_EPOCH, STOP = 24, 12, 6, 9
COMMON = (
    "--num_train_epochs 2 --per_device_train_batch_size 2 --save_strategy steps --save_steps 4 --use_cpu --seed 7 "
    "--report_to none --disable_tqdm true --learning_rate 1e-3"
)
TRL_LINES = (
    "    from miwv_trainer import attach\n"
    '    attach(trainer, {"fraction": 0.5, "rescore_strategy": "epoch", "embedder": "tfidf"})\n'
)
BEFORE = "    # Train the model\n"
RESUMING = "trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a pool in each shape."""
    folder = tmp_path_factory.mktemp("foreign")
    tiny_tokenizer(chat_template=template("qwen2_5")).save_pretrained(save_tiny(folder / "model"))
    rows = instruction_rows(COUNT)
    turns = [
        [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        for row in rows
    ]
    kinds: dict[str, list[dict[str, Any]]] = {
        "instruction": [dict(row) for row in rows],
        "completion": [{"prompt": row["instruction"], "completion": " " + row["output"]} for row in rows],
        "messages": [{"messages": turn} for turn in turns],
    }
    for name, lines in kinds.items():
        (folder / name).mkdir()
        (folder / name / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trl_script = (Path(trl.__file__).parent / "scripts" / "sft.py").read_text()
    assert trl_script.count(BEFORE) == 1
    # Before TRL 1.15 the script does not pass on where it is told to resume.
    trl_script = trl_script.replace("trainer.train()", RESUMING)
    assert trl_script.count(RESUMING) == 1
    (folder / "trl_sft.py").write_text(trl_script.replace(BEFORE, TRL_LINES + BEFORE))
    return folder


SCRIPTS = {
    "trl, prompt and completion": ("trl_sft", "--model_name_or_path {m} --dataset_name {d}/completion --bf16 false"),
    "trl, conversations, LoRA": (
        "trl_sft",
        "--model_name_or_path {m} --dataset_name {d}/messages --bf16 false --assistant_only_loss --use_peft",
    ),
    "alpaca": ("alpaca", "--model_name_or_path {m} --data_path {d}/instruction/train.jsonl"),
    "peft": ("peft_sft", "--model_name_or_path {m} --dataset_name {d}/completion/train.jsonl --bf16 false"),
    "llama factory": ("llama_factory", "--model_name_or_path {m} --dataset {d}/instruction/train.jsonl"),
    "own trainer, its loader as it is": (
        "own_trainer",
        "--model {m} --data {d}/instruction/train.jsonl --loader plain",
    ),
    "own trainer, a wrapped loader": ("own_trainer", "--model {m} --data {d}/instruction/train.jsonl"),
}


class Stopped(Exception):
    """The training was ended from outside."""


class Watch:
    """Notes what any Trainer trains on, as token ids, and ends it before a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained: list[tuple[int, ...]] = []
        self.trainer: Any = None
        self.stop_before = 10**9
        step = Trainer.training_step

        def noting(trainer: Any, model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
            if trainer.state.global_step == self.stop_before:
                raise Stopped
            self.trainer = trainer
            pad = trainer.processing_class.pad_token_id
            for row in inputs["input_ids"].tolist():
                self.trained.append(tuple(token for token in row if token != pad))
            return step(trainer, model, inputs, *rest, **options)

        monkeypatch.setattr(Trainer, "training_step", noting)

    @property
    def callback(self) -> MIWVCallback:
        (found,) = [each for each in self.trainer.callback_handler.callbacks if isinstance(each, MIWVCallback)]
        return found

    def indices(self) -> list[int]:
        """The trained samples' places in the pool."""
        pool, pad = self.callback.pool, self.trainer.processing_class.pad_token_id
        assert pool is not None
        whole = [[*pool.preamble.tolist(), *pool.sample(index).tolist()] for index in range(len(pool))]
        places = {tuple(token for token in ids if token != pad): index for index, ids in enumerate(whole)}
        assert len(places) == len(pool)
        return [places[row] for row in self.trained]


def run(name: str, place: Path, output: Path, monkeypatch: pytest.MonkeyPatch, more: str = "") -> None:
    script, options = SCRIPTS[name]
    path = place / f"{script}.py" if script == "trl_sft" else FOREIGN / f"{script}.py"
    typed = f"{options.format(m=place / 'model', d=place)} {COMMON} --output_dir {output} {more}"
    monkeypatch.setattr(sys, "argv", [str(path), *typed.split()])
    runpy.run_path(str(path), run_name="__main__")


def weights(output: Path) -> dict[str, torch.Tensor]:
    (path,) = [output / name for name in ("model.safetensors", "adapter_model.safetensors") if (output / name).exists()]
    return load_file(path)


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_trains_on_the_selection_rescores_and_resumes(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Watch(monkeypatch)
    torch.manual_seed(0)  # older versions of TRL make the adapter before the Trainer sets the seed
    run(name, place, tmp_path / "whole", monkeypatch)
    first, second = whole.callback.rounds
    trained = whole.indices()
    assert sorted(trained[:SELECTED]) == first.selection.tolist()
    assert sorted(trained[SELECTED:]) == second.selection.tolist()
    assert second.summary["global_step"] == STEPS_AN_EPOCH
    assert (first.column("zero_shot_loss") != second.column("zero_shot_loss")).all()

    monkeypatch.undo()
    stopped = Watch(monkeypatch)
    stopped.stop_before = STOP
    torch.manual_seed(0)
    with pytest.raises(Stopped):
        run(name, place, tmp_path / "again", monkeypatch)
    checkpoint = last_complete_checkpoint(tmp_path / "again")
    assert checkpoint is not None and Path(checkpoint).name == "checkpoint-8"
    release(stopped)
    monkeypatch.undo()
    resumed = Watch(monkeypatch)
    torch.manual_seed(1)
    run(name, place, tmp_path / "again", monkeypatch, f"--resume_from_checkpoint {checkpoint}")
    assert resumed.indices() == trained[8 * 2 :]
    ours, theirs = weights(tmp_path / "again"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def release(watch: Watch) -> None:
    """What the end of the process would have released."""
    assert watch.callback._run is not None
    watch.callback._run.store.release()


@pytest.mark.parametrize("script", sorted(path.stem for path in FOREIGN.glob("[a-z]*.py")))
def test_at_most_three_lines_were_added(script: str) -> None:
    text = (FOREIGN / f"{script}.py").read_text()
    added = [line for line in text.splitlines() if line.endswith("# +")]
    assert 1 <= len(added) <= 3
    assert all("# +" in line for line in text.splitlines() if "miwv" in line or "attach" in line)
    assert 0 < len(TRL_LINES.splitlines()) <= 3


def test_a_loader_of_its_own_is_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="does not use this MIWVDataSampler: its training dataloader has a Random"):
        run("own trainer, a wrapped loader", place, tmp_path, monkeypatch, "--loader own")


def test_a_sampler_of_its_own_is_replaced(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaMA-Factory's `disable_shuffling` returns one; `attach` stands before it."""
    watch = Watch(monkeypatch)
    run("llama factory", place, tmp_path, monkeypatch, "--disable_shuffling true")
    first, _ = watch.callback.rounds
    assert sorted(watch.indices()[:SELECTED]) == first.selection.tolist()


def test_plain_language_modelling_is_refused_in_one_sentence(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    texts = [{"input_ids": tokenizer(row["output"]).input_ids} for row in instruction_rows(8)]
    trainer = Trainer(
        model=tiny_model(),
        args=arguments(tmp_path),
        train_dataset=datasets.Dataset.from_list(texts),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )
    with pytest.raises(ValueError, match="prompt") as refused:
        attach(trainer, MIWVConfig(fraction=0.5, embedder="tfidf"))
    assert "\n" not in str(refused.value)


def test_an_encoder_decoder_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = BartForConditionalGeneration(
        BartConfig(vocab_size=512, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                   decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16)
    )  # fmt: skip
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True),
        train_dataset=tokenize(tiny_dataset(8), tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    with pytest.raises(ValueError, match="BartForConditionalGeneration is an encoder-decoder model") as refused:
        attach(trainer, MIWVConfig(fraction=0.5, embedder="tfidf"))
        trainer.train()
    assert "\n" not in str(refused.value)
