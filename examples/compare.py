"""Does selecting help? Trains on several selections of your pool and compares them on held-out samples.

    make compare
    make compare MODEL=/path/to/model DATASET=/path/to/pool.jsonl FRACTION=0.05
    python examples/compare.py --dataset pool.jsonl --fraction 0.05 --seeds 3 --output comparison

Each arm trains a LoRA adapter with the plain Trainer for the same number of steps. Each arm runs with several seeds: of
the adapter, of the order and of random draws. Samples are selected twice: equal numbers of samples, and equal numbers
of response tokens. If a comparison is killed, the same command continues it. --output receives comparison.md,
comparison.png and the numbers of every run.
"""

import argparse
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from adapter import make_adapter_trainer
from comparison import (
    FULL,
    UNTRAINED,
    Result,
    build_page,
    draw_losses,
    format_tables,
    read_results,
    write_results,
)
from held_out import measure_held_out_loss, score_generations
from peft import PeftModel
from quickstart import find_default_model, name_columns, split_rows
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from miwv_trainer import (
    JsonRows,
    MIWVConfig,
    MIWVDataSampler,
    Pool,
    StoredRound,
    attach,
    load_model,
    load_rows,
    pool_from_rows,
    pool_from_tokenized,
    read_rounds,
    score_and_select,
    select_again,
    tokenize,
)

ARMS: dict[str, dict[str, Any]] = {
    FULL: {},
    "MIWV once": {"score": "miwv"},
    "MIWV rescored": {"score": "miwv", "rescore_strategy": "steps"},
    "random": {"score": "random"},
    "longest": {"score": "longest"},
    "lowest MIWV": {"score": "low_miwv"},
    "highest one-shot loss": {"score": "one_shot_loss"},
}
BUDGETS = ("samples", "tokens")
MAY_DIFFER = ("output", "seeds")  # options that may change when a comparison is continued


@dataclass(frozen=True)
class Setting:
    """
    What all arms share. `samples` and `pool` are the same samples, for the Trainer and for scoring.

    `too_long` is the number of the dataset's samples that --longest leaves out.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    samples: datasets.Dataset
    held_out: datasets.Dataset
    pool: Pool
    too_long: int
    steps: int
    arguments: argparse.Namespace

    @property
    def output(self) -> Path:
        return Path(self.arguments.output)


def main() -> None:
    arguments = make_parser().parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    started = time.perf_counter()
    output = Path(arguments.output)
    described = {name: value for name, value in vars(arguments).items() if name not in MAY_DIFFER}
    setting = prepare(arguments)
    held_out = pool_from_tokenized(setting.held_out, setting.tokenizer)
    data = {"pool": setting.pool.fingerprint, "held_out": held_out.fingerprint}
    results = read_results(output / "results.json", described, data)
    planned = list(list_runs(arguments.seeds))
    done = {(result.arm, result.budget, result.seed) for result in results}
    left = [run for run in planned if run not in done]
    print(
        f"Pool: {len(setting.pool)} samples, held out: {len(held_out)}, {describe_limits(setting)}; {setting.steps} "
        f"steps of up to {arguments.batch_size} samples per arm; {len(left)} of {len(planned)} runs to go."
    )
    scored = score_pool(setting) if left else {}
    begun = time.perf_counter()
    for number, (arm, budget, seed) in enumerate(left, start=1):
        result = run_arm(setting, scored, arm, budget, seed)
        results.append(result)
        lines = {"settings": described, "data": data, "results": [vars(each) for each in results]}
        write_results(output / "results.json", lines)
        minutes = (time.perf_counter() - begun) / number * (len(left) - number) / 60
        print(
            f"[{len(planned) - len(left) + number}/{len(planned)}] {result.name}: held-out loss {result.loss:.4f}, "
            f"{result.seconds:.0f} s (about {minutes:.0f} min left)",
            flush=True,
        )
    results = [result for result in results if (result.arm, result.budget, result.seed) in set(planned)]
    print("\n" + format_tables(results))
    draw_losses(results, output / "comparison.png")
    (output / "comparison.md").write_text(build_page(results, collect_facts(setting)), encoding="utf-8")
    print(f"\n{output / 'comparison.md'}\n{output / 'comparison.png'}\n{time.perf_counter() - started:.0f} s")


def make_minimum(least: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers that are not smaller."""

    def parse_number(typed: str) -> int:
        if not typed.isdecimal() or int(typed) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, but got {typed}")
        return int(typed)

    return parse_number


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="hub name, folder, or folder with a GGUF file (default: SmolLM2-135M-Instruct)")
    add("--dataset", help="hub name, file or folder (default: Python's documentation strings)")
    add("--columns", type=name_columns, help="their names, as in prompt=question,response=answer")
    add("--output", default="comparison", help="folder to write to (default: %(default)s)")
    add("--fraction", type=float, default=0.1, help="share that is selected (default: %(default)s)")
    add(
        "--max-samples",
        type=make_minimum(0),
        default=240,
        help="most samples of pool and held out together; 0: all (default: %(default)s)",
    )
    add("--held-out", type=make_minimum(1), default=40, help="held-out samples of your dataset (default: %(default)s)")
    add("--longest", type=make_minimum(0), default=128, help="longest sample in tokens; 0: any (default: %(default)s)")
    add("--embedder", default="tfidf", help="what finds exemplars (default: %(default)s)")
    add("--epochs", type=float, default=3, help="epochs over a selection of --fraction (default: %(default)s)")
    add("--batch-size", type=make_minimum(1), default=8, help="samples of a step (default: %(default)s)")
    add("--learning-rate", type=float, default=5e-4, help="(default: %(default)s)")
    add("--seeds", type=make_minimum(1), default=3, help="runs of each arm (default: %(default)s)")
    add(
        "--rescores",
        type=make_minimum(1),
        default=1,
        help='rounds of "MIWV rescored" after the first (default: %(default)s)',
    )
    add("--refine", action="store_true", help="score samples near the threshold again in float32, as `attach` does")
    add("--generations", type=make_minimum(0), default=16, help="held-out prompts to answer (default: %(default)s)")
    add("--max-new-tokens", type=make_minimum(1), default=48, help="longest answer (default: %(default)s)")
    return parser


