"""What masks of prompts and completions say of the pool in each version of TRL, and where they are wrong."""

from importlib import metadata
from pathlib import Path
from typing import Any

import datasets
import pytest
import trl

from miwv_trainer import MIWVConfig, attach, compat
from miwv_trainer.training.trainer_checks import check_prompt_masks
from tests.helpers.chats import labels_of, skip_if_masked_wrongly
from tests.helpers.tiny import tiny_model
from tests.helpers.trainers import qwen_tokenizer, split_turns

CONFIG = MIWVConfig(fraction=0.25, embedder="tfidf")


def prepare_sft(folder: Path, **arguments: Any) -> trl.SFTTrainer:
    """An SFTTrainer of prompts and completions that are turns."""
    more = {"num_train_epochs": 1, "save_strategy": "no", "disable_tqdm": True}
    args = trl.SFTConfig(str(folder), use_cpu=True, bf16=False, report_to="none", **more, **arguments)
    rows = datasets.Dataset.from_list(split_turns(12))
    return trl.SFTTrainer(tiny_model(), args, train_dataset=rows, processing_class=qwen_tokenizer())


WRONG_MASKS = r"TRL before 0\.27\.1 marks the prompts of conversations as completions.*trl#4880.*Take TRL 0\.27\.1"


def test_prompts_that_trl_takes_for_completions_are_refused(tmp_path: Path) -> None:
    """The real Trainer, and whatever versions are installed."""
    trainer = prepare_sft(tmp_path)
    if not compat.masks_prompts_of_conversations():
        with pytest.raises(ValueError, match=WRONG_MASKS):
            attach(trainer, CONFIG)
        return
    row = trainer.train_dataset[0]
    attach(trainer, CONFIG)
    assert sum(label != -100 for label in labels_of(row)) < len(row["input_ids"]) - 10


@pytest.mark.parametrize(
    ("versions", "start", "prompt", "is_refused"),
    [
        ({"trl": "0.24.0", "transformers": "5.6.0"}, [2, 2], [], True),
        ({"trl": "0.27.0", "transformers": "5.0.0"}, [3, 3], [], True),
        ({"trl": "0.24.0", "transformers": "5.6.0"}, [2, 2], None, True),
        ({"trl": "0.27.1", "transformers": "5.6.0"}, [2, 2], [], False),
        ({"trl": "0.24.0", "transformers": "4.57.1"}, [2, 2], [], False),
        ({"trl": "0.24.0", "transformers": "5.6.0"}, [2, 2], "a text", False),
        ({"trl": "0.24.0", "transformers": "5.6.0"}, [2, 3], [], False),
        ({"trl": "0.24.0", "transformers": "5.6.0"}, [4, 4], [], False),
        ({"transformers": "5.6.0"}, [2, 2], [], False),
    ],
)
def test_the_versions_that_take_prompts_for_completions_are_told(
    versions: dict[str, str], start: list[int], prompt: Any, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(compat, "version", find)
    turns = [{"role": "user", "content": "a"}]
    rows = [{"prompt": turns if prompt == [] else prompt, "completion_mask": [0] * n + [1] * 5} for n in start]
    dataset = datasets.Dataset.from_list(rows if prompt is not None else [{**row, "prompt": None} for row in rows])
    if not is_refused:
        check_prompt_masks(dataset)
        return
    with pytest.raises(ValueError, match=WRONG_MASKS):
        check_prompt_masks(dataset)


@pytest.mark.parametrize("more", [{}, {"assistant_only_loss": True}])
def test_a_mask_that_the_training_does_not_follow_says_nothing_of_the_pool(
    more: dict[str, Any], tmp_path: Path
) -> None:
    """`completion_only_loss=False` trains prompts too. Before TRL 1.7 the mask is in the dataset all the same."""
    skip_if_masked_wrongly(split_turns(1))
    trainer = prepare_sft(tmp_path, completion_only_loss=False, **more)
    callback = attach(trainer, CONFIG)
    trainer.train()
    pool = callback.pool
    assert pool is not None and pool.is_trained_whole == (not more)
    assert (pool.response_tokens > 0).all() and (pool.prompt_tokens > 3).all()
    assert len(callback.rounds[0].selection) == 3
