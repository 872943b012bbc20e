"""What scoring costs on a GPU: part after part within nine minutes, without a network, into benchmarks/RESULTS.md.

    make benchmark-gpu
    make benchmark-gpu WHEELS=wheels        # a bare checkout, with the wheels that the machine lacks in a folder
    python -m benchmarks.gpu --tiny --output tried.md        # the same on a CPU, with tiny models

Each part is a command of its own with a share of the time. A part that does not end in it is stopped, and one that the
rest of the time does not allow is skipped; both are named in the file, as are parts that fail, and the next part runs.
"""

import argparse
import datetime
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.cases import DEFAULT_POOL, ROOT
from benchmarks.measure import describe_machine

MINUTES = 9.0
ALPACA = 52_002
# Dense bfloat16 peaks, in TFLOP/s, by what the device's name holds; the first that fits.
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165, "A10": 125, "L4": 121}
WAYS = "mask,blocks,varlen"
# On a CPU flex attention is compiled by a C++ compiler, for a minute, and its place is taken by the CPU's own way.
WAYS_ON_CPU = "mask,segments,varlen"
# Characters of the answers in alpaca_gpt4_1k, at some quantiles: what a token costs depends on how long they are.
QUANTILES, ANSWER_CHARACTERS = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1), (1, 29, 107, 465, 1217, 1952, 2837)
# The files with tests for a GPU. Of all others pytest would import each, and end where one lacks a package.
GPU_TESTS = ("tests/scoring/test_gpu.py", "tests/embeddings/test_exact.py")
# Runs a command for at most so many seconds and returns its exit status and the end of what it wrote; None for the
# status if it was stopped.
Launch = Callable[[Sequence[str], float], tuple[int | None, str]]


@dataclass(frozen=True)
class Part:
    """
    A command of the run.

    Args:
        name: What it measures.
        command: Module and arguments, behind `python -m`.
        least: Seconds without which it is not begun.
        most: Seconds after which it is stopped.
    """

    name: str
    command: list[str]
    least: float
    most: float


@dataclass(frozen=True)
class Outcome:
    """What became of a part."""

    name: str
    what: str
    seconds: float


