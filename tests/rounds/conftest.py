import pytest

from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.storage.store import Store
from tests.helpers.tiny import tiny_dataset
from tests.helpers.tiny_rounds import COUNT


@pytest.fixture
def pool(tokenizer):
    return pool_from_rows(tiny_dataset(COUNT), tokenizer)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)
