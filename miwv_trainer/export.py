"""The chosen samples as files: JSON Lines, Parquet, or a dataset folder with its card, also on the hub."""

import datetime
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
from huggingface_hub import DatasetCardData

from miwv_trainer import __version__
from miwv_trainer.config import SELECTION_FIELDS, MIWVConfig
from miwv_trainer.store import StoredRound, atomic_path, write_text

ORIGIN = "selection.json"
"""The file by which a folder is known to be of this kind."""
SHARD_BYTES = 300 * 2**20
SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}
CARD = """
# {count:,} of {samples:,} samples of {dataset}, chosen by {score}

Chosen with miwv_trainer {version} on {date}: the samples as they came, in the order of the pool.

{facts}

The Model Instruction Weakness Value (MIWV) of a sample is its loss with the most similar sample of the pool shown
before it as a solved example, minus its loss without (Jiang et al., AAAI 2026, [arXiv 2511.07074]({paper})).

```python
from datasets import load_dataset

dataset = load_dataset("{name}", split="train")
```
"""
PAPER = "https://arxiv.org/abs/2511.07074"


@dataclass(frozen=True)
class Origin:
    """Where chosen samples come from: a scored round, the dataset, and what they were chosen by."""

    scored: StoredRound
    dataset: str
    config: MIWVConfig
    threshold: float

    def facts(self) -> dict[str, Any]:
        """What was scored, with what, and how it was selected; what is not known is left out."""
        summary = self.scored.summary
        model = summary["fingerprint"].get("model") or {}
        default = MIWVConfig()
        chosen = {name: getattr(self.config, name) for name in SELECTION_FIELDS if name != "score"}
        guards = {name: value for name, value in chosen.items() if value != getattr(default, name)}
        facts = {
            "dataset": self.dataset,
            "samples scored": len(self.scored.scores),
            "fingerprint of the pool": summary["fingerprint"]["pool"],
            "model": summary.get("model_name"),
            "configuration of the model": model.get("config"),
            "arithmetic": model.get("dtype"),
            "chat template": summary.get("chat_template"),
            "embedder": summary["fingerprint"]["embedder"],
            "round": f"{self.scored.number}, after step {summary['global_step']}",
            "score": self.config.score,
            "threshold": round(self.threshold, 4),
            "fraction": self.config.fraction,
            "guards": ", ".join(f"{name}={value}" for name, value in guards.items()) or None,
            "seed": self.config.sampler_seed,
            "miwv_trainer": __version__,
        }
        return {name: value for name, value in facts.items() if value is not None}


def write_jsonl(path: Path, rows: datasets.Dataset, selection: np.ndarray) -> Path:
    """Writes the chosen samples as they came, one JSON object a line, in pool order."""
    lines = [json.dumps(rows[int(index)], ensure_ascii=False, default=str) for index in selection]
    write_text(path, "".join(line + "\n" for line in lines))
    return path


def write_parquet(path: Path, rows: datasets.Dataset, selection: np.ndarray) -> Path:
    """Writes the chosen samples as they came, with their types, in pool order."""
    with atomic_path(path) as target:
        rows.select(selection).to_parquet(str(target))
    return path


def write_dataset(folder: Path, rows: datasets.Dataset, selection: np.ndarray, origin: Origin, name: str) -> Path:
    """
    Writes a folder that `load_dataset` reads: Parquet files, a card, and the card's facts as JSON. It appears whole, in
    place of an earlier one.

    Args:
        name: What the card says to load: the folder, or the dataset's name on the hub.

    Raises:
        ValueError: the folder holds something else.
    """
    check_folder(folder)
    chosen = rows.select(selection)
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "data").mkdir(parents=True)
    try:
        shards = math.ceil(rows.data.nbytes * len(chosen) / len(rows) / SHARD_BYTES)
        for number in range(shards):
            path = partial / "data" / f"train-{number:05d}-of-{shards:05d}.parquet"
            chosen.shard(shards, number, contiguous=True).to_parquet(str(path))
        facts = {**origin.facts(), "selected": len(chosen)}
        write_text(partial / ORIGIN, json.dumps(facts, indent=1) + "\n")
        write_text(partial / "README.md", card(facts, name))
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def check_folder(folder: Path) -> None:
    """Raises `ValueError` where a folder, or a file in its place, is not one of `write_dataset`."""
    is_taken = folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / ORIGIN).is_file())
    if is_taken:
        raise ValueError(
            f"{folder} is there already and was not written by `miwv select`. Give another place with `--to`, or move "
            "it away."
        )


def card(facts: Mapping[str, Any], name: str) -> str:
    """A dataset card, https://huggingface.co/docs/hub/datasets-cards, with these facts."""
    count = facts["selected"]
    described = DatasetCardData(
        task_categories=["text-generation"],
        tags=["instruction-tuning", "data-selection", "miwv"],
        size_categories=[next((size for limit, size in SIZES.items() if count < limit), "n>10M")],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    )
    lines = "\n".join(f"- {what}: {_inline(value)}" for what, value in facts.items())
    text = CARD.format(
        count=count,
        samples=facts["samples scored"],
        dataset=_inline(facts["dataset"]),
        score="MIWV" if facts["score"] == "miwv" else facts["score"],
        version=__version__,
        date=datetime.date.today().isoformat(),
        facts=lines,
        paper=PAPER,
        name=name,
    )
    return f"---\n{described.to_yaml()}\n---\n{text}"


def _inline(value: Any) -> str:
    """A value on one line, without Markdown's or HTML's marks taking effect."""
    text = " ".join(str(value).split())
    return f"`{text.replace('`', chr(39))}`" if isinstance(value, str) else text


def check_token(name: str) -> None:
    """Raises `ValueError` where nobody is logged in to the hub."""
    if huggingface_hub.get_token() is None:
        raise ValueError(
            f"`--push-to-hub {name}` needs a token of the Hugging Face Hub that may write: run `hf auth login`, or set "
            "HF_TOKEN."
        )


def push(folder: Path, name: str, private: bool) -> str:
    """Uploads a folder as a dataset of the hub, made where there is none. Returns its address."""
    api = huggingface_hub.HfApi(library_name="miwv_trainer", library_version=__version__)
    made = api.create_repo(name, repo_type="dataset", private=private or None, exist_ok=True)
    api.upload_folder(
        repo_id=made.repo_id, folder_path=folder, repo_type="dataset", commit_message="Samples chosen by miwv_trainer"
    )
    return str(made)
