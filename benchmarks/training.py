"""What the sampler and the callback cost a training step: pairs of runs, with and without them, in alternating order.

    python -m benchmarks.training
    python -m benchmarks.training --pairs 15 --steps 30 --hidden 256

Both train on the same samples (`fraction=1.0`) with the same model. A run's time is measured from the end of its first
step to the end of its last, without the round before training, which benchmarks.scoring measures. The output is the
median ratio of the two times of a pair and its 95 % interval by bootstrap over the pairs.
"""

import argparse
import datetime
import logging
import tempfile
import time
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from benchmarks.measure import describe_machine
from miwv_trainer import attach

BATCH, LENGTH, PROMPT, VOCABULARY = 8, 64, 24, 512
RESAMPLES = 10_000


class Clock(TrainerCallback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    arguments = parse_arguments()
    logging.getLogger("miwv_trainer").setLevel(logging.ERROR)
    pool = make_random_pool(BATCH * arguments.steps)
    time_steps(pool, arguments, is_attached=False)  # warm-up: the first run of a process is slower
    pairs = []
    for number in range(arguments.pairs):
        # Alternating, so that a slow drift of the machine favours neither.
        order = (False, True) if number % 2 == 0 else (True, False)
        seconds = {is_attached: time_steps(pool, arguments, is_attached) for is_attached in order}
        pairs.append((seconds[False], seconds[True]))
        print(f"{number + 1}/{arguments.pairs} {seconds[False] * 1e3:.2f} ms, {seconds[True] * 1e3:.2f} ms", flush=True)
    plain, attached = np.asarray(pairs).T
    low, high = estimate_interval(attached / plain)
    print(f"\n{describe_machine(torch.device('cpu'))}, {datetime.date.today().isoformat()}")
    print(f"step of the plain Trainer: {np.median(plain) * 1e3:.2f} ms (median of {len(pairs)} runs)")
    print(f"with sampler and callback: {np.median(attached / plain):.4f} times (95 % interval {low:.4f} to {high:.4f})")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="of each run (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=256, help="hidden size of the model (default: %(default)s)")
    return parser.parse_args()


def make_random_pool(count: int) -> Dataset:
    """Samples of one length, so that every step takes the same work."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (count, LENGTH))
    labels = np.where(np.arange(LENGTH) < PROMPT, -100, ids)
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def time_steps(pool: Dataset, arguments: argparse.Namespace, is_attached: bool) -> float:
    """Mean seconds of a step of one run."""
    set_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=arguments.hidden,
        intermediate_size=4 * arguments.hidden,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=4 * LENGTH,
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=AutoModelForCausalLM.from_config(shape),
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=BATCH,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=pool,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        if is_attached:
            embeddings = np.random.default_rng(1).standard_normal((len(pool), 8), dtype=np.float32)
            attach(trainer, {"fraction": 1.0, "embedder": embeddings})
        trainer.train()
    return (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1)


def estimate_interval(ratios: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the median, by bootstrap."""
    drawn = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
