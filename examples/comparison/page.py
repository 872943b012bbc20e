"""The page of a comparison, in Markdown."""

import datetime
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from comparison.judgement import Judged
from comparison.tables import format_markdown, make_table
from comparison.wording import count_by_chance, write_power, write_statements, write_verdict
from miwv_trainer import __version__

EXPLANATION = """
Every arm trains for {steps} steps of {batch} samples, and every batch is full. Arms with the same seed begin with the
same adapter and follow the same order of positions. The exceptions are the random draws at a multiple of the cost: they
train for more steps on more samples, until they have cost as much as an arm's scoring and training.

**Total compute** is in thousands of tokens forwarded, padding included: scoring, in all rounds, and training, where a
token counts three times (forward and backward). × is its multiple of that of random draws of the same size. An encoder
that finds exemplars is not counted. A LoRA adapter needs no gradients of the frozen weights, so that its training costs
less than three forwards. That is not deducted, which favours scoring.

**Losses** are in nats per response token of the held-out samples: mean ± standard deviation over {seeds} seed(s).
**Differences** are paired by seed and by sample: mean ± half of the 95 % interval over seeds (Student's t) and, in
brackets, the 95 % interval over held-out samples (bootstrap). The first covers adapter, order and draws; the second
covers the choice of the samples. "lower" and "higher" stand where both intervals exclude zero. "Equal selection" is
random draws of as many samples, or of as many response tokens for arms that are chosen by tokens. "Equal cost" is
random draws that cost as much as scoring and training of the arm together, or a little less; "costs ×" is the arm's
cost as a multiple of theirs.
"""
RATES = """
Learning rates: {rates}. {which}
"""
ONE_RATE = "All arms have the same one, for which none was tuned."
SEVERAL_RATES = (
    "Each arm was trained at each of them. In the first table the rate is tuned for each arm: it is chosen on one half "
    "of the samples and judged on the other, both ways. The compute of tuning is not counted. A table for each rate "
    "follows."
)


@dataclass(frozen=True)
class Section:
    """One table: arms on one set of samples, at one learning rate or tuned."""

    title: str
    judged: Sequence[Judged]
    untrained: float
    is_tuned: bool = False


def build_page(sections: Sequence[Section], facts: Mapping[str, str]) -> str:
    """
    The page.

    Args:
        sections: The first one is what the verdict is about.
        facts: What `collect_facts` says.
    """
    first = sections[0]
    lines = [
        "# Does it help to select?\n",
        f"**{write_verdict(first.judged)}**\n",
        write_power(first.judged) + "\n",
        "![differences to random draws, with intervals](comparison.png)\n",
        *(f"- {name}: {fact}" for name, fact in facts.items() if name not in ("steps", "batch", "seeds", "rates")),
        f"- measured: {datetime.date.today().isoformat()}, {describe_machine()}, miwv_trainer {__version__}",
        EXPLANATION.format(steps=facts["steps"], batch=facts["batch"], seeds=facts["seeds"]),
        RATES.format(rates=facts["rates"], which=SEVERAL_RATES if "," in facts["rates"] else ONE_RATE),
    ]
    for section in sections:
        lines += format_section(section)
    return "\n".join(lines)


def format_section(section: Section) -> list[str]:
    """A table, and what it says."""
    return [
        f"## {section.title}\n",
        f"{write_verdict(section.judged)}\n",
        f"Untrained: {section.untrained:.4f}.\n",
        format_markdown(make_table(section.judged, section.is_tuned)) + "\n",
        *(f"- {line}" for line in write_statements(section.judged)),
        f"- {write_power(section.judged)}",
        f"- {count_by_chance(section.judged)}\n",
    ]


def describe_machine() -> str:
    """What it was measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU thread(s) a process, {platform.machine()}, torch {torch.__version__}"
