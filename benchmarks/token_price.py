"""What a forwarded token costs in padded rows and in trees, part by part of the model, in CPU seconds of one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.token_price --samples 24 --repeat 2

CPU seconds of a single thread do not depend on what else the machine does, as wall-clock time would. The two layouts
run in turn. `weights` are linear layers, `head` is the head with the losses, `attention` is what an attention module
does besides its linear layers (rotary positions, joined keys and values, the calls), `checks` are the forwards before
the first row, whose tokens are not counted as the layout's.
"""

import argparse
import datetime
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.cases import DEFAULT_POOL, Case, Draw, build_case, read_model, read_pool
from benchmarks.measure import describe_machine
from benchmarks.shapes import SHAPES
from miwv_trainer.choices import Layout
from miwv_trainer.config import MIWVConfig
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import choose_layout, score_pool
from miwv_trainer.scoring.scorer import prepare_scorer

LAYOUTS: tuple[Layout, ...] = ("padded", "tree")
PARTS = ("weights", "attention", "head", "rest", "checks")


class Stopwatch:
    """CPU seconds of this thread by part; time inside an inner part counts for that alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = ["rest"]
        self._since = time.thread_time()

    def enter(self, part: str) -> None:
        self._book()
        self._running.append(part)

    def leave(self) -> None:
        self._book()
        self._running.pop()

    def _book(self) -> None:
        now = time.thread_time()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table. Bad input prints one line on standard error and returns exit status 2."""
    try:
        arguments = parse_arguments(argv)
        torch.set_num_threads(1)
        model, tokenizer = read_model(arguments.model, arguments.shape, "float32", torch.device("cpu"))
        rows = read_pool(arguments.pool)
        case = build_case(model, tokenizer, rows, Draw(arguments.samples), MIWVConfig(embedder="tfidf"))
        measured = measure_layouts(case, arguments.repeat)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"benchmarks.token_price: {error}", file=sys.stderr)
        return 2
    print(f"{describe_machine(torch.device('cpu'))}, {datetime.date.today().isoformat()}")
    print(f"{len(case.scored)} samples, float32\n")
    print("\n".join(format_table(measured)))
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.token_price",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="folder or hub name (default: the quickstart's SmolLM2-135M-Instruct)")
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights in the shape of a family")
    parser.add_argument("--pool", help=f"file or hub name (default: {DEFAULT_POOL.name} in ../shared/data)")
    parser.add_argument("--samples", type=int, default=24, help="number drawn from the pool (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=2, help="times that both layouts run (default: %(default)s)")
    return parser.parse_args(argv)


def measure_layouts(case: Case, repeat: int) -> dict[str, tuple[int, dict[str, float]]]:
    """For each layout the tokens it forwards, and the median seconds of each part over the repetitions."""
    seconds: dict[str, list[dict[str, float]]] = {layout: [] for layout in LAYOUTS}
    tokens = {}
    with leave_no_trace(case.model):
        for _ in range(repeat):
            for layout in LAYOUTS:
                tokens[layout], found = measure_layout(case, layout)
                seconds[layout].append(found)
                print(f"{layout}: {sum(found.values()):.1f} s", file=sys.stderr, flush=True)
    return {
        layout: (tokens[layout], {part: float(np.median([each[part] for each in seconds[layout]])) for part in PARTS})
        for layout in LAYOUTS
    }


def measure_layout(case: Case, layout: Layout) -> tuple[int, dict[str, float]]:
    """The checks of a layout, then a pass over the pool, whose parts are told apart."""
    scorer = prepare_scorer(case.model, case.pool, replace(case.config, layout=layout), case.world)
    started = time.thread_time()
    choose_layout(scorer, case.exemplars)
    checks = time.thread_time() - started
    watch = Stopwatch()
    with watch_parts(case.model, watch):
        watch.enter("rest")
        losses = score_pool(scorer, case.exemplars, layout)
        watch.leave()
    watch.seconds["checks"] = checks
    return losses.tokens_forwarded, watch.seconds


@contextmanager
def watch_parts(model: PreTrainedModel, watch: Stopwatch) -> Iterator[None]:
    """Inside, the modules of each part report to the stopwatch."""
    head = model.get_output_embeddings()
    parts: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            parts[module] = "weights"
        elif name.endswith("attn"):
            parts[module] = "attention"
    # Hooks of the head that were there first run first: the losses are made in one, and so begins its time before them.
    handles = [head.register_forward_pre_hook(lambda *_: watch.enter("head"), prepend=True)]
    handles += [head.register_forward_hook(lambda *_: watch.leave())]
    for module, part in parts.items():
        handles += [module.register_forward_pre_hook(lambda *_, part=part: watch.enter(part))]
        handles += [module.register_forward_hook(lambda *_: watch.leave())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def format_table(measured: dict[str, tuple[int, dict[str, float]]]) -> list[str]:
    """A line for each part: microseconds a token and seconds, in padded rows and in trees."""
    (padded_tokens, padded), (tree_tokens, tree) = (measured[layout] for layout in LAYOUTS)
    lines = [
        "| part | padded, us a token | trees, us a token | padded, s | trees, s |",
        "|---|---:|---:|---:|---:|",
        f"| tokens | | | {padded_tokens} | {tree_tokens} |",
    ]
    passes = [part for part in PARTS if part != "checks"]
    sums = ("the pass", [sum(each[part] for part in passes) for each in (padded, tree)])
    together = ("with checks", [sum(each.values()) for each in (padded, tree)])
    for name, (ours, theirs) in [(part, (padded[part], tree[part])) for part in passes] + [sums]:
        a_token = f"{1e6 * ours / padded_tokens:.0f} | {1e6 * theirs / tree_tokens:.0f}"
        lines.append(f"| {name} | {a_token} | {ours:.1f} | {theirs:.1f} |")
    for name, (ours, theirs) in [("checks", (padded["checks"], tree["checks"])), together]:
        lines.append(f"| {name} | | | {ours:.1f} | {theirs:.1f} |")
    price = (sums[1][1] / tree_tokens) / (sums[1][0] / padded_tokens)
    return [
        *lines,
        "",
        f"Trees forward {padded_tokens / tree_tokens:.2f} times fewer tokens, of which each takes {price:.2f} times as "
        f"long: {sums[1][0] / sums[1][1]:.2f} times as fast, {together[1][0] / together[1][1]:.2f} with the checks.",
    ]


if __name__ == "__main__":
    sys.exit(main())
