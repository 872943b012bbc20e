"""Starts a script on several CPU processes, as a user would, and gives its output."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "ds_configs"


def with_deepspeed(name: str) -> list[str]:
    return ["--use_deepspeed", "--deepspeed_config_file", str(CONFIGS / f"{name}.json")]


def with_file(name: str) -> list[str]:
    return ["--config_file", str(CONFIGS / f"{name}.yaml")]


LAUNCHERS = {
    "ddp": ["--multi_gpu"],
    "zero1": with_deepspeed("zero1"),
    "zero2": with_deepspeed("zero2"),
    "zero3": with_deepspeed("zero3"),
    "zero3_offload": with_deepspeed("zero3_offload"),
    "ddp.yaml": with_file("ddp"),
    "deepspeed.yaml": with_file("deepspeed"),
    "deepspeed.yaml, zero2": [*with_file("deepspeed"), "--deepspeed_config_file", str(CONFIGS / "zero2.json")],
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(
    backend: str, processes: int, script: Path | str, *arguments: str, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """
    `accelerate launch` of a script, or of a module after `-m`; `backend` is a key of `LAUNCHERS`. Plain
    `--num_processes 2` would start one.
    """
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


def launch_machines(
    file: str, machines: int, script: Path, *arguments: str, timeout: float = 300
) -> list[subprocess.CompletedProcess[str]]:
    """`accelerate launch` of a script once for each of several machines of one process, all of them this one."""
    port = str(free_port())
    with ThreadPoolExecutor(machines) as pool:
        started = [
            pool.submit(
                run,
                [
                    *(sys.executable, "-m", "accelerate.commands.launch", *with_file(file)),
                    *("--num_machines", str(machines), "--num_processes", str(machines), "--machine_rank", str(rank)),
                    *("--main_process_ip", "127.0.0.1", "--main_process_port", port, str(script), *arguments),
                ],
                timeout,
            )
            for rank in range(machines)
        ]
        return [one.result() for one in started]


def run(command: list[str], timeout: float = 300, threads: int = 1) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": str(threads),
        # DeepSpeed builds its CPU operators with the ninja that lies beside this Python.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
