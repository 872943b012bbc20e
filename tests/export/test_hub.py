"""A selection as a dataset on the hub, which a server of this test stands for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets

from tests.helpers.hub import start_hub
from tests.helpers.launch import ROOT
from tests.helpers.selected import highest, typed_rows


def pushed(address: str, output: Path, pool: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads these variables when it is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": address, "HF_TOKEN": "hf_of_a_test", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(output / "hub-cache"), "NO_PROXY": "127.0.0.1"}
    command = ["select", "--scores", output, "--dataset", pool, "--fraction", "0.3", "--push-to-hub", *options]
    return subprocess.run(
        [sys.executable, "-m", "miwv_trainer", *map(str, command)], capture_output=True, text=True, env=environment
    )


def test_a_selection_goes_to_the_hub(output: Path, pool: Path, tmp_path: Path) -> None:
    shutil.copytree(output, tmp_path / "O")
    with start_hub(files={"data/train-00001-of-00002.parquet": b"of an earlier selection"}) as hub:
        done = pushed(hub.address, tmp_path / "O", pool, "somebody/chosen", "--private")
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"name": "chosen", "organization": "somebody", "type": "dataset"}.items() <= hub.created.items()
    # Older versions of huggingface_hub send the second.
    assert hub.created.get("visibility") == "private" or hub.created.get("private") is True
    assert hub.tokens == {"Bearer hf_of_a_test"}
    folder = tmp_path / "O" / "selected"
    assert hub.files == {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    assert 'load_dataset("somebody/chosen", split="train")' in hub.files["README.md"].decode()
    (tmp_path / "pushed.parquet").write_bytes(hub.files["data/train-00000-of-00001.parquet"])
    found = datasets.Dataset.from_parquet(str(tmp_path / "pushed.parquet"))
    assert found.to_list() == [typed_rows()[index] for index in highest(output)]
    assert f"on the hub: {hub.address}/datasets/somebody/chosen" in done.stdout


def test_a_hub_that_refuses_leaves_the_folder_and_says_so(output: Path, pool: Path, tmp_path: Path) -> None:
    shutil.copytree(output, tmp_path / "O")
    with start_hub(refuses=True) as hub:
        done = pushed(hub.address, tmp_path / "O", pool, "somebody/chosen")
    assert done.returncode == 2
    said = done.stderr.rpartition("miwv: ")[2]
    assert "somebody/chosen could not be written to the hub (" in said and "403" in said
    assert f"is whole: try again, or run `hf upload somebody/chosen {tmp_path / 'O' / 'selected'}" in said
    assert (tmp_path / "O" / "selected" / "README.md").is_file()