def prepare(arguments: argparse.Namespace) -> Setting:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load_model(arguments.model or str(find_default_model()), "bfloat16")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows, held_out_rows, too_long = split_dataset(arguments, tokenizer)
    samples, held_out = (tokenize(part, tokenizer, arguments.columns) for part in (rows, held_out_rows))
    pool = pool_from_tokenized(samples, tokenizer)
    sampler = MIWVDataSampler(len(pool), MIWVConfig(fraction=arguments.fraction).fraction)
    steps = max(1, round(arguments.epochs * len(sampler) / arguments.batch_size))
    return Setting(model.to(device), tokenizer, samples, held_out, pool, too_long, steps, arguments)


def split_dataset(
    arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase
) -> tuple[datasets.Dataset | JsonRows, datasets.Dataset | JsonRows, int]:
    """
    The pool's rows, the held-out rows, and the number of samples that are too long to be in either.

    Documentation strings are split by module and made short enough; a user's data are split at random.
    """
    if arguments.dataset is None:
        return *split_rows(None, tokenizer, arguments.max_samples, arguments.longest), 0
    rows, too_long = load_rows(arguments.dataset), 0
    kind = f"samples of at most {arguments.longest} tokens" if arguments.longest else "samples"
    if arguments.longest:
        lengths = pool_from_rows(rows, tokenizer, columns=arguments.columns).lengths
        is_short = lengths <= arguments.longest
        rows, too_long = rows.select(np.flatnonzero(is_short)), int((~is_short).sum())
    rows = rows.shuffle(seed=0)
    part = rows.select(range(min(arguments.max_samples or len(rows), len(rows))))
    if len(part) < arguments.held_out + 2:
        raise SystemExit(
            f"{arguments.dataset} has {len(rows)} {kind}, of which --max-samples {arguments.max_samples or 'all'} are "
            f"taken: {arguments.held_out} are held out, and a pool needs two more. Give a larger --longest or "
            "--max-samples, or a smaller --held-out."
        )
    return part.select(range(arguments.held_out, len(part))), part.select(range(arguments.held_out)), too_long


def describe_limits(setting: Setting) -> str:
    """Which part of the dataset is used."""
    arguments = setting.arguments
    left_out = f" ({setting.too_long} left out)" if arguments.dataset is not None else ""
    found = [f"none longer than {arguments.longest} tokens{left_out}"] if arguments.longest else []
    found += [f"{arguments.max_samples} at most in all"] if arguments.max_samples else []
    return ", ".join(found) or "all that there are"


def list_runs(seeds: int) -> Iterator[tuple[str, str, int]]:
    """All runs, seed by seed: a comparison that is stopped early then has results of every arm."""
    yield UNTRAINED, "", 0
    for seed in range(seeds):
        yield FULL, "", seed
        for budget in BUDGETS:
            for arm in ARMS:
                if arm != FULL:
                    yield arm, budget, seed


