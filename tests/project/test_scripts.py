"""The Slurm file, Alpaca's script and the notebook: run as a user would."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.helpers.forks import fork_python
from tests.helpers.launch import ROOT, free_port
from tests.helpers.tiny import instruction_rows, save_tiny, tiny_tokenizer

EXAMPLES = ROOT / "examples"
SLURM = EXAMPLES / "train.slurm"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    tiny_tokenizer().save_pretrained(save_tiny(folder / "model"))
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in instruction_rows(40)))
    return folder


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join([more.pop("first", ""), str(Path(sys.executable).parent), os.environ["PATH"]])
    given = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": paths}
    return {**os.environ, **given, **more}


def selected_in(output: Path) -> list[int]:
    rounds = sorted((output / "miwv").glob("round-*"))
    return [sum(pq.read_table(each / "scores.parquet")["selected"].to_pylist()) for each in rounds]


def test_alpacas_script_trains_on_what_it_selects(place: Path, tmp_path: Path) -> None:
    options = (
        f"--model_name_or_path {place / 'model'} --data_path {place / 'pool.jsonl'} --output_dir {tmp_path} --use_cpu "
        "--num_train_epochs 2 --fraction 0.25 --rescore_strategy epoch --embedder tfidf --report_to none "
        "--save_strategy no --model_max_length 300"
    )
    done = fork_python(EXAMPLES / "train_alpaca.py", *options.split())
    assert done.returncode == 0, done.stderr[-3000:]
    assert selected_in(tmp_path) == [10, 10]
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["global_step"] == 2 * 2  # ten samples in batches of eight
    assert (tmp_path / "model.safetensors").is_file()


def test_the_slurm_file_is_bash_and_names_what_is_there() -> None:
    text = SLURM.read_text()
    assert subprocess.run(["bash", "-n", str(SLURM)]).returncode == 0
    for path in re.findall(r"\b(?:ds_configs|examples)/[\w.]+", text):
        assert (ROOT / path).is_file(), path
    directives = re.findall(r"^#SBATCH --([\w-]+)=?", text, re.MULTILINE)
    assert {"nodes", "ntasks-per-node", "gpus-per-node", "requeue", "signal"} <= set(directives)
    assert text.index("#SBATCH") < text.index("set -euo")  # Slurm reads none behind the first command


@pytest.mark.slow
def test_the_slurm_file_starts_two_machines_and_goes_on_when_queued_again(place: Path, tmp_path: Path) -> None:
    """With `srun` and `scontrol` of our own: two machines of one process, both this one."""
    stubs = tmp_path / "bin"
    stubs.mkdir()
    (stubs / "scontrol").write_text('#!/bin/bash\necho "$@" >> "$NOTES"\n[ "$1" = show ] && echo 127.0.0.1 || true\n')
    (stubs / "srun").write_text(
        '#!/bin/bash\nshift\nSLURM_PROCID=1 "$@" &\nSLURM_PROCID=0 "$@"\nfirst=$?\nwait $! && exit $first\n'
    )
    for stub in stubs.iterdir():
        stub.chmod(0o755)
    given = {
        "first": str(stubs), "MODEL": str(place / "model"), "POOL": str(place / "pool.jsonl"), "GPUS_PER_NODE": "1",
        "OUTPUT": str(tmp_path / "out"), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7",
        "MAIN_PORT": str(free_port()), "NOTES": str(tmp_path / "notes"),
        "ARGUMENTS": "--use_cpu --embedder tfidf --report_to none --fraction 0.4 --save_steps 3 --max_steps 6",
    }  # fmt: skip
    done = subprocess.run(["bash", str(SLURM)], cwd=ROOT, env=environment(**given), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    output = tmp_path / "out"
    assert [
        json.loads((each / "round.json").read_text())["processes"] for each in (output / "miwv").glob("round-*")
    ] == [2] * len(selected_in(output))
    assert "show hostnames node[1-2]" in (tmp_path / "notes").read_text()
    given["ARGUMENTS"] = given["ARGUMENTS"].replace("--max_steps 6", "--max_steps 9")
    given["MAIN_PORT"] = str(free_port())
    again = subprocess.run(["bash", str(SLURM)], cwd=ROOT, env=environment(**given), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "Resumed at step 6" in again.stdout + again.stderr
    assert json.loads((output / "checkpoint-9" / "trainer_state.json").read_text())["global_step"] == 9


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "curriculum.ipynb", 4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells), "clear its outputs"
    names = {"MODEL": place / "model", "POOL": place / "pool.jsonl", "OUTPUT": tmp_path / "out"}
    for name, value in {**environment(), **{name: str(path) for name, path in names.items()}}.items():
        monkeypatch.setenv(name, value)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    assert selected_in(tmp_path / "out") == [4, 4, 4]
    printed = "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")
    assert "20 of 40 samples scored" in printed and "example:" in printed
    assert any("image/png" in output.data for cell in cells for output in cell.outputs if "data" in output)
