"""A pool on disk and its scores, made once for all tests of what is exported."""

from pathlib import Path

import datasets
import pytest

from miwv_trainer.cli.main import main
from tests.helpers.selected import typed_rows
from tests.helpers.tiny import save_tiny


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret-folder") / "pool.parquet"
    typed_rows().to_parquet(path)
    return path


@pytest.fixture(scope="session")
def output(pool: Path) -> Path:
    save_tiny(pool.parent / "tiny-model")
    command = f"score --model {pool.parent / 'tiny-model'} --dataset {pool} --output {pool.parent / 'O'} --fraction 0.2"
    assert main([*command.split(), "--embedder", "tfidf", "--min-response-tokens", "8"]) == 0
    return pool.parent / "O"


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_dataset` reads the files, not what it made of others before."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