def make_config(setting: Setting, arm: str, budget: str) -> MIWVConfig:
    arguments = setting.arguments
    chosen = {**ARMS[arm], "selection_budget": budget, "fraction": arguments.fraction, "embedder": arguments.embedder}
    if "rescore_strategy" in chosen:
        chosen["rescore_steps"] = math.ceil(setting.steps / (arguments.rescores + 1))
    return MIWVConfig(**chosen, refine_near_threshold=arguments.refine)


def score_pool(setting: Setting) -> dict[str, StoredRound]:
    """
    Scores the pool with the untrained model, once for each budget.

    The arms select from these losses. The arm that rescores reads them as its round 0.
    """
    return {
        budget: score_and_select(
            setting.model, setting.pool, make_config(setting, "MIWV once", budget), find_scores_folder(setting, budget)
        )
        for budget in BUDGETS
    }


def find_scores_folder(setting: Setting, budget: str) -> Path:
    return setting.output / f"scores-equal-{budget}"


def run_arm(setting: Setting, scored: dict[str, StoredRound], arm: str, budget: str, seed: int) -> Result:
    """Trains and evaluates one arm. The model is unchanged afterwards."""
    started = time.perf_counter()
    selection = np.arange(len(setting.pool))
    trained: PreTrainedModel | PeftModel = setting.model
    if arm not in (UNTRAINED, FULL):
        config = replace(make_config(setting, arm, budget), sampler_seed=seed)
        selection = select_again(scored[budget], config).selection
    if arm != UNTRAINED:
        trained = train(setting, arm, budget, selection, seed)
    loss = measure_held_out_loss(trained, setting.held_out, setting.tokenizer)
    prompts = setting.held_out.select(range(min(setting.arguments.generations, len(setting.held_out))))
    generated = {"exact_match": float("nan"), "rougeL": float("nan")}
    if len(prompts):
        generated = score_generations(trained, prompts, setting.tokenizer, setting.arguments.max_new_tokens)
    if isinstance(trained, PeftModel):
        trained.unload()
    tokens = int(setting.pool.response_tokens[selection].sum())
    return Result(
        arm=arm,
        budget=budget,
        seed=seed,
        samples=len(selection),
        tokens=tokens,
        epochs=count_times_seen(len(selection), setting.steps, setting.arguments.batch_size),
        loss=loss,
        exact_match=generated["exact_match"],
        rouge_l=generated["rougeL"],
        seconds=time.perf_counter() - started,
    )


def count_times_seen(count: int, steps: int, batch_size: int) -> float:
    """How often each of `count` samples is trained on. The last batch of an epoch may be smaller."""
    whole, rest = divmod(steps, math.ceil(count / batch_size))
    return whole + rest * batch_size / count


def train(setting: Setting, arm: str, budget: str, selection: np.ndarray, seed: int) -> PeftModel:
    arguments = setting.arguments
    folder = setting.output / "trained" / f"{arm.replace(' ', '-')}-equal-{budget}-seed-{seed}"
    rescores = "rescore_strategy" in ARMS[arm]
    if rescores:  # all seeds start from the same round 0
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(find_scores_folder(setting, budget), folder)
    trainer = make_adapter_trainer(
        setting.model,
        setting.tokenizer,
        setting.samples if rescores else setting.samples.select(selection),
        folder,
        seed,
        max_steps=setting.steps,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
    )
    trainer.remove_callback(PrinterCallback)
    if rescores:
        attach(trainer, make_config(setting, arm, budget))
    trainer.train()
    return trainer.model


def collect_facts(setting: Setting) -> dict[str, str]:
    """What the page says about a comparison besides its numbers."""
    arguments, pool = setting.arguments, setting.pool
    name = Path(arguments.dataset).name if arguments.dataset else "Python's documentation strings"
    parser = make_parser()
    typed = {name: value for name, value in vars(arguments).items() if value != parser.get_default(name)}
    if arguments.columns:
        typed["columns"] = ",".join(f"{read}={column}" for read, column in arguments.columns.items())
    options = [f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in typed.items()]
    return {
        "model": Path(arguments.model or find_default_model()).name,
        "pool": f"{name}: {len(pool)} samples with {pool.response_tokens.sum():,} response tokens, "
        f"{len(setting.held_out)} held out, {describe_limits(setting)}",
        "steps": f"{setting.steps} steps of up to {arguments.batch_size} samples",
        "late": str(setting.steps - find_last_change(setting)),
        "command": " ".join(["python examples/compare.py", *options]),
    }


def find_last_change(setting: Setting) -> int:
    """The step at which "MIWV rescored" begins to train on its last selection."""
    latest = [read_rounds(folder)[-1] for folder in setting.output.glob("trained/MIWV-rescored-*")]
    return max((last.summary["takes_effect"]["global_step"] for last in latest if last.number), default=setting.steps)


if __name__ == "__main__":
    main()
