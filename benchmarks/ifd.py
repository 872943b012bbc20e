"""Instruction-Following Difficulty as its authors' public scripts compute it, beside ours, on the same samples.

    OMP_NUM_THREADS=1 python -m benchmarks.ifd --samples 96

The reference is written anew from what `data_analysis.py` and `data_by_IFD.py` of github.com/MingLiiii/Cherry_LLM do.
Each sample takes two forwards of its own with logits at every position: Alpaca's prompt with the response, and
`### Response:` with the response. Its score there is the ratio of the two mean losses. Ours is the ratio of their
exponentials, the perplexities, as in the authors' later Superfiltering. Both are compared. Our scores are taken twice:
of the texts of the reference, through a chat template that renders them, and of the model's own chat template.
"""

import argparse
import datetime
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.cases import DEFAULT_POOL, read_model, read_pool
from benchmarks.measure import describe_machine
from miwv_trainer import MIWVConfig, Pool, pool_from_rows, score_and_select

HEAD = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
WITH_INPUT = ", paired with an input that provides further context"
OPENING = "### Response:"
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ message['content'] + '\\n\\n' }}{% else %}"
    "{{ '" + OPENING + "' + message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + OPENING + "' }}{% endif %}"
)
SHARES = (0.05, 0.1)
SHOWN = 3  # samples of largest difference


@dataclass(frozen=True)
class Found:
    """
    What one way has measured.

    Args:
        behind: `(N,)` mean loss of the response behind its prompt; NaN where it leaves a sample out.
        alone: `(N,)` mean loss of the response without its prompt.
        tokens: `(N,)` tokens that are scored behind the prompt.
        seconds: CPU time, tokenising included.
    """

    behind: np.ndarray
    alone: np.ndarray
    tokens: np.ndarray
    seconds: float

    @property
    def of_perplexities(self) -> np.ndarray:
        return np.exp(self.behind - self.alone)

    @property
    def of_losses(self) -> np.ndarray:
        return self.behind / self.alone


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table. Bad input prints one line on standard error and returns exit status 2."""
    try:
        arguments = parse_arguments(argv)
        rows = draw_rows(arguments.pool, arguments.samples)
        model, tokenizer = read_model(arguments.model, None, "float32", torch.device("cpu"))
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"benchmarks.ifd: {error}", file=sys.stderr)
        return 2
    print(
        f"machine: {describe_machine(torch.device('cpu'))}, {datetime.date.today().isoformat()}; {len(rows)} samples",
        flush=True,
    )
    model.eval()
    reference = measure_reference(model, tokenizer, rows, arguments.max_length)
    as_alpaca = deepcopy(tokenizer)
    as_alpaca.chat_template = TEMPLATE
    same_texts = measure_ours(model, lambda: pool_from_rows(make_messages(rows), as_alpaca))
    own_template = measure_ours(model, lambda: pool_from_rows(datasets.Dataset.from_list(rows), tokenizer))
    print(f"left out by the reference: {np.isnan(reference.behind).sum()}")
    print("\n".join(format_table(reference, {"the same texts": same_texts, "the model's template": own_template})))
    print("\n".join(describe_largest(reference, same_texts)))
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ifd", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub name (default: the quickstart's SmolLM2-135M-Instruct)")
    parser.add_argument("--pool", help=f"file or hub name (default: {DEFAULT_POOL.name} in ../shared/data)")
    parser.add_argument("--samples", type=int, default=96, help="number drawn from the pool (default: %(default)s)")
    parser.add_argument("--max-length", type=int, default=1024, help="of the reference's texts (default: %(default)s)")
    return parser.parse_args(argv)


def draw_rows(pool: str | None, count: int) -> list[dict[str, str]]:
    """Some rows of a pool, seeded. Raises `ValueError` if it has not so many, or other columns than Alpaca's."""
    rows = read_pool(pool)
    if not {"instruction", "output"} <= set(rows.column_names):
        raise ValueError(f"the pool must have the columns instruction and output, but has {rows.column_names}.")
    if not 3 <= count <= len(rows):
        raise ValueError(f"`--samples` must be from 3 to the pool's {len(rows)}, but is {count}.")
    drawn = np.sort(np.random.default_rng(0).choice(len(rows), count, replace=False))
    chosen = rows.select(drawn)
    return [{name: str(row.get(name) or "") for name in ("instruction", "input", "output")} for row in chosen]


def write_prompt(row: dict[str, str]) -> str:
    """Alpaca's prompt without the opening of the response."""
    given = f"### Input:\n{row['input']}\n\n" if row["input"] else ""
    return f"{HEAD.format(WITH_INPUT if given else '')}### Instruction:\n{row['instruction']}\n\n{given}"


