"""What scoring a pool costs: all layouts in one run, in turn.

    python -m benchmarks.scoring --samples 96
    python -m benchmarks.scoring --random-llama '{}' --lengths-only --samples 52002 --dtype bfloat16 \\
        --layouts tree,ceiling --peak-tflops 989

The table gives seconds, tokens, tokens/s, ratio to row-by-row scoring, share of the ceiling and peak memory. The lines
below it say how much the layouts' losses differ. Finding exemplars is not timed.
"""

import argparse
import datetime
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import transformers

from benchmarks.cases import DEFAULT_POOL, Case, Draw, build_case, read_model, read_pool
from benchmarks.layouts import ATTENTIONS, CEILING_ROW, LAYOUTS, count_work, forward_plain_rows, prepare, use_attention
from benchmarks.measure import Measurement, describe_machine, measure
from benchmarks.shapes import SHAPES
from benchmarks.table import Line, compare_losses, format_markdown, format_text, make_cells
from miwv_trainer.choices import DTYPES
from miwv_trainer.config import MIWVConfig
from miwv_trainer.scoring.attention import find_tree_obstacle
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import choose_layout, score_pool
from miwv_trainer.scoring.losses import Losses
from miwv_trainer.scoring.rows import restrict_exemplars


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table. Bad input prints one line on standard error and returns exit status 2."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        arguments = parse_arguments(argv)
        case = read_case(arguments)
        layouts, unavailable = drop_unavailable(case, arguments.layouts)
        lines = run(case, layouts, arguments.repeat)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"\nbenchmarks.scoring: {error}", file=sys.stderr)  # a progress bar may stand on the line
        return 2
    facts = describe(case, arguments, argv)
    table, notes = make_cells(lines, arguments.peak_tflops), [*compare_losses(lines), *unavailable]
    print(format_text(facts, table, notes))
    if arguments.output is not None:
        with open(arguments.output, "a", encoding="utf-8") as file:
            file.write("\n" + format_markdown(facts, table, notes))
    return 0


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, checked. Raises `ValueError` on a value out of range."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scoring", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", help="folder or hub name (default: the quickstart's SmolLM2-135M-Instruct)")
    add(
        "--random-llama",
        metavar="JSON",
        help="random weights in this shape, as overrides of LlamaConfig; {} is 7B. The tokenizer is that of --model",
    )
    add(
        "--shape",
        choices=list(SHAPES),
        help="random weights in the shape of a family; the tokenizer is that of --model",
    )
    add("--pool", help=f"file or hub name (default: {DEFAULT_POOL.name} in ../shared/data)")
    add("--samples", type=int, default=96, help="number drawn from the pool (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the draw (default: %(default)s)")
    add(
        "--lengths-only",
        action="store_true",
        help="random tokens in lengths drawn from the pool with replacement; as many samples share an exemplar",
    )
    add("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 elsewhere")
    add("--device", help="default: cuda where there is one, else cpu")
    add("--attention", choices=("sdpa", "eager", "flex_attention"), help="default: the model's own")
    add(
        "--layouts",
        default=",".join(LAYOUTS),
        help=f"some of these, in this order (default: %(default)s), or ways to attend: {', '.join(ATTENTIONS)}",
    )
    add("--repeat", type=int, default=1, help="times that all layouts run, in turn; medians are shown")
    add("--tokens-per-row", type=int, help="of the tree layout and the ceiling (default: MIWVConfig's)")
    add("--tokens-per-batch", type=int, help="of the padded layouts (default: MIWVConfig's)")
    add("--embedder", default="tfidf", help="what finds exemplars (default: %(default)s)")
    add("--peak-tflops", type=float, help="the chip's dense peak, of which the share is shown")
    add("--output", help="Markdown file to which the table is appended")
    arguments = parser.parse_args(argv)
    arguments.layouts = list(dict.fromkeys(arguments.layouts.split(",")))
    arguments.device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    arguments.dtype = arguments.dtype or ("bfloat16" if arguments.device.type == "cuda" else "float32")
    check_arguments(arguments)
    return arguments


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raises `ValueError` on a value out of range; called before anything is loaded."""
    known = [*LAYOUTS, *ATTENTIONS]
    unknown = [layout for layout in arguments.layouts if layout not in known]
    if unknown:
        raise ValueError(f"`--layouts` must be some of {', '.join(known)}, but got {', '.join(map(repr, unknown))}.")
    if arguments.shape is not None and arguments.random_llama is not None:
        raise ValueError("`--shape` and `--random-llama` are two random models: give one of them.")
    for name, least in (("samples", 2), ("repeat", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value < least:
            raise ValueError(f"`--{name}` must be at least {least}, but got {value}.")
    if arguments.peak_tflops is not None and not arguments.peak_tflops > 0:
        raise ValueError(f"`--peak-tflops` must be above 0, but got {arguments.peak_tflops}.")
    if arguments.output is not None and not Path(arguments.output).resolve().parent.is_dir():
        raise ValueError(f"`--output` must be a file in a folder that exists, but got {arguments.output!r}.")


def read_case(arguments: argparse.Namespace) -> Case:
    """Model, pool and exemplars that the command line asks for."""
    given = {name: getattr(arguments, name) for name in ("tokens_per_row", "tokens_per_batch")}
    config = MIWVConfig(
        embedder=arguments.embedder, **{name: value for name, value in given.items() if value is not None}
    )
    rows = read_pool(arguments.pool)
    model, tokenizer = read_model(
        arguments.model, arguments.shape or arguments.random_llama, arguments.dtype, arguments.device
    )
    if arguments.attention is not None:
        model.set_attn_implementation(arguments.attention)
    return build_case(model, tokenizer, rows, Draw(arguments.samples, arguments.seed, arguments.lengths_only), config)


def run(case: Case, layouts: Sequence[str], repeat: int) -> list[Line]:
    """
    Runs all layouts in order, `repeat` times.

    They run in turn, and not each `repeat` times on end, so that a machine that slows down slows all of them.

    Raises:
        ValueError: trees are among the layouts, and the model cannot take them.
    """
    measured: dict[str, list[Measurement[Losses | None]]] = {layout: [] for layout in layouts}
    with leave_no_trace(case.model):
        if "tree" in layouts:
            refuse_unless_trees_fit(case)
        forward_plain_rows(case, 2 * CEILING_ROW, 1)  # warm-up: reads the weights and loads kernels
        for repetition in range(repeat):
            for layout in layouts:
                with use_attention(layout, case) as (taken, of_case):
                    if repetition == 0 and layout in ATTENTIONS:
                        warm_up(of_case)
                    found = measure(prepare(taken, of_case), case.world.device)
                measured[layout].append(found)
                print(f"{repetition + 1}/{repeat} {layout}: {found.seconds:.2f} s", file=sys.stderr, flush=True)
    return [make_line(layout, case, found) for layout, found in measured.items()]


def make_line(layout: str, case: Case, measured: Sequence[Measurement[Losses | None]]) -> Line:
    """What the table says of a layout."""
    with use_attention(layout, case) as (taken, of_case):
        forwarded = count_work(taken, of_case)
    known = [each.peak_bytes for each in measured if each.peak_bytes is not None]
    scored = measured[-1].result
    tokens = forwarded.tokens if scored is None else scored.tokens_forwarded
    median = statistics.median(each.seconds for each in measured)
    return Line(layout, median, tokens, forwarded.flops(case.model), max(known, default=None), scored)


def drop_unavailable(case: Case, layouts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The layouts that can run here, and a note for each way to attend that the model cannot take here."""
    available, notes = [], []
    for layout in layouts:
        with use_attention(layout, case) as (_, of_case):
            asked = of_case.config.attention
            obstacle = find_tree_obstacle(case.model, case.context, asked) if layout in ATTENTIONS else None
        if obstacle is None:
            available.append(layout)
        else:
            notes.append(f"{layout}: not available, because {obstacle}.")
    return available, notes


def warm_up(case: Case) -> None:
    """Scores a few samples in trees, so that no kernel is compiled while the clock runs."""
    few = restrict_exemplars(case.scored[:2], case.exemplars)
    score_pool(case.scorer, few, "tree")


def refuse_unless_trees_fit(case: Case) -> None:
    """Raises `ValueError` where the library would not score the model in trees."""
    choose_layout(replace(case, config=replace(case.config, layout="tree")).scorer, case.exemplars)


def describe(case: Case, arguments: argparse.Namespace, argv: Sequence[str]) -> dict[str, str]:
    """What a reader must know to repeat the measurement."""
    millions = sum(parameter.numel() for parameter in case.model.parameters()) / 1e6
    name = (
        f"random {arguments.shape or 'Llama'}"
        if arguments.shape or arguments.random_llama is not None
        else Path(arguments.model or "SmolLM2-135M-Instruct").name
    )
    drawn = "random tokens in the lengths of" if arguments.lengths_only else "samples of"
    pool = Path(arguments.pool or DEFAULT_POOL).name
    scored = case.scored
    return {
        "machine": describe_machine(arguments.device),
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "model": f"{name} ({millions:,.1f} M parameters, {case.model.config._attn_implementation} attention)",
        "dtype": arguments.dtype,
        "pool": f"{len(case.pool)} {drawn} {pool}",
        "scored": f"{len(scored)} samples, {case.pool.lengths[scored].mean():.0f} tokens each on average, of which "
        f"{case.pool.response_tokens[scored].mean():.0f} response",
        "repetitions": str(arguments.repeat),
        "date": datetime.date.today().isoformat(),
        "command": f"python -m benchmarks.scoring {shlex.join(argv)}".strip(),
    }


if __name__ == "__main__":
    sys.exit(main())
