"""How much of a full rescore does a part of the budget find? The curve over `rescore_budget`.

    python -m benchmarks.rescoring --pool alpaca_gpt4_1k.jsonl.gz --output out/rescoring

Trains on the selection and scores the whole pool again between epochs. From these rounds the curve is computed: a
round with a budget would have had the same losses for what it scores, and the scores of before for the rest. Every
budget's later rounds go on from its own scores. Tokens are those of the trees, trunks that are context only included.
"""

import argparse
import datetime
import logging

import numpy as np
import torch
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

from benchmarks.cases import parser_of, read_model, read_pool
from benchmarks.measure import machine
from miwv_trainer import MIWVConfig, attach, tokenize
from miwv_trainer.data.build import pool_from_tokenized
from miwv_trainer.data.pool import Pool
from miwv_trainer.rounds.inputs import measured_of
from miwv_trainer.scoring.memory import ROW_WITHOUT_MASK
from miwv_trainer.scoring.rows import exemplars_of, scorable
from miwv_trainer.scoring.trees import plan_trees, row_tokens
from miwv_trainer.selection.choose import Choice, choose, compute_overlap
from miwv_trainer.selection.rescoring import choose_samples_to_score, update_ages
from miwv_trainer.selection.scores import Measured
from miwv_trainer.storage.store import Store, StoredRound

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
    if len(store.rounds()) < arguments.rounds:
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
    rounds = [store.read_round(number) for number in range(arguments.rounds)]
    context = model.config.max_position_embeddings
    print(f"\n{machine(device)}, {datetime.date.today().isoformat()}; {len(pool)} samples, {arguments.fraction:.0%}\n")
    print(curve(rounds, pool, context, arguments.fraction))


def parse_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--samples", type=int, default=5000, help="at most so many (default: %(default)s)")
    parser.add_argument("--skip", type=int, default=120, help="of the shuffled pool (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-5, help="(default: %(default)s)")
    return parser.parse_args()


def curve(rounds: list[StoredRound], pool: Pool, context: int, fraction: float) -> str:
    """One line a budget: of each later round, what it shares with the full one's selection and of its tokens."""
    exemplars = rounds[0].column("exemplar")
    full = forwarded(pool, exemplars, context, np.ones(len(pool), dtype=bool))
    later = range(1, len(rounds))
    lines = [
        "| rescore_budget | " + " | ".join(f"round {number}: overlap | tokens" for number in later) + " |",
        "|---:|" + "---:|---:|" * len(later),
    ]
    nothing = [compute_overlap(choice_of(each, pool, fraction).selection, rounds[0].selection) for each in rounds[1:]]
    lines.append("| none (round 0 kept) | " + " | ".join(f"{share:.0%} | 0 %" for share in nothing) + " |")
    for budget in BUDGETS:
        cells = []
        known, ages = measured_of(rounds[0]), update_ages(scorable(pool, exemplars, context), None)
        for number in later:
            ranked = chosen(known, pool, fraction).ranked
            is_scored = choose_samples_to_score(ranked, ages, scorable(pool, exemplars, context), budget, (0, number))
            now = measured_of(rounds[number])
            known = known.replace_losses(is_scored, now.zero_shot_loss, now.one_shot_loss)
            ages = update_ages(is_scored, ages)
            share = compute_overlap(
                choice_of(rounds[number], pool, fraction).selection, chosen(known, pool, fraction).selection
            )
            cells += [f"{share:.0%}", f"{forwarded(pool, exemplars, context, is_scored) / full:.0%}"]
        lines.append(f"| {budget:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def choice_of(scored: StoredRound, pool: Pool, fraction: float) -> Choice:
    return chosen(measured_of(scored), pool, fraction)


def chosen(measured: Measured, pool: Pool, fraction: float) -> Choice:
    return choose(measured, pool.has_prompt_and_response, MIWVConfig(fraction=fraction))


def forwarded(pool: Pool, exemplars: np.ndarray, context: int, is_scored: np.ndarray) -> int:
    rows = plan_trees(pool, exemplars_of(is_scored, exemplars), context, ROW_WITHOUT_MASK)
    return sum(row_tokens(row, pool) for row in rows)


if __name__ == "__main__":
    main()
