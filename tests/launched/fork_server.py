"""Has imported what every run needs, and forks the processes of a run from itself. Started by tests/helpers/forks.py.

Importing torch, transformers and DeepSpeed takes 6 to 8 s of a core for each process. A fork of a process that has
imported them starts at once. A forked process runs a script as `__main__` and ends as any other, exit handlers
included. Requests and replies are lines of JSON on standard input and output.
"""

import json
import os
import runpy
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

# What the runs import; modules that start threads must not be among them.
import datasets  # noqa: F401
import deepspeed.ops
import deepspeed.runtime.zero.muon.original_muon  # noqa: F401 (compiles, so it imports the compiler: 6 s)
import peft  # noqa: F401
import sklearn.feature_extraction.text  # noqa: F401
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Trainer  # noqa: F401
from trl import SFTTrainer  # noqa: F401

import miwv_trainer.cli.main  # noqa: F401
import tests.helpers.tiny  # noqa: F401

POLL_SECONDS = 0.02
# Ranks that fail together end within so long of each other. torchrun looks every 0.1 s; on a busy machine one rank was
# seen to be ended by the signal while it was exiting with its own status.
TOGETHER_SECONDS = 1.0
# torchrun waits as long between asking a process to end and killing it.
GRACE_SECONDS = 30.0


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        pipes = {name: os.pipe() for name in ("stdout", "stderr")}
        children: dict[int, int] = {}
        for rank, process in enumerate(request["processes"]):
            child = os.fork()
            if child == 0:
                become(process, {name: written for name, (_, written) in pipes.items()})
                return
            children[child] = rank
        for _, written in pipes.values():
            os.close(written)
        output = Output({name: read for name, (read, _) in pipes.items()})
        codes = wait_for(children, output, time.monotonic() + request["timeout"])
        print(json.dumps({"codes": codes, **output.close()}), flush=True)


class Output:
    """What the processes of a run print. A pipe that is not emptied would stop them."""

    def __init__(self, ends: dict[str, int]) -> None:
        self.ends = ends
        self.parts: dict[str, list[bytes]] = {name: [] for name in ends}

    def read(self, seconds: float) -> bool:
        """Takes what is there, or waits for it. Returns whether there was anything."""
        ready, _, _ = select.select(self.ends.values(), [], [], seconds)
        found = False
        for name, end in self.ends.items():
            if end in ready and (part := os.read(end, 1 << 16)):
                self.parts[name].append(part)
                found = True
        if ready and not found:  # all have closed their ends, but have not ended yet
            time.sleep(seconds)
        return found

    def close(self) -> dict[str, str]:
        while self.read(0.0):
            pass
        for end in self.ends.values():
            os.close(end)
        return {name: b"".join(parts).decode(errors="replace") for name, parts in self.parts.items()}


def wait_for(children: dict[int, int], output: Output, deadline: float) -> list[int]:
    """Exit codes by rank. When one process fails, the others are asked to end, as a launcher does."""
    codes = [0] * len(children)
    running, failed_at, asked_at = dict(children), float("inf"), float("inf")
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in running:
            codes[running.pop(child)] = os.waitstatus_to_exitcode(status)
        elif child == 0:
            output.read(POLL_SECONDS)
        now = time.monotonic()
        failed_at = min(failed_at, now) if any(codes) else failed_at
        if asked_at == float("inf") and (now > failed_at + TOGETHER_SECONDS or now > deadline):
            send_to(running, signal.SIGTERM)
            asked_at = now
        elif now > asked_at + GRACE_SECONDS:
            send_to(running, signal.SIGKILL)
    return codes


def send_to(running: dict[int, int], number: int) -> None:
    for child in running:
        os.kill(child, number)


def become(process: dict[str, Any], ends: dict[str, int]) -> None:
    """Turns this fork into `python -u ARGUMENTS`, with its own environment and output."""
    sys.stdin = open(os.devnull)  # noqa: SIM115 (for as long as the process lives)
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        os.dup2(ends[name], stream.fileno())
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(process["environment"])
    os.chdir(process["folder"])
    first, *rest = process["arguments"]
    if first == "-m":
        sys.argv, sys.path[0] = rest, process["folder"]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], process["folder"]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    main()
