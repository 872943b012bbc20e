"""A round in words: lines of the log, warnings and errors."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import NO_EXEMPLAR, Pool, rank_columns
from miwv_trainer.own_scores import describe_score, is_function
from miwv_trainer.rounds.statistics import count_epochs
from miwv_trainer.scoring.rows import find_scorable
from miwv_trainer.selection.budget import count_selected
from miwv_trainer.selection.choose import Choice, compute_overlap
from miwv_trainer.selection.measured import Measured
from miwv_trainer.selection.scores import LossName, get_score, name_bound
from miwv_trainer.storage.stored_round import ProxyCheck, StoredRound

logger = logging.getLogger(__name__)

LARGE_SHARE = 0.25
ADVICE_ON_BOUND = ", whose prompts make their responses no more likely. Look at the chat template and at the model"
ADVICE_ON_EXEMPLARS = " More `exemplars_per_sample` give more samples one."
NO_NUMBER = "the score gives them no number"
LOSSES: Mapping[LossName, str] = {
    "zero_shot": "zero-shot losses",
    "one_shot": "one-shot losses",
    "response": "losses of responses alone",
}
ONLY_COPIES = "no exemplar but copies of themselves"


def describe_cost(
    number: int, is_scored: np.ndarray, tokens: int, pool: Pool, config: MIWVConfig, previous: StoredRound | None
) -> str:
    """
    What a round will cost, by the speed and the selection of the round before. Round 0 has no speed yet, and the mean
    length of all samples stands for that of a selection.

    Args:
        is_scored: `(N,)` bool, the samples that will be scored.
        tokens: Tokens that will be forwarded.
    """
    rate = previous.summary["tokens_per_second"] if previous is not None else 0
    time = (
        f"about {format_duration(tokens / rate)} at the {rate:.0f} tokens a second of before" if rate else "no rate yet"
    )
    samples = previous.selection if previous is not None else np.flatnonzero(is_scored)
    size = count_selected(config.fraction, len(pool))
    epochs = count_epochs(tokens, pool, samples, size)
    return (
        f"Round {number} scores {is_scored.sum()} of {len(pool)} samples: {tokens} tokens, {time}, {epochs:.2g} times "
        f"the compute of an epoch over {size} samples."
    )


def format_duration(seconds: float, digits: int = 0) -> str:
    """A duration in seconds (with `digits` decimals), minutes or hours, such as "35 s", "12 min" or "2.4 h"."""
    if seconds < 120:
        return f"{seconds:.{digits}f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def describe_round(current: StoredRound, previous: StoredRound | None = None) -> str:
    """The line of the log about a finished round."""
    summary = current.summary
    line = f"Round {current.number}{', read from disk' if current.was_there else ''}: "
    if "drawn_from" in summary:
        line += (
            f"drawn anew from the scores of round {summary['drawn_from']}, selected {summary['number_selected']} of "
            f"{summary['samples']}"
        )
    elif "scores_from" in summary:
        line += f"{describe_source(current)}, selected {summary['number_selected']} of {summary['samples']}"
    elif summary["layout"] == "none":
        line += f"nothing to forward for this score, selected {summary['number_selected']} of {summary['samples']}"
    else:
        line += (
            f"scored {summary['scored']} of {summary['samples']} samples in {summary['seconds']:.0f} s "
            f"({summary['tokens_forwarded']} tokens, {summary['tokens_per_second']:.0f} a second), "
            f"selected {summary['number_selected']}"
        )
    if summary.get("refined_samples"):
        line += (
            f", {summary['refined_samples']} near the threshold scored again in float32 in "
            f"{summary['refined_seconds']:.0f} s"
        )
    if "proxy" in summary:
        line += f", by a smaller model ({describe_proxy(summary['proxy'])})"
    if previous is not None:
        share = compute_overlap(current.selection, previous.selection)
        line += f", {share:.0%} of the selected as in round {previous.number}"
    return line + "."


def describe_source(current: StoredRound) -> str:
    """Where the losses of a round come from that took those of another run."""
    origin = current.summary["scores_from"]
    # Releases before `match` wrote no such entry.
    matched = ", matched by the texts of the rows" if origin.get("match") == "rows" else ""
    return (
        f"losses read from {origin['folder']}, where {origin['model'] or 'a model without a name'} "
        f"({origin['dtype']}) made them on {origin['date']}{matched}"
    )


def describe_proxy(found: ProxyCheck) -> str:
    """How far the two models agree, and what each costs, in words."""
    correlation, overlap = found["rank_correlation"], found["overlap"]
    # Earlier releases wrote neither what is compared nor a reason.
    of, why = (f" ({found[name]})" if name in found else "" for name in ("compared", "reason"))
    agreement = f"no correlation can be computed{why}"
    if correlation is not None:
        agreement = f"rank correlation {correlation:.2f}{of}"
    shared = "" if overlap is None else f", {overlap:.0%} of the best in common"
    number = f"{found['samples']} sample{'' if found['samples'] == 1 else 's'}"
    return f"on {number} {agreement}{shared}{_describe_prices(found)}"


def _describe_prices(found: ProxyCheck) -> str:
    """What the two models' forwards of the pool cost, as far as they were timed."""
    small, whole = (
        None if seconds is None else format_duration(seconds, 1)
        for seconds in (found["seconds"], found["seconds_of_model"])
    )
    if whole is None:
        return "" if small is None else f"; {small} to forward the pool"
    model = f"the model would take {whole}"
    return f"; {model} to forward the pool" if small is None else f"; {small} to forward the pool, {model}"


