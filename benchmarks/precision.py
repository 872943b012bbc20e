"""How lower precision changes the selection, and how much scoring again near the threshold repairs.

    python -m benchmarks.precision --samples 999

The reference is float32 arithmetic on the same bfloat16 weights.
"""

import argparse
import datetime
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.cases import DEFAULT_POOL, Case, Draw, build_case, read_model, read_pool
from benchmarks.measure import describe_machine
from miwv_trainer.config import MIWVConfig
from miwv_trainer.scoring.float32 import use_float32
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import choose_layout, score_pool
from miwv_trainer.scoring.losses import Losses
from miwv_trainer.scoring.refine import refine
from miwv_trainer.selection.budget import count_selected
from miwv_trainer.selection.choose import Choice, choose, compute_overlap
from miwv_trainer.selection.measured import Measured


@dataclass(frozen=True)
class Run:
    """One way to score the pool: its name, losses, seconds, and number of samples computed in float32."""

    name: str
    losses: Losses
    seconds: float
    in_float32: int


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables. Bad input prints one line on standard error and returns exit status 2."""
    try:
        arguments = parse_arguments(argv)
        rows = read_pool(arguments.pool)
        model, tokenizer = read_model(arguments.model, None, "bfloat16", arguments.device)
        config = MIWVConfig(fraction=arguments.fraction, embedder="tfidf")
        case = build_case(model, tokenizer, rows, Draw(arguments.samples), config)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"benchmarks.precision: {error}", file=sys.stderr)
        return 2
    number = count_selected(arguments.fraction, len(case.pool))
    print(f"machine: {describe_machine(arguments.device)}, {datetime.date.today().isoformat()}")
    print(f"{len(case.pool)} samples, {number} selected, bfloat16 weights")
    low, _, reference = runs = measure_all(case)
    print("\n".join(format_table(runs, case)))
    print("\n".join(describe_differences(low.losses, reference.losses)))
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub name (default: the quickstart's SmolLM2-135M-Instruct)")
    parser.add_argument("--pool", help=f"file or hub name (default: {DEFAULT_POOL.name} in ../shared/data)")
    parser.add_argument("--samples", type=int, default=999, help="number drawn from the pool (default: %(default)s)")
    parser.add_argument("--fraction", type=float, default=0.05, help="share selected (default: %(default)s)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    arguments = parser.parse_args(argv)
    arguments.device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return arguments


def measure_all(case: Case) -> tuple[Run, Run, Run]:
    """Scores in bfloat16, the same refined near the threshold, and all in float32 arithmetic on the same weights."""
    scorer, model, pool, exemplars = case.scorer, case.model, case.pool, case.exemplars
    with leave_no_trace(model):
        layout = choose_layout(scorer, exemplars)
        started = time.perf_counter()
        losses = score_pool(scorer, exemplars, layout)
        low = Run("bfloat16", losses, time.perf_counter() - started, 0)
        again = refine(scorer, exemplars, losses, layout, ranking=lambda found: rank(found, case))
        refined = Run("bfloat16, refined", again.losses, low.seconds + again.seconds, again.samples)
        started = time.perf_counter()
        with use_float32(model):
            losses = score_pool(scorer, exemplars, layout)
        return low, refined, Run("float32", losses, time.perf_counter() - started, len(pool))


def choose_samples(losses: Losses, case: Case) -> Choice:
    pool = case.pool
    unknown = np.full(len(pool), np.nan, dtype=np.float32)
    measured = Measured(losses.zero_shot, losses.one_shot, unknown, pool.response_tokens)
    return choose(measured, pool.has_prompt_and_response, case.config)


def rank(losses: Losses, case: Case) -> tuple[np.ndarray, np.ndarray]:
    choice = choose_samples(losses, case)
    return choice.scores, choice.distances


def format_table(runs: Sequence[Run], case: Case) -> list[str]:
    """One line per run: seconds, and the share of the selection that the last run, the reference, selects too."""
    wanted = choose_samples(runs[-1].losses, case).selection
    lines = [f"{'':18s}  {'seconds':>8s}  {'in float32':>10s}  {'selection as in float32':>23s}"]
    for run in runs:
        share = compute_overlap(choose_samples(run.losses, case).selection, wanted)
        lines.append(f"{run.name:18s}  {run.seconds:8.1f}  {run.in_float32:10d}  {share:23.1%}")
    return lines


def describe_differences(low: Losses, reference: Losses) -> list[str]:
    """How much lower precision changes single losses and MIWV."""
    both = np.isfinite(low.miwv) & np.isfinite(reference.miwv)
    single = np.stack([low.zero_shot - reference.zero_shot, low.one_shot - reference.one_shot])[:, both]
    moved = (low.miwv - reference.miwv)[both]
    return [
        f"single losses: moved by at most {np.abs(single).max():.3f}, root mean square {compute_rms(single):.4f}",
        f"MIWV: moved by at most {np.abs(moved).max():.3f}, root mean square {compute_rms(moved):.4f}, "
        f"correlation {np.corrcoef(low.miwv[both], reference.miwv[both])[0, 1]:.5f}",
    ]


def compute_rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


if __name__ == "__main__":
    sys.exit(main())
