"""Does selecting help? Trains on several selections of your pool and judges them on held-out samples.

    make compare
    make compare MODEL=/path/to/model DATASET=/path/to/pool.jsonl FRACTION=0.05
    python examples/compare.py --dataset pool.jsonl --arm "guarded: preset=guarded" --arm "hard: score=zero_shot_loss"
    torchrun --nproc_per_node 2 examples/compare.py --dataset pool.jsonl --corrupt swapped=0.3

Each arm is a configuration of MIWVConfig and trains a LoRA adapter with the plain Trainer. Beside the given arms there
are always random draws, the longest responses, the full set, and random draws that cost as much as scoring and training
together. If a comparison is killed, the same command continues it; several processes share its runs. --output receives
comparison.md, comparison.png and a file for each run.
"""

import argparse
import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from comparison.arms import UNTRAINED, Arm
from comparison.dealing import deal, leave_launcher
from comparison.judgement import Losses, judge
from comparison.options import make_parser
from comparison.page import Section, build_page, describe_left_out
from comparison.plan import Orders, Plan, Run, count_left, describe_identity, make_plan
from comparison.plot import draw_comparison
from comparison.results import (
    RUNS,
    Result,
    check_settings,
    estimate_seconds,
    is_made_by,
    read_result,
    write_result,
    write_text,
)
from comparison.samples import HELD_OUT, describe_limits
from comparison.scoring import Scores
from comparison.setting import Setting, learn_known, prepare
from comparison.tables import format_text
from comparison.training import make_run
from comparison.wording import write_power, write_verdict
from quickstart import find_default_model

# Options that may change when a comparison is continued.
MAY_DIFFER = ("output", "seeds", "arm", "learning_rates", "page_only")


def main() -> None:
    arguments = make_parser(__doc__).parse_args()
    rank, processes = leave_launcher()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    started = time.perf_counter()
    if arguments.page_only:
        check_has_runs(Path(arguments.output))
    setting = prepare(arguments)
    check_same_comparison(setting)
    check_same_arms(setting)
    # A page is made of what there is: it needs neither the model that knows a part of the pool nor new scores.
    if not arguments.page_only:
        setting = learn_known(setting)
    scores = Scores(setting)
    if rank == 0:
        print(describe_start(setting), flush=True)
    if arguments.page_only:
        scores.check_scored()
    else:
        scores.score()
    plan = make_plan(setting, scores)
    runs = plan.list_runs(arguments.seeds, arguments.learning_rates)
    if not arguments.page_only:
        make_runs(setting, scores, runs, processes)
    if rank == 0:
        show(setting, plan, runs)
        print(f"{time.perf_counter() - started:.0f} s")


def check_has_runs(output: Path) -> None:
    """Refuses to make a page of nothing, which would first load a model and score a pool."""
    if not list((output / RUNS).glob("*.json")):
        raise SystemExit(explain_too_few_runs(output))


def explain_too_few_runs(output: Path) -> str:
    """The error if a page is asked for before there is anything to show."""
    return f"{output} has too few runs for a page. Leave --page-only out."


def check_same_comparison(setting: Setting) -> None:
    """Refuses a folder that holds results of other options or samples."""
    described = {name: value for name, value in vars(setting.arguments).items() if name not in MAY_DIFFER}
    data = {name: samples.pool.fingerprint for name, samples in setting.evaluated.items()}
    check_settings(setting.output, described, {"pool": setting.samples.pool.fingerprint, **data})


def check_same_arms(setting: Setting) -> None:
    """Refuses an arm of whose name the folder holds runs of another configuration, before anything is scored."""
    arguments = setting.arguments
    for run in Plan(setting.arms, {}, {}).list_runs(arguments.seeds, arguments.learning_rates):
        read_made(setting, run)


def describe_start(setting: Setting) -> str:
    """What is about to be compared."""
    arguments, samples = setting.arguments, setting.samples
    selected, size = setting.count_selected(arguments.fraction), len(samples.pool)
    faults = "".join(f", {mask.mean():.0%} {name}" for name, mask in samples.faults.items())
    others = "".join(f", {name}: {len(found.pool)}" for name, found in setting.evaluated.items())
    return (
        f"Pool: {size} samples ({describe_limits(arguments)}){faults}{others}. {selected} samples are selected, in "
        f"whole batches of {arguments.batch_size}; {setting.steps} steps an arm."
    )


def make_runs(setting: Setting, scores: Scores, runs: Sequence[Run], processes: int) -> None:
    """Makes the runs that no other process makes, and returns when all are done."""
    orders = Orders(setting, scores)

    def is_done(run: Run) -> bool:
        return read_made(setting, run) is not None

    left = [run for run in runs if not is_done(run)]
    print(f"{len(left)} of {len(runs)} runs to go.", flush=True)
    for run in deal(runs, setting.output / RUNS, is_done):
        result = make_run(setting, scores, run)
        write_result(find_file(setting, run), result)
        left = [run for run in runs if not is_done(run)]
        done = read_results(setting, runs)
        seconds = estimate_seconds(done, list(count_left(left, orders)), processes)
        left_in_words = "" if seconds is None else f" (about {seconds / 60:.0f} min left)"
        place = f"[{len(runs) - len(left)}/{len(runs)}]"
        loss = result.loss(HELD_OUT, setting.evaluated[HELD_OUT].pool.response_tokens)
        print(f"{place} {run.name}: held-out loss {loss:.4f}, {result.seconds:.0f} s{left_in_words}", flush=True)


def find_file(setting: Setting, run: Run) -> Path:
    """The file of a run's result."""
    return setting.output / RUNS / f"{run.slug}.json"


