"""Starts a script on several CPU processes and gives its output."""

import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from accelerate.commands.launch import (
    _validate_launch_command,
    launch_command_parser,
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
)

from miwv_trainer.compat import is_at_least
from tests.helpers.forks import PYTHON, base_environment, build_operators, fork_python
from tests.helpers.forks import ROOT as ROOT

Completed = subprocess.CompletedProcess[str]
CONFIGS = ROOT / "ds_configs"

NEEDS_RESUME_ON_RANKS = pytest.mark.skipif(
    not is_at_least("transformers", "5.18"),
    reason="before transformers 5.18, a Trainer on two CPU processes cannot be resumed: torch.load takes no cpu:0",
)

# Each fails in the same way without this library.
NEEDS_ZERO2 = pytest.mark.skipif(
    not is_at_least("deepspeed", "0.19"),
    reason="DeepSpeed before 0.19 cannot train by ZeRO-2 on two CPU processes beside torch 2.13",
)
NEEDS_CHECKPOINTED_ADAPTERS = pytest.mark.skipif(
    not is_at_least("deepspeed", "0.19"),
    reason="DeepSpeed before 0.19 cannot train adapters by ZeRO-3 with gradient checkpointing beside torch 2.13",
)
NEEDS_TRL_ON_CPU = pytest.mark.skipif(
    is_at_least("trl", "0.29") and not is_at_least("trl", "1.15"),
    reason="before TRL 1.12, SFTTrainer loads a model by its path with a device map, which ZeRO-3 refuses, and to 1.14 "
    "its loss is refused under ZeRO-3",
)


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


def launch(backend: str, processes: int, *arguments: Path | str, timeout: float = 300) -> Completed:
    """
    The processes that `accelerate launch` starts for a script, or for a module after `-m`, with the environment that it
    gives them; `backend` is a key of `LAUNCHERS`. They are forked, which saves the launcher's and their own imports.
    """
    given = launch_command_parser().parse_args([*_options(backend, processes), *map(str, arguments)])
    given, defaults, mixed_precision_given = _validate_launch_command(given)
    if given.use_deepspeed:
        fields = [*(defaults.deepspeed_config if defaults else ()), *(["mixed_precision"] * mixed_precision_given)]
        given.deepspeed_fields_from_accelerate_config = ",".join(fields)
        _, environment = prepare_deepspeed_cmd_env(given)
    else:
        environment = prepare_multi_gpu_env(given)
    environment = {**environment, **base_environment()}
    return fork_python(*arguments, ranks=_ranks(processes), environment=environment, timeout=timeout)


def accelerate_launch(backend: str, processes: int, *arguments: Path | str, timeout: float = 300) -> Completed:
    """`accelerate launch` itself, as `launch` describes it. Plain `--num_processes 2` would start one process."""
    command = [PYTHON, "-m", "accelerate.commands.launch", *_options(backend, processes), *map(str, arguments)]
    return run(command, timeout)


def _options(backend: str, processes: int) -> list[str]:
    port = str(free_port())
    return [*LAUNCHERS[backend], "--num_processes", str(processes), "--main_process_port", port]


def _ranks(processes: int) -> list[dict[str, str]]:
    """What torchrun sets for each of several processes on one machine."""
    size, port = str(processes), str(free_port())
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def fork_ranks(processes: int, *arguments: Path | str, timeout: float = 300) -> Completed:
    """The processes that torchrun starts for a script, or for a module after `-m`, forked."""
    return fork_python(*arguments, ranks=_ranks(processes), timeout=timeout)


def torchrun(processes: int, *arguments: str, timeout: float = 300) -> Completed:
    """`torchrun` itself, of a script, or of a module where the arguments begin with `-m`."""
    launcher = [PYTHON, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return run([*launcher, "--master_port", str(free_port()), *arguments], timeout)


def launch_machines(file: str, machines: int, script: Path, *arguments: str, timeout: float = 300) -> list[Completed]:
    """`accelerate launch` of a script once for each of several machines of one process, all of them this one."""
    port = str(free_port())
    with ThreadPoolExecutor(machines) as pool:
        started = [
            pool.submit(
                run,
                [
                    *(PYTHON, "-m", "accelerate.commands.launch", *with_file(file)),
                    *("--num_machines", str(machines), "--num_processes", str(machines), "--machine_rank", str(rank)),
                    *("--main_process_ip", "127.0.0.1", "--main_process_port", port, str(script), *arguments),
                ],
                timeout,
            )
            for rank in range(machines)
        ]
        return [one.result() for one in started]


def run(command: list[str], timeout: float = 300, threads: int = 1) -> Completed:
    build_operators()
    environment = {**base_environment(), "OMP_NUM_THREADS": str(threads)}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
