"""How many planted faults does a selection hold, with and without each guard?

    python -m benchmarks.faults --pool alpaca_gpt4_1k.jsonl.gz --output out/faults

Of the pool's samples 5 % have their responses swapped among each other, 5 % are copies of others, and 5 % have a
response of one word. The pool is scored once and selected from in many ways.
"""

import argparse
import datetime
import logging
from typing import Any

import datasets
import numpy as np
import torch

from benchmarks.cases import parser_of, read_model, read_pool
from benchmarks.measure import machine
from benchmarks.settings import score_once, short_rows
from miwv_trainer import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.pool import Pool
from miwv_trainer.rounds.inputs import measured_of
from miwv_trainer.selection.choose import choose
from miwv_trainer.selection.scores import get_score
from miwv_trainer.storage.store import Store, StoredRound

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


def main() -> None:
    arguments = parse_arguments()
    logging.getLogger("miwv_trainer").setLevel(logging.ERROR)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = read_model(arguments.model, None, "bfloat16", device)
    rows = short_rows(read_pool(arguments.pool), tokenizer, arguments.longest, arguments.samples)
    rows, faults, originals = plant(rows)
    pool = pool_from_rows(rows, tokenizer)
    store = Store(arguments.output)
    scored = score_once(model, pool, arguments, store)
    print(f"\n{machine(device)}, {datetime.date.today().isoformat()}; {len(pool)} samples, {arguments.fraction:.0%}\n")
    print(table(scored, pool, faults, originals, arguments.fraction, store))


def parse_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--samples", type=int, default=600, help="of the pool (default: %(default)s)")
    parser.add_argument("--longest", type=int, default=200, help="tokens of a sample (default: %(default)s)")
    return parser.parse_args()


def plant(rows: datasets.Dataset) -> tuple[datasets.Dataset, dict[str, np.ndarray], np.ndarray]:
    """The rows with faults, for each kind of fault which rows have it, and what the copies are copies of."""
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
    return datasets.Dataset.from_list(changed), {"swapped": swapped, "copies": copied, "one word": short}, originals


def table(
    scored: StoredRound,
    pool: Pool,
    faults: dict[str, np.ndarray],
    originals: np.ndarray,
    fraction: float,
    store: Store,
) -> str:
    """How many of each kind are selected; a copy counts where what it is a copy of is selected too."""

    def count(kind: str, chosen: np.ndarray) -> int:
        found = np.isin(faults[kind], chosen)
        return int((found & np.isin(originals, chosen) if kind == "copies" else found).sum())

    lines = [
        f"| selection | samples | {' | '.join(faults)} | mean response tokens |",
        f"|---|---:|{'---:|' * len(faults)}---:|",
    ]
    embeddings = store.read_embeddings({})
    for name, values in SETTINGS.items():
        config = MIWVConfig(**{**values, "fraction": fraction})
        draws = 100 if get_score(config).is_random else 1
        choices = [
            choose(measured_of(scored, (draw,)), pool.has_prompt_and_response, config, None, embeddings).selection
            for draw in range(draws)
        ]
        counts = [f"{np.mean([count(kind, chosen) for chosen in choices]):.3g}" for kind in faults]
        tokens = np.mean([pool.response_tokens[chosen].mean() for chosen in choices])
        lines.append(f"| {name} | {len(choices[0])} | {' | '.join(counts)} | {tokens:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
