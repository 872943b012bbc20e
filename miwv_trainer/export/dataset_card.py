"""The dataset card of a selection: what was scored, what was selected and by what, and how to load it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from huggingface_hub import DatasetCardData

from miwv_trainer.choices import SELECTION_FIELDS
from miwv_trainer.config import MIWVConfig
from miwv_trainer.export.destination import TAG
from miwv_trainer.rounds.messages import describe_threshold
from miwv_trainer.selection.choose import Choice
from miwv_trainer.selection.scores import MIWV_MEANING, get_score
from miwv_trainer.storage.stored_round import StoredRound
from miwv_trainer.version import __version__

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
CARD = """---
{data}
---

# {title}

Samples of {dataset}, unchanged and in their order, selected by `miwv_trainer`. The licence of {dataset} applies.

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

{meaning}
"""


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


def build_card(origin: Origin, loaded_as: str) -> str:
    """
    The README.md of a folder that `datasets.load_dataset` reads, with its YAML header.

    The header lists no `configs`: for a folder that does, `load_dataset` returns what it cached under the folder's
    name, also after the files have changed.

    Args:
        origin: Where the selection comes from.
        loaded_as: What readers are to give to `load_dataset`: a name on the hub, or a folder.
    """
    title = _build_title(origin)
    header = DatasetCardData(
        pretty_name=title,
        size_categories=name_size(len(origin.choice.selection)),
        task_categories=["text-generation"],
        tags=[TAG, "miwv", "data-selection", "instruction-tuning"],
    )
    rows = "\n".join(f"| {name} | {_escape_cell(value)} |" for name, value in _describe_origin(origin).items())
    return CARD.format(
        data=header.to_yaml().strip(),
        title=title,
        dataset=_hide_folders(origin.dataset),
        rows=rows,
        loaded_as=loaded_as,
        command="miwv " + shlex.join(map(_hide_folders, origin.typed)),
        meaning=_explain_score(origin.config),
    )


def _explain_score(config: MIWVConfig) -> str:
    meaning = get_score(config).meaning
    source = f" MIWV is the Model Instruction Weakness Value of [Jiang et al., AAAI 2026]({PAPER})."
    return meaning + (source if MIWV_MEANING in meaning else "")


def name_size(count: int) -> str:
    """The hub's `size_categories` for a number of samples."""
    return next((name for bound, name in SIZES.items() if count < bound), "100M<n<1B")


def _build_title(origin: Origin) -> str:
    name = Path(_hide_folders(origin.dataset)).name
    return f"{len(origin.choice.selection)} samples of {name} by {get_score(origin.config).ranking_label}"


def _describe_origin(origin: Origin) -> dict[str, str]:
    """The card's table, from the name of a row to its text."""
    summary, config, choice = origin.scored.summary, origin.config, origin.choice
    fingerprint = summary["fingerprint"]
    whole = "its samples" if config.selection_budget == "samples" else "its response tokens"
    return {
        "pool": f"{_hide_folders(origin.dataset)}: {summary['samples']} samples, "
        f"{summary['unscorable']} without a score",
        "fingerprint of its tokens": f"`{fingerprint['pool']}`",
        "model": _describe_model(origin.scored),
        "chat template": _describe_chat_template(origin.scored),
        "embedder": _hide_folders(fingerprint["embedder"]),
        "context": f"{fingerprint['context']} tokens",
        "scores": f"round {origin.scored.number}, after {summary['global_step']} steps of training",
        "ranked by": _describe_score(config) + _describe_draw(config),
        "selected": f"{len(choice.selection)}, {describe_threshold(choice, config)}",
        "fraction": f"{config.fraction} of {whole}",
        "guards": _list_guards(config),
        "left out": ", ".join(f"{count} by {guard}" for guard, count in choice.left_out.items()) or "none",
        "seed": str(config.sampler_seed or 0),
        "miwv_trainer": f"{__version__}; {_describe_version(origin.scored)}",
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _describe_model(scored: StoredRound) -> str:
    name = _hide_folders(scored.summary.get("model") or NOT_RECORDED)
    forwarded = scored.summary["fingerprint"].get("model")
    if forwarded is None:
        return f"{name}; nothing was forwarded"
    return f"{name}, {forwarded['dtype']}, configuration `{forwarded['config']}`"


def _describe_version(scored: StoredRound) -> str:
    version = scored.summary.get("library")
    return f"scored with {version}" if version is not None else "the version that scored is not recorded"


def _describe_chat_template(scored: StoredRound) -> str:
    # A Trainer's pool arrives as token ids; the template that made them is not known.
    if "chat_template" not in scored.summary:
        return f"{NOT_RECORDED}: the pool was tokenised before"
    fingerprint = scored.summary["chat_template"]
    return f"`{fingerprint}`" if fingerprint is not None else "none: the Alpaca prompt"


def _describe_score(config: MIWVConfig) -> str:
    score = get_score(config)
    if config.score_column is not None:
        return f"the pool's column `{config.score_column}`, highest first"
    return f"{score.name} ({score.ranking_label})" if score.name != score.ranking_label else score.name


def _describe_draw(config: MIWVConfig) -> str:
    return f", drawn by rank at temperature {config.temperature}" if config.selection == "sample" else ""


def _list_guards(config: MIWVConfig) -> str:
    """The fields that decide what is selected and are not at their defaults, but those that have rows of their own."""
    defaults, has_own_row = (
        MIWVConfig(),
        (
            "score",
            "score_column",
            "extra_losses",
            "selection",
            "temperature",
            "selection_budget",
        ),
    )
    values = {name: getattr(config, name) for name in SELECTION_FIELDS if name not in has_own_row}
    changed = [f"{name} = {value}" for name, value in values.items() if value != getattr(defaults, name)]
    return ", ".join(changed) or "none"


def _hide_folders(argument: str) -> str:
    """
    The last part of an absolute path, also behind `--option=`; anything else as it is.

    A card is published: names of models and datasets belong on it, folders of somebody's machine do not.
    """
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    is_path = value.startswith("~") or Path(value).is_absolute()
    return option + equals + (Path(value).name if is_path else value)


def _escape_cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