def describe_threshold(choice: Choice, config: MIWVConfig) -> str:
    """
    How far down the ranking a selection reaches, such as "MIWV 0.1150 and above".

    "lowest MIWV 0.1150" if diversity, groups, bands of length or near-duplicates passed over a sample that ranks higher
    and that the guards allow; "drawn by rank, lowest MIWV 0.1150" if the selection was drawn.
    """
    score = get_score(config)
    threshold = choice.scores[choice.selection].min()
    value = f"{-threshold if score.is_lowest_first else threshold:.4f}"
    end = f"{'highest' if score.is_lowest_first else 'lowest'} {score.label} {value}"
    if choice.is_drawn:
        return f"drawn by rank, {end}"
    # Samples that a guard leaves out are in cell -1.
    is_left = choice.cells >= 0
    is_left[choice.selection] = False
    if (choice.scores[is_left] > threshold).any():
        return end
    return f"{score.label} {value} and {'below' if score.is_lowest_first else 'above'}"


def tell_left_out(number: int, choice: Choice, config: MIWVConfig, without_value: int) -> None:
    """
    Logs one line for each reason why samples that have their losses cannot be selected.

    It is a warning where a score by itself, with no guard that somebody has set, leaves out a large share of the pool.

    Args:
        without_value: Samples that have their losses and yet no score.
    """
    score, size = get_score(config), len(choice.scores)
    for guard, count in choice.left_out.items():
        is_large = guard == name_bound(score) and count > LARGE_SHARE * size
        logger.log(
            logging.WARNING if is_large else logging.INFO, "Round %d: %s leaves out %d of %d samples%s.",
            number, guard, count, size, ADVICE_ON_BOUND if is_large else "",
        )  # fmt: skip
    if without_value:
        is_large = without_value > LARGE_SHARE * size
        logger.log(
            logging.WARNING if is_large else logging.INFO,
            "Round %d: %d of %d samples have no score (%s) and are not selected.%s", number, without_value, size,
            score.missing or NO_NUMBER, ADVICE_ON_EXEMPLARS if is_large and score.is_of_exemplars else "",
        )  # fmt: skip


def explain_no_candidate(left_out: Mapping[str, int], measured: Measured, config: MIWVConfig) -> str:
    """The error if no sample has a score that the guards leave. `left_out` counts what each guard leaves out."""
    listed = "; ".join(f"{guard} leaves out {count}" for guard, count in left_out.items() if count)
    if not listed:
        told = "No sample of the pool may be selected: not one has a score."
        return f"{told}{_explain_no_number(measured, config)}" if is_function(config.score) else told
    return f"No sample of the pool may be selected: {listed}. Loosen a guard."


def _explain_no_number(measured: Measured, config: MIWVConfig) -> str:
    """Why the user's own function may have given no number: nothing is forwarded for it by itself."""
    response_loss = np.nan if measured.response_loss is None else measured.response_loss
    losses = {
        "zero_shot_loss": measured.zero_shot_loss,
        "one_shot_loss": measured.one_shot_loss,
        "response_loss": response_loss,
    }
    lacking = [f"`{name}`" for name, values in losses.items() if np.isnan(values).all()]
    told = f" {describe_score(config.score)} gave NaN for each of them."
    if not lacking:
        return told
    advice = []
    if lacking != ["`response_loss`"]:
        advice.append('score the pool with `extra_losses="zero_shot"`, or "both" for exemplars and MIWV')
    if "`response_loss`" in lacking:
        advice.append(
            '`response_loss` is measured by `score="ifd"` alone: score the pool so, and select from that round by the '
            "function"
        )
    *others, last = lacking
    named = f"{', '.join(others)} and {last}" if others else last
    return f"{told} It got NaN as {named}, which no forward has measured: {'. '.join(advice)}."


