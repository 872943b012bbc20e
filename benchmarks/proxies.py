"""How well do smaller and other models rank a pool for the model that is trained, and what do they cost?

    OMP_NUM_THREADS=1 nice -n 19 python -m benchmarks.proxies --output out/proxies

The model scores a pool, and so do proxies that are made of it: its first layers with its head, the same after a short
distillation, and a copy that was fine-tuned. The last two are trained on samples outside of the pool. The table
compares each proxy's MIWV with the model's: rank correlation, shared part of the selection, and price.

OUTPUT/results.jsonl keeps what is measured; a proxy whose result is there is not measured again.
"""

import argparse
import copy
import datetime
import gc
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import datasets
import numpy as np
import torch
from torch import nn
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
from benchmarks.settings import take_short_rows
from miwv_trainer import MIWVConfig, tokenize
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.files import Rows
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.rounds.exemplars import find_exemplars
from miwv_trainer.rounds.round import run_round
from miwv_trainer.rounds.statistics import compute_rank_correlation
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.selection.budget import count_selected
from miwv_trainer.selection.choose import compute_overlap
from miwv_trainer.storage.store import Store

FULL = "the model itself"
FRACTIONS = (0.05, 0.25)


class Result(TypedDict):
    """One scorer, as a line of results.jsonl: what it forwarded, what that took, and every sample's losses."""

    scorer: str
    layers: int
    tokens: int
    cpu_seconds: float
    training_cpu_seconds: float
    zero_shot: list[float]
    one_shot: list[float]


def main() -> None:
    arguments = parse_arguments()
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    set_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = read_model(arguments.model, None, "float32", device)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    count = arguments.samples + arguments.distil + arguments.train
    rows = take_short_rows(read_pool(arguments.pool), tokenizer, arguments.longest, count)
    pool = pool_from_rows(rows.select(range(arguments.samples)), tokenizer)
    path = output / "results.jsonl"
    for name, make in list_scorers(model, tokenizer, rows, arguments):
        if name in {result["scorer"] for result in read_results(path)}:
            continue
        started = time.process_time()
        scorer = make()
        trained = time.process_time() - started
        result = score(name, scorer, pool, trained, arguments)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(f"{name}: {result['tokens']} tokens, {result['cpu_seconds']:.0f} s", flush=True)
        del scorer
        gc.collect()
    print(f"\n{describe_machine(device)}, {torch.get_num_threads()} threads, {datetime.date.today().isoformat()}")
    print(f"{len(pool)} samples of at most {arguments.longest} tokens, float32\n")
    print(format_table(list(read_results(path))))


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--samples", type=int, default=240, help="of the pool (default: %(default)s)")
    parser.add_argument("--longest", type=int, default=256, help="most tokens of a sample (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=10, help="that a proxy keeps (default: %(default)s)")
    parser.add_argument("--distil", type=int, default=240, help="samples of the distillation (default: %(default)s)")
    parser.add_argument("--train", type=int, default=160, help="samples that the copy trains (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="samples of a training step (default: %(default)s)")
    return parser.parse_args()


def list_scorers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, arguments: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], PreTrainedModel]]]:
    """All scorers by name, each with what makes it. Samples that a proxy trains follow those of the pool."""
    pool_end = arguments.samples
    distil_end = pool_end + arguments.distil

    def take(start: int, end: int) -> datasets.Dataset:
        return tokenize(rows.select(range(start, end)), tokenizer)

    def distil_layers() -> PreTrainedModel:
        student = keep_layers(model, arguments.layers)
        return train(student, take(pool_end, distil_end), tokenizer, arguments, teacher=model)

    def train_copy() -> PreTrainedModel:
        return train(copy.deepcopy(model), take(distil_end, distil_end + arguments.train), tokenizer, arguments)

    first = f"its first {arguments.layers} layers"
    yield FULL, lambda: model
    yield first, lambda: keep_layers(model, arguments.layers)
    yield f"{first}, distilled on {arguments.distil} samples", distil_layers
    yield f"a copy fine-tuned on {arguments.train} samples", train_copy


def keep_layers(model: PreTrainedModel, count: int) -> PreTrainedModel:
    """A copy with the first `count` layers, the embeddings, the last norm and the head."""
    smaller = copy.deepcopy(model)
    layers = smaller.base_model.layers
    smaller.base_model.layers = nn.ModuleList(layers[:count])
    smaller.config.num_hidden_layers = count
    return smaller


