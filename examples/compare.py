"""Does it help to select? Trains on several selections of your pool and compares them on held-out samples.

    make compare
    make compare MODEL=/path/to/model DATASET=/path/to/pool.jsonl FRACTION=0.05
    python examples/compare.py --dataset pool.jsonl --fraction 0.05 --seeds 3 --output comparison

Every arm trains a LoRA adapter with the plain Trainer for the same number of steps, with several seeds (of adapter and
order; of the draw too, where it is random). Samples are selected once at equal numbers of samples and once at equal
numbers of response tokens. A run that is killed goes on where it was when the same command is given again; --output
receives comparison.md, comparison.png and every run's numbers.
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
from adapter import adapter_trainer
from comparison import UNTRAINED, Result, draw, read_results, report, text_tables, write_results
from held_out import generation_scores, held_out_loss
from peft import PeftModel
from quickstart import default_model, split_rows
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from miwv_trainer import (
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
    "full set": {},
    "MIWV once": {"score": "miwv"},
    "MIWV rescored": {"score": "miwv", "rescore_strategy": "steps"},
    "random": {"score": "random"},
    "longest": {"score": "longest"},
    "lowest MIWV": {"score": "low_miwv"},
    "highest one-shot loss": {"score": "one_shot_loss"},
}
BUDGETS = ("samples", "tokens")
MAY_DIFFER = ("output", "seeds")


@dataclass(frozen=True)
class Setting:
    """What all arms share: `samples` tokenised for the Trainer and, the same, as a `pool`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    samples: datasets.Dataset
    held_out: datasets.Dataset
    pool: Pool
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
    planned = list(runs(arguments.seeds))
    done = {(result.arm, result.budget, result.seed) for result in results}
    left = [run for run in planned if run not in done]
    print(
        f"Pool: {len(setting.pool)} samples, held out: {len(held_out)}, {limits(setting)}; {setting.steps} steps of up "
        f"to {arguments.batch_size} samples an arm; {len(left)} of {len(planned)} runs to go."
    )
    scored = score_pool(setting) if left else {}
    begun = time.perf_counter()
    for number, (arm, budget, seed) in enumerate(left, start=1):
        result = run(setting, scored, arm, budget, seed)
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
    print("\n" + text_tables(results))
    draw(results, output / "comparison.png")
    (output / "comparison.md").write_text(report(results, facts_of(setting)), encoding="utf-8")
    print(f"\n{output / 'comparison.md'}\n{output / 'comparison.png'}\n{time.perf_counter() - started:.0f} s")


def at_least(least: int) -> Callable[[str], int]:
    """For argparse: a whole number that is not smaller."""

    def number(typed: str) -> int:
        if not typed.isdecimal() or int(typed) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, but got {typed}")
        return int(typed)

    return number


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="hub name, folder, or folder with a GGUF file (default: SmolLM2-135M-Instruct)")
    add("--dataset", help="hub name or file (default: Python's documentation strings)")
    add("--output", default="comparison", help="folder to write to (default: %(default)s)")
    add("--fraction", type=float, default=0.1, help="share that is selected (default: %(default)s)")
    add(
        "--max-samples",
        type=at_least(0),
        default=240,
        help="of pool and held out together; 0: all (default: %(default)s)",
    )
    add("--held-out", type=at_least(1), default=40, help="samples, of a dataset of your own (default: %(default)s)")
    add("--longest", type=at_least(0), default=128, help="longest sample in tokens; 0: any (default: %(default)s)")
    add("--embedder", default="tfidf", help="what finds exemplars (default: %(default)s)")
    add("--epochs", type=float, default=3, help="over the selection, at equal samples (default: %(default)s)")
    add("--batch-size", type=at_least(1), default=8, help="samples a step (default: %(default)s)")
    add("--learning-rate", type=float, default=5e-4, help="(default: %(default)s)")
    add("--seeds", type=at_least(1), default=3, help="runs of each arm (default: %(default)s)")
    add(
        "--rescores",
        type=at_least(1),
        default=1,
        help='rounds after the first, "MIWV rescored" (default: %(default)s)',
    )
    add("--refine", action="store_true", help="score samples near the threshold again in float32, as `attach` does")
    add("--generations", type=at_least(0), default=16, help="held-out prompts to answer (default: %(default)s)")
    add("--max-new-tokens", type=at_least(1), default=48, help="of an answer (default: %(default)s)")
    return parser


def prepare(arguments: argparse.Namespace) -> Setting:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load_model(arguments.model or str(default_model()), "bfloat16")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows, held_out_rows = parts(arguments, tokenizer)
    samples, held_out = tokenize(rows, tokenizer), tokenize(held_out_rows, tokenizer)
    pool = pool_from_tokenized(samples, tokenizer)
    sampler = MIWVDataSampler(len(pool), MIWVConfig(fraction=arguments.fraction).fraction)
    steps = max(1, round(arguments.epochs * len(sampler) / arguments.batch_size))
    return Setting(model.to(device), tokenizer, samples, held_out, pool, steps, arguments)