def explain_missing_losses(missing: Sequence[LossName], scored: StoredRound, config: MIWVConfig) -> str:
    """The error if a round lacks losses that a score needs, which the model has to compute."""
    named = " and ".join(LOSSES[name] for name in missing)
    asked, stored = describe_score(config.score), scored.summary["config"].get("score", MIWVConfig.score)
    how = f"with `score={asked!r}`" if isinstance(config.score, str) else f"with `extra_losses={config.extra_losses!r}`"
    return (
        f"The scores in {scored.folder} have no {named}, which `score={asked!r}` needs: they were made with "
        f"`score={stored!r}`. Score the pool again {how}, or select by a score whose losses are there."
    )


def explain_no_finite_loss(is_proxy: bool) -> str:
    """The error if every loss is NaN or infinite. `is_proxy` says that a smaller model has scored."""
    return (
        f"Not one loss is finite: the {'`scorer`' if is_proxy else 'model'} gives NaN or infinity on every sample of "
        "the pool. Check its weights and dtype (float16 overflows easily; use bfloat16 or float32)."
    )


def warn_of_unscorable(
    number: int, pool: Pool, exemplars: np.ndarray, context: int, is_lost: np.ndarray, is_proxy: bool = False
) -> None:
    """
    Logs how many samples are left out, and whose exemplars were cut.

    Args:
        exemplars: `(N,)` index of each sample's exemplar, or `(N, m)` of its nearest ones.
        is_lost: `(N,)` bool, the samples whose loss is NaN or infinite.
        is_proxy: Whether the context is that of a smaller model that scores.
    """
    reasons = dict(count_unscorable(pool, exemplars, context, is_proxy))
    reasons["a loss that is not finite"] = int(is_lost.sum())
    found = {reason: count for reason, count in reasons.items() if count}
    if found:
        logger.warning(
            "Round %d: %d of %d samples could not be scored and are left out: %s.",
            number, sum(found.values()), len(pool), "; ".join(f"{n} with {why}" for why, n in found.items()),
        )  # fmt: skip
    # A score without exemplars gives each sample its own index. Where the nearest fits, all that a sample has fit.
    nearest = rank_columns(exemplars)[:, 0]
    has_exemplar = find_scorable(pool, exemplars, context) & (nearest != np.arange(len(pool)))
    is_cut = has_exemplar & (len(pool.preamble) + pool.lengths + pool.lengths[nearest] > context)
    if is_cut.any():
        logger.warning(
            "Round %d: the exemplar of %d sample(s) was cut at its beginning, because none fits the %d tokens of %s "
            "together with the sample.", number, int(is_cut.sum()), context, _name_context(is_proxy),
        )  # fmt: skip


def warn_of_unmeasured(number: int, is_measured: np.ndarray, folder: str) -> None:
    """Logs how many samples are left out because the run whose losses are read has none of them."""
    missing = int((~is_measured).sum())
    if missing:
        logger.warning(
            "Round %d: %d of %d samples have no losses in %s and are left out.",
            number,
            missing,
            len(is_measured),
            folder,
        )


def _name_context(is_proxy: bool) -> str:
    return "the `scorer`'s context" if is_proxy else "the context"


def count_unscorable(pool: Pool, exemplars: np.ndarray, context: int, is_proxy: bool = False) -> Mapping[str, int]:
    """Counts unscorable samples by reason, each once, under the first reason that applies."""
    is_incomplete = ~pool.has_prompt_and_response
    is_too_long = ~is_incomplete & (len(pool.preamble) + pool.lengths >= context)
    has_only_copies = ~is_incomplete & ~is_too_long & (rank_columns(exemplars)[:, 0] == NO_EXEMPLAR)
    return {
        "no prompt or no response": int(is_incomplete.sum()),
        f"more tokens than {_name_context(is_proxy)} of {context} leaves room for": int(is_too_long.sum()),
        ONLY_COPIES: int(has_only_copies.sum()),
    }


def explain_nothing_scorable(pool: Pool, exemplars: np.ndarray, context: int, is_proxy: bool = False) -> str:
    """The error if not one sample can be scored. `is_proxy` says that the context is a smaller model's."""
    reasons = count_unscorable(pool, exemplars, context, is_proxy)
    listed = "; ".join(f"{count} with {reason}" for reason, count in reasons.items() if count)
    advice_on_copies = (
        '; copies may serve as exemplars with `preset="paper"` or `allow_identical_exemplars=True`'
        if reasons[ONLY_COPIES]
        else ""
    )
    return (
        f"Not one of the {len(pool)} samples can be scored: {listed}. Give samples that differ and that fit the "
        f"context{', or a `scorer` with a longer one' if is_proxy else ''}{advice_on_copies}."
    )
