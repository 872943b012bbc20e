"""Starts a script on several CPU processes, as a user would, and gives its output."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAUNCHERS = {
    "ddp": ["--multi_gpu"],
    "zero2": ["--use_deepspeed", "--deepspeed_config_file", str(ROOT / "ds_configs" / "zero2.json")],
    "zero3": ["--use_deepspeed", "--deepspeed_config_file", str(ROOT / "ds_configs" / "zero3.json")],
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(
    backend: str, processes: int, script: Path, *arguments: str, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` of a script; `backend` is a key of `LAUNCHERS`. Plain `--num_processes 2` would start one."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *LAUNCHERS[backend],
        *("--num_processes", str(processes), "--main_process_port", str(free_port())),
        *(str(script), *arguments),
    ]
    return run(command, timeout)


def torchrun(processes: int, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`torchrun` of a script, or of a module where the arguments begin with `-m`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return run([*launcher, "--master_port", str(free_port()), *arguments], timeout)


def run(command: list[str], timeout: float = 300, threads: int = 1) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": str(threads),
    }
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
