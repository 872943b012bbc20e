"""What a real Trainer uploads: the model, and nothing of what a run writes beside it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.hub import start_hub
from tests.helpers.launch import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "below"), [("every_save", None), ("checkpoint", "scores"), ("end", None)])
def test_the_folder_of_a_run_stays_out_of_every_upload(strategy: str, below: str | None, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    output = tmp_path / "run"
    scores = [] if below is None else [str(output / below)]
    with start_hub(repository="models/somebody/tuned") as hub:
        environment |= {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_of_a_test", "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-m", "tests.launched.pushing", str(output), strategy, *scores]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    written = output / (below or "") / "miwv" / "round-001" / "scores.parquet"
    assert written.is_file()
    assert {"model.safetensors", "README.md", ".gitignore"} <= set(hub.files)
    assert ("last-checkpoint/model.safetensors" in hub.files) == (strategy == "checkpoint")
    assert not [path for path in hub.files if "miwv" in path or "scores" in path or "round-" in path]