def parts(
    arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The pool's rows and the held-out ones: of Python's documentation strings by module, of a user's own at random."""
    if arguments.dataset is None:
        return split_rows(None, tokenizer, arguments.max_samples, arguments.longest)
    rows = load_rows(arguments.dataset)
    kind = f"samples of at most {arguments.longest} tokens" if arguments.longest else "samples"
    if arguments.longest:
        lengths = pool_from_rows(rows, tokenizer).lengths
        rows = rows.select(np.flatnonzero(lengths <= arguments.longest))
    rows = rows.shuffle(seed=0)
    part = rows.select(range(min(arguments.max_samples or len(rows), len(rows))))
    if len(part) < arguments.held_out + 2:
        raise SystemExit(
            f"{arguments.dataset} has {len(rows)} {kind}, of which --max-samples {arguments.max_samples or 'all'} are "
            f"taken: {arguments.held_out} are held out, and a pool needs two more. Give a larger --longest or "
            "--max-samples, or a smaller --held-out."
        )
    return part.select(range(arguments.held_out, len(part))), part.select(range(arguments.held_out))


def limits(setting: Setting) -> str:
    """Which part of the dataset is compared on."""
    arguments = setting.arguments
    found = [f"none longer than {arguments.longest} tokens"] if arguments.longest else []
    found += [f"{arguments.max_samples} at most in all"] if arguments.max_samples else []
    return ", ".join(found) or "all that there are"


def runs(seeds: int) -> Iterator[tuple[str, str, int]]:
    """All runs, one seed after the other, so that what is there early says something of every arm."""
    yield UNTRAINED, "", 0
    for seed in range(seeds):
        yield "full set", "", seed
        for budget in BUDGETS:
            for arm in ARMS:
                if arm != "full set":
                    yield arm, budget, seed


def config_of(setting: Setting, arm: str, budget: str) -> MIWVConfig:
    arguments = setting.arguments
    chosen = {**ARMS[arm], "selection_budget": budget, "fraction": arguments.fraction, "embedder": arguments.embedder}
    if "rescore_strategy" in chosen:
        chosen["rescore_steps"] = math.ceil(setting.steps / (arguments.rescores + 1))
    return MIWVConfig(**chosen, refine_near_threshold=arguments.refine)


def score_pool(setting: Setting) -> dict[str, StoredRound]:
    """
    Round 0, by the untrained model, once for each budget: the arms select from its losses, and the arm that rescores
    reads it.
    """
    return {
        budget: score_and_select(
            setting.model, setting.pool, config_of(setting, "MIWV once", budget), scores_folder(setting, budget)
        )
        for budget in BUDGETS
    }


def scores_folder(setting: Setting, budget: str) -> Path:
    return setting.output / f"scores-equal-{budget}"


def run(setting: Setting, scored: dict[str, StoredRound], arm: str, budget: str, seed: int) -> Result:
    """One arm, trained and evaluated; the model is left as it was."""
    started = time.perf_counter()
    selection = np.arange(len(setting.pool))
    trained: Any = setting.model
    if arm not in (UNTRAINED, "full set"):
        config = replace(config_of(setting, arm, budget), sampler_seed=seed)
        selection = select_again(scored[budget], config).selection
    if arm != UNTRAINED:
        trained = train(setting, arm, budget, selection, seed)
    loss = held_out_loss(trained, setting.held_out, setting.tokenizer)
    asked = setting.held_out.select(range(min(setting.arguments.generations, len(setting.held_out))))
    written = {"exact_match": float("nan"), "rougeL": float("nan")}
    if len(asked):
        written = generation_scores(trained, asked, setting.tokenizer, setting.arguments.max_new_tokens)
    if trained is not setting.model:
        trained.unload()
    tokens = int(setting.pool.response_tokens[selection].sum())
    return Result(
        arm=arm,
        budget=budget,
        seed=seed,
        samples=len(selection),
        tokens=tokens,
        epochs=times_seen(len(selection), setting.steps, setting.arguments.batch_size),
        loss=loss,
        exact_match=written["exact_match"],
        rouge_l=written["rougeL"],
        seconds=time.perf_counter() - started,
    )


def times_seen(count: int, steps: int, batch_size: int) -> float:
    """How often each of `count` samples is trained on: the Trainer ends an epoch with what is left, a smaller batch."""
    whole, rest = divmod(steps, math.ceil(count / batch_size))
    return whole + rest * batch_size / count


def train(setting: Setting, arm: str, budget: str, selection: np.ndarray, seed: int) -> PeftModel:
    arguments = setting.arguments
    folder = setting.output / "trained" / f"{arm.replace(' ', '-')}-equal-{budget}-seed-{seed}"
    rescores = "rescore_strategy" in ARMS[arm]
    if rescores:  # round 0 is the same for all seeds
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(scores_folder(setting, budget), folder)
    trainer = adapter_trainer(
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
        attach(trainer, config_of(setting, arm, budget))
    trainer.train()
    return trainer.model


def facts_of(setting: Setting) -> dict[str, str]:
    """What the page says of a comparison besides its numbers."""
    arguments, pool = setting.arguments, setting.pool
    name = Path(arguments.dataset).name if arguments.dataset else "Python's documentation strings"
    parser = make_parser()
    typed = {name: value for name, value in vars(arguments).items() if value != parser.get_default(name)}
    options = [f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in typed.items()]
    return {
        "model": Path(arguments.model or default_model()).name,
        "pool": f"{name}: {len(pool)} samples with {pool.response_tokens.sum():,} response tokens, "
        f"{len(setting.held_out)} held out, {limits(setting)}",
        "steps": f"{setting.steps} steps of up to {arguments.batch_size} samples",
        "late": str(setting.steps - last_change(setting)),
        "command": " ".join(["python examples/compare.py", *options]),
    }


def last_change(setting: Setting) -> int:
    """The step from which on "MIWV rescored" trains on its last selection."""
    latest = [read_rounds(folder)[-1] for folder in setting.output.glob("trained/MIWV-rescored-*")]
    return max((last.summary["takes_effect"]["global_step"] for last in latest if last.number), default=setting.steps)


if __name__ == "__main__":
    main()
