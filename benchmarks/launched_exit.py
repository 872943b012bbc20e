"""Whether the processes of a launched `miwv score` end in order: so many runs on a tiny model, and how they exited.

    python -m benchmarks.launched_exit --runs 200 [--processes 2] [--launcher fork|accelerate|torchrun]

`accelerate` and `torchrun` start each run as it is typed, at about 15 s a run, nearly all of it imports. `fork` forks
the processes from one that has imported everything, with the environment that torchrun gives them; the command and the
interpreter's exit are the same. A run counts as whole if every process exits with status 0, no process says
"terminate called", and selected.jsonl is the same as that of the first run.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from tests.helpers.launch import accelerate_launch, fork_ranks, torchrun
from tests.helpers.tiny import instruction_rows, save_tiny

SAMPLES = 24
ABORTED = "terminate called"
LAUNCHERS: dict[str, Callable[..., CompletedProcess[str]]] = {
    "fork": fork_ranks,
    "accelerate": lambda processes, *words: accelerate_launch("ddp", processes, *words),
    "torchrun": torchrun,
}


def main() -> None:
    given = parse_arguments()
    outcomes: Counter[str] = Counter()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options = prepare(Path(folder))
        selected: bytes | None = None
        for number in range(given.runs):
            output = Path(folder) / f"run-{number}"
            done = LAUNCHERS[given.launcher](given.processes, "-m", "miwv_trainer", "score", *options, str(output))
            found = read_selected(output)
            selected = selected or found
            outcome = describe(done, found is not None and found == selected)
            outcomes[outcome] += 1
            if outcome != "whole":
                print(f"run {number}: {outcome}\n{done.stderr[-3000:]}", flush=True)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    seconds = time.perf_counter() - started
    print(f"{given.runs} runs by {given.launcher}, {given.processes} processes: {counts} ({seconds:.0f} s)")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--launcher", choices=list(LAUNCHERS), default="fork")
    return parser.parse_args()


def prepare(folder: Path) -> list[str]:
    """The options of every run, up to the value of `--output`."""
    model = save_tiny(folder / "model")
    pool = folder / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in instruction_rows(SAMPLES)), encoding="utf-8")
    return ["--model", str(model), "--dataset", str(pool), "--embedder", "tfidf", "--fraction", "0.25", "--output"]


def read_selected(output: Path) -> bytes | None:
    """What a run has selected, or None where it has written nothing."""
    path = output / "selected.jsonl"
    return path.read_bytes() if path.exists() else None


def describe(done: CompletedProcess[str], is_same: bool) -> str:
    """How a run ended, in a few words."""
    if done.returncode or ABORTED in done.stderr:
        return f"exited with {done.returncode}" + (", aborted" if ABORTED in done.stderr else "")
    return "whole" if is_same else "selected other samples"


if __name__ == "__main__":
    main()
