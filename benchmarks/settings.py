"""Which score and which guards beat random draws? Trains on each selection and compares held-out response loss.

    python -m benchmarks.settings --pool alpaca_gpt4_1k.jsonl.gz --output out/alpaca
    python -m benchmarks.settings --pool cherry_alpaca_3k.jsonl.gz --output out/cherry

The untrained model scores the pool once. Each arm selects from these scores, trains its own LoRA adapter with the plain
Trainer and is evaluated on the same held-out samples. Each arm runs with several seeds: of the adapter, of the order
and, if it draws at random, of the draw. Results are kept in OUTPUT/results.jsonl; a run whose result is there is not
repeated.
"""

import argparse
import datetime
import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import datasets
import numpy as np
import torch
from adapter import make_adapter_trainer
from held_out import measure_held_out_loss
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.cases import make_parser, read_model, read_pool
from benchmarks.measure import describe_machine
from miwv_trainer import MIWVConfig, tokenize
from miwv_trainer.data.build import pool_from_rows, pool_from_tokenized
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.rounds.exemplars import find_exemplars
from miwv_trainer.rounds.identity import TrainingPoint
from miwv_trainer.rounds.inputs import read_measured
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.selection.choose import choose
from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import StoredRound

UNTRAINED = "untrained"
BUDGETS = ("samples", "tokens")
LONG: dict[str, Any] = {"min_response_tokens": 20}
ARMS: dict[str, dict[str, Any]] = {
    "random": {"score": "random"},
    "longest": {"score": "longest"},
    "MIWV": {"preset": "paper"},
    "MIWV, 20 tokens or more": LONG,
    "MIWV, losses to 0.85": {"loss_band": [0.0, 0.85]},
    "MIWV, losses to 0.7": {"loss_band": [0.0, 0.7]},
    "MIWV, 20 or more, losses to 0.7": {**LONG, "loss_band": [0.0, 0.7]},
    "MIWV, 20 or more, losses to 0.7, 5 length bands": {**LONG, "loss_band": [0.0, 0.7], "length_bands": 5},
    "residual MIWV, 20 or more": {"score": "residual_miwv", **LONG},
    "lowest MIWV": {"score": "low_miwv"},
    "one-shot loss": {"score": "one_shot_loss"},
}


class Result(TypedDict):
    """One run, as a line of results.jsonl."""

    arm: str
    budget: str
    seed: int
    samples: int
    tokens: int
    loss: float


