"""The page of a comparison, in Markdown."""

import datetime
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from comparison.judgement import DIVERGED, Judged, Losses
from comparison.tables import format_markdown, make_sample_table, make_table
from comparison.wording import describe_correction, write_power, write_statements, write_verdict
from miwv_trainer import __version__

EXPLANATION = """
Every arm trains for {steps} steps of {batch} samples, and every batch is full. Arms with the same seed begin with the
same adapter and follow the same order of positions. The exceptions are arms with an `epoch_order` by difficulty, and
the random draws at a multiple of the cost: they train for more steps on more samples, until they have cost as much as
an arm's scoring and training. The multiple in their name is that of the arm, against ten random draws on average.

**Samples** are those that were trained, of the full set all. "Times seen" is how often, on average.

**Total compute** is in thousands of tokens forwarded, padding included: scoring, in all rounds, and training, where a
token counts three times (forward and backward). × is its multiple of that of random draws of the same size. An encoder
that finds exemplars is not counted. A LoRA adapter needs no gradients of the frozen weights, so that its training costs
less than three forwards. That is not deducted, which favours scoring.

**Losses** are in nats, mean ± standard deviation over {seeds} seed(s), and are weighted in two ways. *By response
tokens*, each response token of the held-out samples counts the same, as in the training loss, so that long responses
decide. *By samples*, each held-out sample counts the same. The verdict calls an arm lower or higher where both agree.

**Differences** are over the same seeds and paired by sample: mean ± half of the 95 % interval, which covers adapter,
order and draws (seeds) and the choice of the held-out samples together. "lower" and "higher" stand where the difference
is shown at 5 %, adjusted for the number of differences in the column. This is stricter than an interval that excludes
zero.
"Equal selection" is random draws of as many samples, or of as many response tokens for arms that are chosen by tokens.
"Equal cost" is random draws that cost as much as scoring and training of the arm together, or a little less; "costs ×"
is the arm's cost as a multiple of theirs.
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
    """One set of samples with arms at one learning rate, or at several of which each arm has the best."""

    title: str
    judged: Sequence[Judged]
    losses: Losses
    rates: Sequence[float]

    @property
    def diverged(self) -> list[str]:
        """The arms that are not judged because they have diverged."""
        judged = [one.arm for one in self.judged]
        found = dict.fromkeys(result.arm for result in self.losses.find_diverged(self.rates))
        return [arm for arm in found if arm not in judged]


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
        f"**{'Unfinished. ' if 'unfinished' in facts else ''}{write_verdict(first.judged)}**\n",
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
    """Two tables, and what they say."""
    judged, (by_tokens, by_samples) = section.judged, section.losses.untrained
    return [
        f"## {section.title}\n",
        f"{write_verdict(judged)}\n",
        f"By response tokens (untrained: {by_tokens:.4f}):\n",
        format_markdown(make_table(judged, len(section.rates) > 1, section.diverged)) + "\n",
        f"By samples (untrained: {by_samples:.4f}):\n",
        format_markdown(make_sample_table(judged, section.diverged)) + "\n",
        *(f"- {line}" for line in (*describe_left_out(section), *write_statements(judged))),
        f"- {describe_correction(judged)}",
        f"- {write_power(judged)}\n",
    ]


def describe_left_out(section: Section) -> list[str]:
    """Which runs and how many samples are not judged, because their losses are not finite."""
    lines = []
    if found := section.losses.find_diverged(section.rates):
        runs = ", ".join(f"{result.arm} at {result.rate:g} with seed {result.seed}" for result in found)
        lines.append(
            f"Diverged: {runs}. More than {DIVERGED:.0%} of the losses of these runs are not finite. Their arms are "
            "not judged at these learning rates."
        )
    if count := section.losses.left_out:
        of = len(section.losses.is_judged)
        lines.append(f"Left out for all arms: {count} of {of} samples, which have no finite loss in some run.")
    return lines


def describe_machine() -> str:
    """What it was measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU thread(s) a process, {platform.machine()}, torch {torch.__version__}"