def make_messages(rows: Sequence[dict[str, str]]) -> datasets.Dataset:
    """The same texts as conversations, for [`TEMPLATE`]."""
    turns = [
        [
            {"role": "user", "content": write_prompt(row).removesuffix("\n\n")},
            {"role": "assistant", "content": row["output"]},
        ]
        for row in rows
    ]
    return datasets.Dataset.from_dict({"messages": turns})


def measure_reference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, str]], most: int
) -> Found:
    """
    Two plain forwards a sample, as the public scripts make them. The tokens before a response are counted by tokenising
    what stands before it; texts are cut to `most` tokens, the response alone to as many as it has behind its prompt.
    """
    started = time.process_time()
    losses, tokens = np.full((2, len(rows)), np.nan), np.zeros(len(rows), dtype=np.int64)
    for sample, row in enumerate(rows):
        prompt = write_prompt(row) + OPENING
        length, opening = len(tokenizer.encode(prompt)), len(tokenizer.encode(OPENING))
        behind = tokenizer.encode(prompt + row["output"])[:most]
        alone = tokenizer.encode(OPENING + row["output"])[: max(most - length + 4, 0)]
        tokens[sample] = len(behind) - length
        if tokens[sample] <= 0 or len(alone) <= opening or length + len(alone) - opening > most:
            continue
        losses[:, sample] = [compute_loss(model, ids, at) for ids, at in ((behind, length), (alone, opening))]
    return Found(losses[0], losses[1], tokens, time.process_time() - started)


def compute_loss(model: PreTrainedModel, ids: Sequence[int], start: int) -> float:
    """The mean loss of the tokens from `start` on."""
    row = torch.tensor([ids])
    with torch.no_grad():
        logits = model(input_ids=row, use_cache=False).logits[0].float()
    return float(torch.nn.functional.cross_entropy(logits[start - 1 : -1], row[0, start:]))


def measure_ours(model: PreTrainedModel, make_pool: Callable[[], Pool]) -> Found:
    """What `score="ifd"` measures."""
    started = time.process_time()
    pool = make_pool()
    with tempfile.TemporaryDirectory() as folder:
        current = score_and_select(model, pool, MIWVConfig(score="ifd", fraction=0.1), folder)
    seconds = time.process_time() - started
    behind, alone = (current.column(name).astype(np.float64) for name in ("zero_shot_loss", "response_loss"))
    return Found(behind, alone, pool.response_tokens, seconds)


def find_best(scores: np.ndarray, share: float) -> set[int]:
    """The samples of highest score, those above 1 left out."""
    ranked = np.argsort(np.where(scores <= 1, -scores, np.inf), kind="stable")
    return set(ranked[: int(share * len(scores))].tolist())


def format_table(reference: Found, ours: dict[str, Found]) -> list[str]:
    """A line for each of our scorings and each formula of the reference."""
    titles = ["our scores of", "reference", "rank correlation", *(f"in common at {share:.0%}" for share in SHARES)]
    titles += ["largest difference", "CPU seconds", "ratio"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, found in ours.items():
        for formula, theirs in (("perplexities", reference.of_perplexities), ("mean losses", reference.of_losses)):
            both = np.isfinite(theirs) & np.isfinite(found.of_perplexities)
            scores, others = found.of_perplexities[both], theirs[both]
            best = [(find_best(scores, share), find_best(others, share)) for share in SHARES]
            cells = [
                *(name, f"ratio of {formula}", f"{spearmanr(scores, others).statistic:.4f}"),
                *(f"{len(one & other)} of {len(one)}" for one, other in best),
                f"{np.abs(scores - others).max():.2g}",
                *(f"{found.seconds:.0f} against {reference.seconds:.0f}", f"{reference.seconds / found.seconds:.2f}"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def describe_largest(reference: Found, ours: Found) -> list[str]:
    """The samples whose two scores of perplexities differ most, with what they are made of."""
    differences = np.nan_to_num(np.abs(reference.of_perplexities - ours.of_perplexities), nan=-1.0)
    lines = ["Largest differences of perplexities, on the same texts (reference, ours):"]
    for sample in np.argsort(-differences, kind="stable")[:SHOWN].tolist():
        pairs = (
            ("tokens", reference.tokens, ours.tokens, "d"),
            ("behind its prompt", reference.behind, ours.behind, ".5f"),
            ("alone", reference.alone, ours.alone, ".5f"),
        )
        shown = ", ".join(f"{name} {one[sample]:{form}} {other[sample]:{form}}" for name, one, other, form in pairs)
        lines.append(f"- sample {sample}: {differences[sample]:.2g}; {shown}")
    same = (reference.tokens == ours.tokens) & (differences >= 0)
    lines.append(
        f"Of {same.sum()} samples with as many tokens in both: {differences[same].max(initial=0):.2g} at most."
    )
    return lines


if __name__ == "__main__":
    sys.exit(main())