def main() -> None:
    arguments = parse_arguments()
    logging.getLogger("miwv_trainer").setLevel(logging.ERROR)
    output = Path(arguments.output)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = read_model(arguments.model, None, "bfloat16", device)
    count = arguments.samples + arguments.held_out
    rows = take_short_rows(read_pool(arguments.pool), tokenizer, arguments.longest, count)
    held_out = tokenize(rows.select(range(arguments.held_out)), tokenizer)
    pool_rows = tokenize(rows.select(range(arguments.held_out, len(rows))), tokenizer)
    pool = pool_from_tokenized(pool_rows, tokenizer)
    scored = score_once(model, pool, arguments, Store(output))
    path = output / "results.jsonl"
    done = {(result["arm"], result["budget"], result["seed"]) for result in read_results(path)}
    for arm, budget, seed in list_runs(arguments):
        if (arm, budget, seed) in done:
            continue
        selection = np.empty(0, dtype=np.int64)
        trained: PreTrainedModel | PeftModel = model
        if arm != UNTRAINED:
            selection = select(scored, pool, arm, budget, seed, arguments.fraction)
            trained = train(model, tokenizer, pool_rows.select(selection), seed, arguments)
        result: Result = {
            "arm": arm,
            "budget": budget,
            "seed": seed,
            "samples": len(selection),
            "tokens": int(pool.response_tokens[selection].sum()),
            "loss": measure_held_out_loss(trained, held_out, tokenizer),
        }
        if isinstance(trained, PeftModel):
            model = trained.unload()
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)
    print(f"\n{describe_machine(device)}, {datetime.date.today().isoformat()}")
    print(f"{len(pool)} samples, {len(held_out)} held out\n")
    for budget in BUDGETS:
        print(format_table(list(read_results(path)), budget) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--samples", type=int, default=480, help="of the pool (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=80, help="samples (default: %(default)s)")
    parser.add_argument("--longest", type=int, default=200, help="most tokens of a sample (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="(default: all)")
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=BUDGETS, help="(default: both)")
    return parser.parse_args()


def take_short_rows(
    rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, longest: int, count: int
) -> datasets.Dataset:
    """`count` rows of at most `longest` tokens, shuffled with a fixed seed."""
    lengths = pool_from_rows(rows, tokenizer).lengths
    return rows.select(np.flatnonzero(lengths <= longest)).shuffle(seed=0).select(range(count))


def score_once(model: PreTrainedModel, pool: Pool, arguments: argparse.Namespace, store: Store) -> StoredRound:
    config = MIWVConfig(embedder=arguments.embedder, fraction=arguments.fraction, refine_near_threshold=False)
    world = World(0, 1, model.device)
    scorer = prepare_scorer(model, pool, config, world)
    exemplars = find_exemplars(scorer, store, reuse=True)
    return run_round(scorer, exemplars, store, TrainingPoint())


def list_runs(arguments: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """All runs, seed by seed: a benchmark that is stopped early then has results of every arm."""
    yield UNTRAINED, "samples", 0
    for seed in range(arguments.seeds):
        for budget in arguments.budgets:
            for arm in arguments.arms:
                yield arm, budget, seed


def select(scored: StoredRound, pool: Pool, arm: str, budget: str, seed: int, fraction: float) -> np.ndarray:
    config = MIWVConfig(fraction=fraction, **{**ARMS[arm], "selection_budget": budget})
    embeddings = Store(scored.folder.parents[1]).read_embeddings({}) if config.needs_embeddings else None
    measured = read_measured(scored, (seed, 0))
    return choose(measured, pool.has_prompt_and_response, config, None, embeddings).selection


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    selected: datasets.Dataset,
    seed: int,
    arguments: argparse.Namespace,
) -> PeftModel:
    trainer = make_adapter_trainer(
        model,
        tokenizer,
        selected,
        Path(arguments.output) / "trainer",
        seed,
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=8,
        learning_rate=arguments.learning_rate,
    )
    trainer.train()
    return trainer.model


def read_results(path: Path) -> Iterator[Result]:
    if path.is_file():
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def format_table(results: list[Result], budget: str) -> str:
    """
    A line for each arm, lowest held-out loss first.

    It gives the mean loss over the seeds, its standard error, and whether the loss differs from that of random draws by
    more than two standard errors of the difference.
    """
    losses: dict[str, list[float]] = defaultdict(list)
    sizes: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for result in results:
        if result["budget"] == budget and result["arm"] != UNTRAINED:
            losses[result["arm"]].append(result["loss"])
            sizes[result["arm"]].append((result["samples"], result["tokens"]))
    untrained = next((result["loss"] for result in results if result["arm"] == UNTRAINED), float("nan"))
    rows = [
        f"Equal numbers of {budget}; untrained {untrained:.4f}:\n",
        "| selection | samples | response tokens | held-out loss | standard error | against random |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for arm in sorted(losses, key=lambda arm: float(np.mean(losses[arm]))):
        samples, tokens = np.mean(sizes[arm], axis=0)
        mean, error = np.mean(losses[arm]), compute_standard_error(losses[arm])
        verdict = compare_with_random(losses[arm], losses["random"]) if "random" in losses and arm != "random" else ""
        rows.append(f"| {arm} | {samples:.0f} | {tokens:.0f} | {mean:.4f} | {error:.4f} | {verdict} |")
    return "\n".join(rows)


def compute_standard_error(values: list[float]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def compare_with_random(ours: list[float], random: list[float]) -> str:
    difference = np.mean(ours) - np.mean(random)
    error = np.hypot(compute_standard_error(ours), compute_standard_error(random))
    verdict = "better" if difference < -2 * error else "worse" if difference > 2 * error else "no difference shown"
    return f"{difference:+.4f} ({verdict})"


if __name__ == "__main__":
    main()