class Distiller(Trainer):
    """Trains a student towards a teacher's distribution of the next token, at every token of a sample."""

    teacher: PreTrainedModel

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **_: object
    ) -> Any:
        """Mean Kullback-Leibler divergence of the student from the teacher, in nats a token."""
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            wanted = self.teacher(**given).logits
        outputs = model(**given)
        is_token = given["attention_mask"].bool()
        ours, theirs = (logits[is_token].log_softmax(-1) for logits in (outputs.logits, wanted))
        loss = nn.functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")
        return (loss, outputs) if return_outputs else loss


def train(
    model: PreTrainedModel,
    samples: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    arguments: argparse.Namespace,
    teacher: PreTrainedModel | None = None,
) -> PreTrainedModel:
    """The model after one epoch: fine-tuned on the responses, or distilled from a teacher."""
    settings = TrainingArguments(
        output_dir=str(Path(arguments.output) / "trainer"),
        num_train_epochs=1,
        per_device_train_batch_size=arguments.batch,
        learning_rate=1e-4 if teacher is None else 5e-4,
        lr_scheduler_type="linear",
        warmup_steps=5,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=0,
    )
    kind = Trainer if teacher is None else Distiller
    trainer = kind(
        model=model,
        args=settings,
        train_dataset=samples,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    if isinstance(trainer, Distiller):
        trainer.teacher = teacher
    trainer.train()
    return model.eval()


def score(
    name: str, model: PreTrainedModel, pool: Pool, training_cpu_seconds: float, arguments: argparse.Namespace
) -> Result:
    """Scores the pool in a folder of its own, as `miwv score` does, and counts the CPU seconds of the pass."""
    folder = Path(arguments.output) / "scores"
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed: its seconds are not known
    scorer = prepare_scorer(model, pool, MIWVConfig(embedder=arguments.embedder), World(0, 1, model.device))
    store = Store(folder)
    exemplars = find_exemplars(scorer, store, reuse=False)
    started = time.process_time()
    finished = run_round(scorer, exemplars, store)
    return Result(
        scorer=name,
        layers=model.config.num_hidden_layers,
        tokens=finished.summary["tokens_forwarded"],
        cpu_seconds=time.process_time() - started,
        training_cpu_seconds=training_cpu_seconds,
        zero_shot=finished.column("zero_shot_loss").tolist(),
        one_shot=finished.column("one_shot_loss").tolist(),
    )


def read_results(path: Path) -> Iterator[Result]:
    if path.is_file():
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def format_table(results: list[Result]) -> str:
    """A line for each scorer: how far its MIWV agrees with the model's, and its price beside the model's."""
    full = results[0]
    lines = [
        "| scorer | mean zero-shot loss | Spearman of MIWV | of zero-shot losses | "
        + "".join(f"both select, of {fraction:.0%} | " for fraction in FRACTIONS)
        + "tokens x layers | CPU seconds | of the model's | CPU seconds to make it |",
        "|---|" + "---:|" * (7 + len(FRACTIONS)),
    ]
    for result in results:
        zero_shot = np.asarray(result["zero_shot"])
        ours, theirs = compute_miwv(result), compute_miwv(full)
        cells = [
            f"{np.nanmean(zero_shot):.3f}",
            format_correlation(ours, theirs),
            format_correlation(zero_shot, np.asarray(full["zero_shot"])),
            *(describe_overlap(ours, theirs, fraction) for fraction in FRACTIONS),
            f"{result['tokens'] * result['layers']:,}",
            f"{result['cpu_seconds']:.0f}",
            f"{result['cpu_seconds'] / full['cpu_seconds']:.0%}",
            f"{result['training_cpu_seconds']:.0f}",
        ]
        lines.append(f"| {result['scorer']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compute_miwv(result: Result) -> np.ndarray:
    return np.asarray(result["one_shot"]) - np.asarray(result["zero_shot"])


def format_correlation(ours: np.ndarray, theirs: np.ndarray) -> str:
    correlation = compute_rank_correlation(ours, theirs)
    return "none" if correlation is None else f"{correlation:.3f}"


def describe_overlap(ours: np.ndarray, theirs: np.ndarray, fraction: float) -> str:
    """Of the model's best, how many are among the proxy's best."""
    known = np.flatnonzero(np.isfinite(ours) & np.isfinite(theirs))
    count = count_selected(fraction, len(known))
    best, wanted = (known[np.argsort(-scores[known], kind="stable")[:count]] for scores in (ours, theirs))
    return f"{round(compute_overlap(best, wanted) * count)} of {count}"


if __name__ == "__main__":
    main()