def read_made(setting: Setting, run: Run) -> Result | None:
    """The result of a run; None if there is none yet, or one at another cost."""
    result = read_result(find_file(setting, run))
    is_asked = is_made_by(result, describe_identity(run.arm), is_derived=run.arm.target is not None)
    return result if is_asked else None


def read_results(setting: Setting, runs: Sequence[Run]) -> list[Result]:
    """The results that are there, of runs as they are asked for."""
    return [found for run in runs if (found := read_made(setting, run)) is not None]


def show(setting: Setting, plan: Plan, runs: Sequence[Run]) -> None:
    """Prints the table, and writes the page and the picture."""
    results = read_results(setting, runs)
    if len(results) < 2 or results[0].arm != UNTRAINED:
        raise SystemExit(explain_too_few_runs(setting.output))
    sections = make_sections(setting, plan, results)
    first = sections[0]
    untrained = " / ".join(f"{loss:.4f}" for loss in first.losses.untrained)
    print(f"\n{first.title}, by response tokens / by samples; untrained {untrained}\n{format_text(first.judged)}\n")
    print("\n".join(describe_left_out(first)))
    print(f"{write_verdict(first.judged)}\n{write_power(first.judged)}\n")
    shown = [section for section in sections if section.title in list_main_titles(setting)]
    draw_comparison(shown, setting.output / "comparison.png")
    write_text(setting.output / "comparison.md", build_page(sections, collect_facts(setting, results, runs)))
    print(f"{setting.output / 'comparison.md'}\n{setting.output / 'comparison.png'}")


def list_main_titles(setting: Setting) -> list[str]:
    """The title of the first table of each set of samples."""
    is_tuned = len(setting.arguments.learning_rates) > 1
    return [make_title(name, is_tuned, None) for name in setting.evaluated]


def make_title(name: str, is_tuned: bool, rate: float | None) -> str:
    """What a table is of."""
    where = f"On {name}"
    if rate is not None:
        return f"{where}, learning rate {rate:g}"
    return f"{where}, each arm at its best learning rate" if is_tuned else where


def make_sections(setting: Setting, plan: Plan, results: Sequence[Result]) -> list[Section]:
    """The tables: of each set of samples one with tuned rates, if there are several, and one for each rate."""
    rates: list[float] = setting.arguments.learning_rates
    sections = []
    for name, samples in setting.evaluated.items():
        losses = Losses(results, name, samples.pool.response_tokens)
        parts: list[tuple[float | None, list[float]]] = [(None, rates)]
        parts += [(rate, [rate]) for rate in rates] if len(rates) > 1 else []
        for rate, used in parts:
            title = make_title(name, len(rates) > 1, rate)
            sections.append(Section(title, judge(losses, plan, used), losses, used))
    return sections


def collect_facts(setting: Setting, results: Sequence[Result], runs: Sequence[Run]) -> dict[str, str]:
    """What the page says about a comparison besides its numbers."""
    arguments, samples = setting.arguments, setting.samples
    name = Path(arguments.dataset).name if arguments.dataset else "Python's documentation strings"
    faults = "".join(f", {mask.mean():.0%} {fault}" for fault, mask in samples.faults.items())
    held_out = [f"{len(found.pool)} {name}" for name, found in setting.evaluated.items()]
    return {
        "model": f"{Path(arguments.model or find_default_model()).name}, LoRA",
        "pool": f"{name}, {describe_limits(arguments)}: {len(samples.pool)} samples with "
        f"{samples.pool.response_tokens.sum():,} response tokens{faults}",
        "held out": ", ".join(held_out),
        "arms": "; ".join(describe_arm(arm) for arm in setting.arms if arm.settings),
        "training and evaluation": f"{sum(result.seconds for result in results) / 60:.0f} min in all",
        **describe_missing(results, runs),
        "command": f"`{describe_command(arguments)}`",
        "steps": str(setting.steps),
        "batch": str(arguments.batch_size),
        "seeds": str(arguments.seeds),
        "rates": ", ".join(f"{rate:g}" for rate in arguments.learning_rates),
    }


def describe_missing(results: Sequence[Result], runs: Sequence[Run]) -> dict[str, str]:
    """What the page says of a comparison that is not at its end; nothing of one that is."""
    if len(results) == len(runs):
        return {}
    made, asked = Counter(result.arm for result in results), Counter(run.arm.name for run in runs)
    fewer = ", ".join(f"{name} {made[name]}" for name in asked if made[name] < asked[name])
    return {"unfinished": f"{len(results)} of {len(runs)} runs; arms that lack some, with those they have: {fewer}"}


def describe_arm(arm: Arm) -> str:
    """An arm as it is typed."""
    return f"{arm.name}: {', '.join(f'{key}={value}' for key, value in (arm.settings or {}).items())}"


def describe_command(arguments: argparse.Namespace) -> str:
    """The command line that makes the same comparison."""
    parser, words = make_parser(__doc__), ["python examples/compare.py"]
    for name, value in vars(arguments).items():
        if name == "page_only" or value == parser.get_default(name):
            continue
        option = f"--{name.replace('_', '-')}"
        if name == "columns":
            words.append(f"{option} {','.join(f'{read}={column}' for read, column in value.items())}")
        elif name == "arm":
            words += [f'{option} "{describe_arm(arm)}"' for arm in value]
        elif name == "corrupt":
            words += [f"{option} {kind}={share}" for one in value for kind, share in one.items()]
        elif name == "evaluate":
            words += [f"{option} {other}" for other in value]
        elif name == "learning_rates":
            words.append(f"{option} {' '.join(f'{rate:g}' for rate in value)}")
        else:
            words.append(option if value is True else f"{option} {np.asarray(value).item()}")
    return " ".join(words)


if __name__ == "__main__":
    main()