def main(argv: Sequence[str] | None = None, launch: Launch | None = None) -> int:
    """Runs the parts; returns 1 if one of them failed, 2 on bad input."""
    arguments = parse_arguments(argv)
    if not arguments.tiny and not torch.cuda.is_available():
        print("benchmarks.gpu: there is no CUDA device. `--tiny` tries the run on a CPU.", file=sys.stderr)
        return 2
    deadline = time.monotonic() + 60 * arguments.minutes
    output = Path(arguments.output)
    device = torch.device("cpu" if arguments.tiny else "cuda")
    append(output, describe_run(device))
    launch = launch or run_command
    with tempfile.TemporaryDirectory() as folder:
        pool = arguments.pool or find_pool(Path(folder))
        outcomes = [run_part(part, deadline, launch) for part in list_parts(arguments, pool)]
        outcomes.append(run_whole_pool(arguments, pool, output, deadline, launch))
    append(output, format_outcomes(outcomes))
    print(format_outcomes(outcomes))
    return int(any(outcome.what.startswith("failed") for outcome in outcomes))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub name (default: the quickstart's SmolLM2-135M-Instruct)")
    parser.add_argument(
        "--pool", help=f"file (default: {DEFAULT_POOL.name} in ../shared/data, else docstrings as long)"
    )
    parser.add_argument("--output", default=str(ROOT / "benchmarks" / "RESULTS.md"), help="Markdown file")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts (default: %(default)s)")
    parser.add_argument("--peak-tflops", type=float, help="the device's dense bfloat16 peak (default: by its name)")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few samples, on a CPU")
    return parser.parse_args(argv)


def find_pool(folder: Path) -> str:
    """The default pool; where it is missing, texts that every machine has, in its lengths."""
    if DEFAULT_POOL.is_file():
        return str(DEFAULT_POOL)
    path = folder / "docstrings_as_long_as_alpaca.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(1000)), encoding="utf-8")
    return str(path)


def make_rows(count: int) -> list[dict[str, str]]:
    """Questions about Python's functions, with answers of the default pool's lengths cut from documentation strings."""
    from docstring_pool import collect_docstring_rows

    rows = collect_docstring_rows(lambda row: True, count)
    text = " ".join(row["output"] for row in rows)
    generator = np.random.default_rng(0)
    even = (generator.permutation(len(rows)) + 0.5) / len(rows)
    lengths = np.interp(even, QUANTILES, ANSWER_CHARACTERS).astype(int)
    starts = generator.integers(len(text) - max(ANSWER_CHARACTERS), size=len(rows))
    return [
        {"instruction": row["instruction"], "output": text[start : start + length]}
        for row, start, length in zip(rows, starts, lengths, strict=True)
    ]


def list_parts(arguments: argparse.Namespace, pool: str) -> list[Part]:
    """All parts but the whole pool, which is only begun if the time allows it."""
    llama, gemma = ("tiny-llama", "tiny-gemma-3") if arguments.tiny else ("llama-7b", "gemma-3-4b")
    few, fewer, some, ways = (8, 8, 8, WAYS_ON_CPU) if arguments.tiny else (192, 1000, 2000, WAYS)
    layouts = f"row,padded_full,padded,{ways},ceiling"
    tests = ["pytest", "-q", "-m", "gpu", *(GPU_TESTS[:1] if arguments.tiny else GPU_TESTS)]
    return [
        Part("layouts and attentions", make_command(arguments, pool, few, layouts), 20, 120),
        Part("7B-shaped Llama", make_command(arguments, pool, some, "padded,tree,ceiling", llama), 40, 150),
        Part("Gemma-3-shaped", make_command(arguments, pool, fewer, f"padded,{ways},ceiling", gemma), 40, 120),
        Part("tests that need a GPU", tests, 30, 180),
    ]


def make_command(
    arguments: argparse.Namespace, pool: str, samples: int, layouts: str, shape: str | None = None
) -> list[str]:
    """`benchmarks.scoring` with what all parts share. A random model gets a pool of random tokens."""
    command = ["benchmarks.scoring", "--pool", pool, "--samples", str(samples), "--layouts", layouts]
    command += ["--dtype", "bfloat16", "--output", arguments.output]
    command += ["--device", "cpu"] if arguments.tiny else []
    command += ["--model", arguments.model] if arguments.model else []
    command += ["--shape", shape, "--lengths-only"] if shape else []
    peak = arguments.peak_tflops or find_peak()
    return command + (["--peak-tflops", str(peak)] if peak else [])


def find_peak() -> float | None:
    """The device's dense bfloat16 peak in TFLOP/s; None if it is not known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for known, peak in PEAKS.items() if known in name), None)


def run_part(part: Part, deadline: float, launch: Launch) -> Outcome:
    """Runs a part in what is left of the time, or skips it."""
    left = deadline - time.monotonic()
    if left < part.least:
        return Outcome(part.name, f"skipped: {max(left, 0):.0f} s were left, and it needs {part.least:.0f}", 0.0)
    print(f"{part.name}: python -m {shlex.join(part.command)}", flush=True)
    started = time.monotonic()
    status, end = launch(part.command, min(part.most, left))
    seconds = time.monotonic() - started
    if status is None:
        return Outcome(part.name, f"stopped after {seconds:.0f} s", seconds)
    last = end.strip().splitlines()[-1] if end.strip() else "nothing was written"
    return Outcome(part.name, "done" if status == 0 else f"failed with status {status}: {last}", seconds)


def run_whole_pool(arguments: argparse.Namespace, pool: str, output: Path, deadline: float, launch: Launch) -> Outcome:
    """A pool of Alpaca's size, if the seconds of the smaller one say that the time allows it; else what they say."""
    name, shape = f"{ALPACA:,} samples", "tiny-llama" if arguments.tiny else "llama-7b"
    found = read_tree_seconds(output.read_text(encoding="utf-8"), shape)
    if found is None:
        return Outcome(name, f"skipped: the {shape} part gave no seconds to estimate it by", 0.0)
    samples, seconds = found
    estimate = seconds / samples * ALPACA
    # Loading the model and drawing the pool take time too; the estimate may be a tenth too low.
    needed = 1.1 * estimate + 30
    size = 2 * samples if arguments.tiny else ALPACA
    command = make_command(arguments, pool, size, "tree", shape)
    outcome = run_part(Part(name, command, 0 if arguments.tiny else needed, 2 * needed), deadline, launch)
    extrapolated = f"extrapolated from {samples} samples: {estimate:.0f} s in trees"
    return Outcome(name, f"{outcome.what} ({extrapolated})", outcome.seconds)


def read_tree_seconds(text: str, shape: str) -> tuple[int, float] | None:
    """Samples and seconds of the trees of the last table of a shape; None if there is none."""
    sections = [each for each in text.split("\n### ") if each.startswith(f"random {shape} ")]
    if not sections:
        return None
    samples = re.search(r"^- scored: (\d+) samples", sections[-1], re.MULTILINE)
    seconds = re.search(r"^\| tree \| ([\d.]+) \|", sections[-1], re.MULTILINE)
    return (int(samples[1]), float(seconds[1])) if samples and seconds else None


def run_command(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Runs `python -m` in a group of processes of its own, so that what a part has started ends with it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment["HF_HUB_OFFLINE"] = "1"
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        written, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, ""
    print(written, flush=True)
    return process.returncode, written


def append(output: Path, text: str) -> None:
    with open(output, "a", encoding="utf-8") as file:
        file.write(f"\n{text}\n")


def describe_run(device: torch.device) -> str:
    kind = "tried on a CPU with tiny models" if device.type == "cpu" else describe_machine(device)
    return f"## `make benchmark-gpu`: {kind}, {datetime.date.today().isoformat()}"


def format_outcomes(outcomes: Sequence[Outcome]) -> str:
    """A line for each part: what became of it, and how long it took."""
    lines = ["| part | what became of it | seconds |", "|---|---|---:|"]
    return "\n".join([*lines, *(f"| {each.name} | {each.what} | {each.seconds:.0f} |" for each in outcomes)])


if __name__ == "__main__":
    sys.exit(main())
