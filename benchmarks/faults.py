"""How many planted faults does a selection contain, with and without each guard?

    python -m benchmarks.faults --pool alpaca_gpt4_1k.jsonl.gz --output out/faults

Three kinds of faults are planted, each in 5 % of the pool's samples: responses swapped with each other, copies of other
samples, and responses of one word. The pool is scored once; then samples are selected by many settings.
"""

import argparse
import datetime
import logging
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch

from benchmarks.cases import make_parser, read_model, read_pool
from benchmarks.measure import describe_machine
from benchmarks.settings import score_once, take_short_rows
from miwv_trainer import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.pool import Pool
from miwv_trainer.rounds.inputs import read_measured
from miwv_trainer.selection.choose import choose
from miwv_trainer.selection.scores import get_score
from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import StoredRound

SHARE = 0.05
WORDS = ("Yes", "No", "Apple", "Blue", "Four")
SETTINGS: dict[str, dict[str, Any]] = {
    "plain MIWV": {},
    "min_response_tokens=20": {"min_response_tokens": 20},
    "quantile_band=[0, 0.95]": {"quantile_band": [0.0, 0.95]},
    "quantile_band=[0, 0.9]": {"quantile_band": [0.0, 0.9]},
    "loss_band=[0, 0.8]": {"loss_band": [0.0, 0.8]},
    "loss_band=[0, 0.7]": {"loss_band": [0.0, 0.7]},
    "loss_band=[0, 0.6]": {"loss_band": [0.0, 0.6]},
    "min_similarity=0.5": {"min_similarity": 0.5},
    "max_selected_similarity=0.9": {"max_selected_similarity": 0.9},
    "length_bands=5": {"length_bands": 5},
    'diversity="facility_location"': {"diversity": "facility_location"},
    'diversity="mmr"': {"diversity": "mmr"},
    'score="residual_miwv"': {"score": "residual_miwv"},
    'score="low_miwv"': {"score": "low_miwv"},
    'score="one_shot_loss"': {"score": "one_shot_loss"},
    'score="zero_shot_loss"': {"score": "zero_shot_loss"},
    'score="random" (mean of 100 draws)': {"score": "random"},
    'preset="guarded"': {"preset": "guarded"},
}


@dataclass(frozen=True)
class Faults:
    """
    Rows with planted faults.

    Args:
        by_kind: For each kind of fault, the indices of the rows that have it.
        originals: The rows that the copies are copies of, in the same order.
    """

    by_kind: dict[str, np.ndarray]
    originals: np.ndarray

    def count(self, kind: str, selection: np.ndarray) -> int:
        """Selected rows with this fault. A copy counts only where its original is selected too."""
        is_selected = np.isin(self.by_kind[kind], selection)
        if kind == "copies":
            is_selected &= np.isin(self.originals, selection)
        return int(is_selected.sum())


def main() -> None:
    arguments = parse_arguments()
    logging.getLogger("miwv_trainer").setLevel(logging.ERROR)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = read_model(arguments.model, None, "bfloat16", device)
    rows = take_short_rows(read_pool(arguments.pool), tokenizer, arguments.longest, arguments.samples)
    rows, faults = plant_faults(rows)
    pool = pool_from_rows(rows, tokenizer)
    store = Store(arguments.output)
    scored = score_once(model, pool, arguments, store)
    print(f"\n{describe_machine(device)}, {datetime.date.today().isoformat()}")
    print(f"{len(pool)} samples, {arguments.fraction:.0%}\n")
    print(format_table(scored, pool, faults, arguments.fraction, store))


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--samples", type=int, default=600, help="of the pool (default: %(default)s)")
    parser.add_argument("--longest", type=int, default=200, help="most tokens of a sample (default: %(default)s)")
    return parser.parse_args()


def plant_faults(rows: datasets.Dataset) -> tuple[datasets.Dataset, Faults]:
    count = round(SHARE * len(rows))
    order = np.random.default_rng(0).permutation(len(rows))
    swapped, copied, short, originals = np.split(order[: 4 * count], 4)
    changed = [dict(row) for row in rows]
    outputs = [changed[index]["output"] for index in swapped]
    for index, output in zip(swapped, np.roll(outputs, 1).tolist(), strict=True):
        changed[index]["output"] = output
    for index, original in zip(copied, originals, strict=True):
        changed[index] = dict(changed[original])
    for number, index in enumerate(short):
        changed[index]["output"] = WORDS[number % len(WORDS)]
    faults = Faults({"swapped": swapped, "copies": copied, "one word": short}, originals)
    return datasets.Dataset.from_list(changed), faults


def format_table(scored: StoredRound, pool: Pool, faults: Faults, fraction: float, store: Store) -> str:
    """One line for each setting: how many faults of each kind are selected."""
    kinds = faults.by_kind
    lines = [
        f"| selection | samples | {' | '.join(kinds)} | mean response tokens |",
        f"|---|---:|{'---:|' * len(kinds)}---:|",
    ]
    embeddings = store.read_embeddings({})
    for name, values in SETTINGS.items():
        config = MIWVConfig(**{**values, "fraction": fraction})
        draws = 100 if get_score(config).is_random else 1
        selections = [
            choose(read_measured(scored, (draw,)), pool.has_prompt_and_response, config, None, embeddings).selection
            for draw in range(draws)
        ]
        counts = [f"{np.mean([faults.count(kind, selection) for selection in selections]):.3g}" for kind in kinds]
        tokens = np.mean([pool.response_tokens[selection].mean() for selection in selections])
        lines.append(f"| {name} | {len(selections[0])} | {' | '.join(counts)} | {tokens:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
