"""The dataset card of a selection: what was scored and selected, with what, and how to load it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from miwv_trainer.config import SELECTION_FIELDS, MIWVConfig
from miwv_trainer.rounds.messages import threshold_words
from miwv_trainer.selection.choose import Choice
from miwv_trainer.selection.scores import score_of
from miwv_trainer.storage.store import StoredRound
from miwv_trainer.version import __version__

TAG = "miwv_trainer"
PAPER = "https://arxiv.org/abs/2511.07074"
# The hub's names for sizes: fewer samples than the number.
SIZES = {
    1_000: "n<1K",
    10_000: "1K<n<10K",
    100_000: "10K<n<100K",
    1_000_000: "100K<n<1M",
    10_000_000: "1M<n<10M",
    100_000_000: "10M<n<100M",
}
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Origin:
    """
    Where a selection comes from.

    Args:
        scored: The round whose scores were ranked.
        config: What was selected by.
        choice: What was selected.
        dataset: The pool, as it was typed.
        typed: The command's arguments.
    """

    scored: StoredRound
    config: MIWVConfig
    choice: Choice
    dataset: str
    typed: Sequence[str]


def dataset_card(origin: Origin, loaded_as: str) -> str:
    """
    The README.md of a folder that `datasets.load_dataset` reads, with its YAML header.

    Names of models and datasets stay; of absolute paths only the last part does, because a card is published. The
    header lists no `configs`: of a folder that does, `load_dataset` gives what it cached under the folder's name,
    whatever the files now hold.

    Args:
        origin: Where the selection comes from.
        loaded_as: What `load_dataset` is to be given: a name on the hub, or a folder.
    """
    data = DatasetCardData(
        pretty_name=_title(origin),
        size_categories=size_category(len(origin.choice.selection)),
        task_categories=["text-generation"],
        tags=[TAG, "miwv", "data-selection", "instruction-tuning"],
    )
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in _described(origin).items())
    return CARD.format(
        data=data.to_yaml().strip(),
        title=_title(origin),
        dataset=_published(origin.dataset),
        rows=rows,
        loaded_as=loaded_as,
        command="miwv " + shlex.join(map(_published, origin.typed)),
        paper=PAPER,
    )


def size_category(count: int) -> str:
    return next((name for bound, name in SIZES.items() if count < bound), "100M<n<1B")


CARD = """---
{data}
---

# {title}

Samples of {dataset} as they came, in its order, chosen by `miwv_trainer`. The licence of {dataset} applies.

| | |
|---|---|
{rows}

```python
from datasets import load_dataset

dataset = load_dataset("{loaded_as}", split="train")
```

Written by

```bash
{command}
```

The Model Instruction Weakness Value (MIWV) of a sample is its loss with the most similar sample of the pool before it
as a solved example, minus its loss without ([Jiang et al., AAAI 2026]({paper})).
"""


def _title(origin: Origin) -> str:
    score = score_of(origin.config).ranking_label
    return f"{len(origin.choice.selection)} samples of {Path(_published(origin.dataset)).name} by {score}"


def _described(origin: Origin) -> dict[str, str]:
    summary, config, choice = origin.scored.summary, origin.config, origin.choice
    fingerprint = summary["fingerprint"]
    share = "its samples" if config.selection_budget == "samples" else "its response tokens"
    return {
        "pool": f"{_published(origin.dataset)}: {summary['samples']} samples, {summary['unscorable']} without a score",
        "fingerprint of its tokens": f"`{fingerprint['pool']}`",
        "model": _model(summary),
        "chat template": _chat_template(summary),
        "embedder": f"{_published(fingerprint['embedder'])}",
        "context": f"{fingerprint['context']} tokens",
        "scores": f"round {origin.scored.number}, after {summary['global_step']} steps of training",
        "selected": f"{len(choice.selection)}, {threshold_words(choice, config)}",
        "fraction": f"{config.fraction} of {share}",
        "guards": _guards(config),
        "left out": ", ".join(f"{count} by {guard}" for guard, count in choice.left_out.items()) or "none",
        "seed": str(config.sampler_seed or 0),
        "miwv_trainer": f"{__version__}; scored with {summary.get('library', NOT_RECORDED)}",
        "date": datetime.now(UTC).date().isoformat(),
    }


def _model(summary: Mapping[str, Any]) -> str:
    name = _published(summary.get("model") or NOT_RECORDED)
    forwarded = summary["fingerprint"].get("model")
    if forwarded is None:
        return f"{name}; nothing was forwarded"
    return f"{name}, {forwarded['dtype']}, configuration `{forwarded['config']}`"


def _chat_template(summary: Mapping[str, Any]) -> str:
    if "chat_template" not in summary:
        return f"{NOT_RECORDED}: the pool was tokenised before"
    found = summary["chat_template"]
    return f"`{found}`" if found is not None else "none: the Alpaca prompt"


def _guards(config: MIWVConfig) -> str:
    """Those of the fields that decide the selection that are not at their defaults."""
    default, told_elsewhere = MIWVConfig(), ("score", "selection_budget")
    values = {name: getattr(config, name) for name in SELECTION_FIELDS if name not in told_elsewhere}
    changed = [f"{name} = {value}" for name, value in values.items() if value != getattr(default, name)]
    return ", ".join(changed) or "none"


def _published(argument: str) -> str:
    """An argument without the folders of an absolute path, which may stand behind `--option=`."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    is_path = value.startswith("~") or Path(value).is_absolute()
    return option + equals + (Path(value).name if is_path else value)


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
