"""The dataset card of a selection: what it says, and what it keeps to itself."""

import hashlib
import json
import re
import shutil
from datetime import datetime, timezone
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

from miwv_trainer import __version__
from miwv_trainer.cli.main import main
from miwv_trainer.export.dataset_card import name_size
from tests.helpers.selected import highest, scores, select


def test_the_card_says_what_was_scored_and_with_what(output: Path, pool: Path, tmp_path: Path) -> None:
    assert select(output, pool, "--format", "dataset", "--to", tmp_path / "chosen") == 0
    card = DatasetCard.load(tmp_path / "chosen" / "README.md")
    assert card.data.size_categories == "n<1K"
    assert {"miwv_trainer", "miwv"} <= set(card.data.tags)
    summary = json.loads((output / "miwv" / "round-000" / "round.json").read_text())
    cells = dict(re.findall(r"^\| (.+?) \| (.+) \|$", card.text, re.MULTILINE))
    threshold = min(scores(output)["miwv"][index] for index in highest(output))
    template = (pool.parent / "tiny-model" / "chat_template.jinja").read_text()
    expected = {
        "pool": "pool.parquet: 20 samples, 0 without a score",
        "fingerprint of its tokens": f"`{summary['fingerprint']['pool']}`",
        "model": f"tiny-model, float32, configuration `{summary['fingerprint']['model']['config']}`",
        "chat template": f"`{hashlib.sha256(json.dumps(template).encode()).hexdigest()[:16]}`",
        "embedder": "tfidf",
        "context": "512 tokens",
        "scores": "round 0, after 0 steps of training",
        "ranked by": "miwv (MIWV)",
        "selected": f"6, MIWV {threshold:.4f} and above",
        "fraction": "0.3 of its samples",
        "guards": "min_response_tokens = 8",
        "left out": f"{sum(tokens < 8 for tokens in scores(output)['response_tokens'])} by min_response_tokens=8",
        "seed": "0",
        "miwv_trainer": f"{__version__}; scored with {__version__}",
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    assert cells == expected
    assert 'load_dataset("chosen", split="train")' in card.text
    assert "miwv select --scores O --dataset pool.parquet --fraction 0.3 --format dataset --to chosen" in card.text
    # A card is published: nothing of the machine is in it.
    assert "MIWV is the loss of a sample's response when its most similar sample" in card.text
    assert "[Jiang et al., AAAI 2026](https://arxiv.org/abs/2511.07074)" in card.text
    assert "secret-folder" not in card.text and str(tmp_path) not in card.text


def test_a_card_of_scores_that_a_trainer_or_an_older_version_wrote(output: Path, pool: Path, tmp_path: Path) -> None:
    shutil.copytree(output, tmp_path / "old")
    file = tmp_path / "old" / "miwv" / "round-000" / "round.json"
    summary = json.loads(file.read_text())
    for name in ("model", "chat_template", "library", "rows"):
        del summary[name]
    file.write_text(json.dumps(summary))
    assert select(tmp_path / "old", pool, "--format", "dataset") == 0
    text = (tmp_path / "old" / "selected" / "README.md").read_text()
    assert "| model | not recorded, float32, configuration `" in text
    assert "| chat template | not recorded: the pool was tokenised before |" in text
    assert f"| miwv_trainer | {__version__}; the version that scored is not recorded |" in text


def test_a_path_behind_an_equals_sign_is_not_published_either(output: Path, pool: Path, tmp_path: Path) -> None:
    words = [
        f"--scores={output}",
        f"--dataset={pool}",
        "--fraction=0.3",
        "--format=dataset",
        f"--to={tmp_path / 'x=y'}",
    ]
    assert main(["select", *words]) == 0
    text = (tmp_path / "x=y" / "README.md").read_text()
    assert "miwv select --scores=O --dataset=pool.parquet --fraction=0.3 --format=dataset --to=x=y" in text
    assert "secret-folder" not in text and str(tmp_path) not in text


@pytest.mark.parametrize(
    ("count", "category"), [(999, "n<1K"), (1_000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**7, "10M<n<100M")]
)
def test_sizes_have_the_hubs_names(count: int, category: str) -> None:
    assert name_size(count) == category


def test_a_card_explains_the_score_that_was_ranked(output: Path, pool: Path, tmp_path: Path) -> None:
    assert select(output, pool, "--format", "dataset", "--to", str(tmp_path / "c"), "--score", "zero_shot_loss") == 0
    text = (tmp_path / "c" / "README.md").read_text()
    assert "The zero-shot loss is that of a sample's response behind its prompt" in text
    assert "MIWV is the loss" not in text and "Jiang" not in text
