"""How much of a full rescore's selection does a partial one find? The curve over `rescore_budget`.

    python -m benchmarks.rescoring --pool alpaca_gpt4_1k.jsonl.gz --output out/rescoring

Trains on the selection and scores the whole pool again between epochs. The curve is computed from these rounds: a round
with a budget would have measured the same losses for the samples that it scores, and would have kept the earlier losses
of all others. The later rounds of a budget continue from its own losses. Tokens are those of the trees, trunks that are
context only included.
"""

import argparse
import datetime
import logging

import datasets
import numpy as np
import torch
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks.cases import make_parser, read_model, read_pool
from benchmarks.measure import describe_machine
from miwv_trainer import MIWVConfig, attach, tokenize
from miwv_trainer.data.build import pool_from_tokenized
from miwv_trainer.data.pool import Pool
from miwv_trainer.rounds.inputs import read_measured
from miwv_trainer.scoring.memory import ROW_WITHOUT_MASK
from miwv_trainer.scoring.rows import find_scorable, restrict_exemplars
from miwv_trainer.scoring.trees import count_row_tokens, plan_trees
from miwv_trainer.selection.choose import Choice, choose, compute_overlap
from miwv_trainer.selection.measured import Measured
from miwv_trainer.selection.rescoring import choose_samples_to_score, update_ages
from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import StoredRound

BUDGETS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("miwv_trainer").setLevel(logging.INFO)
    set_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = read_model(arguments.model, None, "float32", device)
    rows = read_pool(arguments.pool).shuffle(seed=0)
    rows = tokenize(rows.select(range(arguments.skip, min(len(rows), arguments.skip + arguments.samples))), tokenizer)
    pool = pool_from_tokenized(rows, tokenizer)
    store = Store(arguments.output)
    if len(store.list_rounds()) < arguments.rounds:
        train(model, tokenizer, rows, arguments)
    rounds = [store.read_round(number) for number in range(arguments.rounds)]
    context = model.config.max_position_embeddings
    print(f"\n{describe_machine(device)}, {datetime.date.today().isoformat()}")
    print(f"{len(pool)} samples, {arguments.fraction:.0%}\n")
    print(format_curve(rounds, pool, context, arguments.fraction))


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--samples", type=int, default=5000, help="at most so many (default: %(default)s)")
    parser.add_argument(
        "--skip",
        type=int,
        default=120,
        help="first samples of the shuffled pool that are left out (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=2, help="as many epochs are trained (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-5, help="(default: %(default)s)")
    return parser.parse_args()


def train(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset, arguments: argparse.Namespace
) -> None:
    """Trains with a full rescore after each epoch; the rounds go to the output folder."""
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=arguments.output,
            num_train_epochs=arguments.rounds,
            per_device_train_batch_size=8,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="constant",
            bf16=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            seed=0,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    config = MIWVConfig(
        fraction=arguments.fraction,
        embedder=arguments.embedder,
        rescore_strategy="epoch",
        refine_near_threshold=False,
    )
    attach(trainer, config)
    trainer.train()


def format_curve(rounds: list[StoredRound], pool: Pool, context: int, fraction: float) -> str:
    """One line per budget: for each later round, its overlap with the full round's selection, and its tokens."""
    exemplars = rounds[0].column("exemplar")
    is_scorable = find_scorable(pool, exemplars, context)
    all_tokens = count_tokens(pool, exemplars, context, np.ones(len(pool), dtype=bool))
    full = [choose_samples(read_measured(stored), pool, fraction).selection for stored in rounds]
    later = range(1, len(rounds))
    lines = [
        "| rescore_budget | " + " | ".join(f"round {number}: overlap | tokens" for number in later) + " |",
        "|---:|" + "---:|---:|" * len(later),
    ]
    kept = [compute_overlap(full[number], rounds[0].selection) for number in later]
    lines.append("| none (round 0 kept) | " + " | ".join(f"{share:.0%} | 0 %" for share in kept) + " |")
    for budget in BUDGETS:
        cells = []
        measured, ages = read_measured(rounds[0]), update_ages(is_scorable, None)
        for number in later:
            ranked = choose_samples(measured, pool, fraction).ranked
            is_scored = choose_samples_to_score(ranked, ages, is_scorable, budget, (0, number))
            now = read_measured(rounds[number])
            measured = measured.replace_losses(is_scored, now.zero_shot_loss, now.one_shot_loss)
            ages = update_ages(is_scored, ages)
            share = compute_overlap(full[number], choose_samples(measured, pool, fraction).selection)
            cells += [f"{share:.0%}", f"{count_tokens(pool, exemplars, context, is_scored) / all_tokens:.0%}"]
        lines.append(f"| {budget:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def choose_samples(measured: Measured, pool: Pool, fraction: float) -> Choice:
    return choose(measured, pool.has_prompt_and_response, MIWVConfig(fraction=fraction))


def count_tokens(pool: Pool, exemplars: np.ndarray, context: int, is_scored: np.ndarray) -> int:
    """Tokens that trees of these samples forward."""
    rows = plan_trees(pool, restrict_exemplars(is_scored, exemplars), context, ROW_WITHOUT_MASK)
    return sum(count_row_tokens(row, pool) for row in rows)


if __name__ == "__main__":
    main()
