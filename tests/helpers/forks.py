"""Python processes forked from one that has imported everything, so that a start costs no imports."""

import atexit
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
# Without symbolic links, so that several trees that share an environment share what DeepSpeed has built in it.
PREFIX = Path(sys.prefix).resolve()
PYTHON = str(PREFIX / "bin" / "python")
OPERATORS = PREFIX / "torch_extensions"
BUILD_OPERATORS = """
from deepspeed.accelerator import get_accelerator
builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
if builder.is_compatible():
    builder.load()
"""


def base_environment() -> dict[str, str]:
    """What every started process has: this tree's modules, no hub, DeepSpeed on the CPU, one thread."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # DeepSpeed builds operators against this environment's headers. The folder in the home directory is shared with
        # other environments, which build them again.
        "TORCH_EXTENSIONS_DIR": str(OPERATORS),
        # DeepSpeed builds its CPU operators with the ninja that lies beside this Python.
        "PATH": os.pathsep.join([str(PREFIX / "bin"), os.environ["PATH"]]),
    }


@cache
def build_operators() -> None:
    """
    Builds what DeepSpeed compiles at its first start, once for an environment.

    It takes a minute, and five on a busy machine. A run that is ended meanwhile, at its time limit, leaves a lock on
    which every later run waits for ever: in a new environment 90 tests failed of one.
    """
    with FileLock(PREFIX / "torch_extensions.lock"):
        if not list(OPERATORS.glob("*/*.so")):
            shutil.rmtree(OPERATORS, ignore_errors=True)
            subprocess.run([PYTHON, "-c", BUILD_OPERATORS], cwd=ROOT, env=base_environment(), check=True)


@cache
def _server() -> subprocess.Popen[str]:
    """Started when it is first needed, one for each process of pytest."""
    build_operators()
    process = subprocess.Popen(
        [PYTHON, "-m", "tests.launched.fork_server"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=base_environment(),
    )  # fmt: skip

    def stop() -> None:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)

    atexit.register(stop)
    return process


def fork_python(
    *arguments: str | Path,
    ranks: list[dict[str, str]] | None = None,
    environment: dict[str, str] | None = None,
    folder: Path = ROOT,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """
    `python ARGUMENTS` once for each of `ranks`, their own environment variables; without them, once. Arguments are a
    script, `-m` and a module, or `-c` and code, and what these take. The output is that of all processes together; the
    exit code is that of the first rank that failed.
    """
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    processes = [
        {
            "arguments": [str(argument) for argument in arguments],
            "environment": {**(environment or base_environment()), **own},
            "folder": str(folder),
        }
        for own in (ranks or [{}])
    ]
    print(json.dumps({"processes": processes, "timeout": timeout}), file=server.stdin, flush=True)
    done = json.loads(server.stdout.readline())
    code = next((code for code in done["codes"] if code), 0)
    return subprocess.CompletedProcess([*map(str, arguments)], code, done["stdout"], done["stderr"])
