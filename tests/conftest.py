import os
from pathlib import Path

import pytest

# Set before transformers is imported: tests never ask a hub, and a tiny model is slower on many threads.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real pools beside the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real pools are not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tokenizer():
    from tests.helpers.tiny import tiny_tokenizer

    return tiny_tokenizer()


@pytest.fixture
def model():
    from tests.helpers.tiny import tiny_model

    return tiny_model()
