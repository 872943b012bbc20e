"""The scores by which samples are ranked, one record each.

A record says what its score needs before it can be computed, so that a round forwards no more than that: nothing for
`"random"` and `"longest"`, half of the sequences for `"zero_shot_loss"`. Jiang et al. compare MIWV (their equation 4)
with its lowest values, the one-shot loss and random draws. The longest responses are the baseline of Zhao et al., "Long
Is More for Alignment" (ICML 2024).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from miwv_trainer.choices import ExtraLosses
from miwv_trainer.config import MIWVConfig
from miwv_trainer.foreign_errors import describe_error
from miwv_trainer.own_scores import ScoreFunction, describe_score, is_array, is_function, validate_scores
from miwv_trainer.selection.measured import (
    Measured,
    compute_ifd,
    compute_influence,
    compute_residual_miwv,
    mask_infinite,
)

LossName = Literal["zero_shot", "one_shot", "response"]
# The losses that scores need. The one-shot loss is never measured alone: in a tree, the trunks that it needs give the
# zero-shot losses too, and `loss_band` looks at these.
NO_LOSS: frozenset[LossName] = frozenset()
ZERO_SHOT: frozenset[LossName] = frozenset({"zero_shot"})
ZERO_SHOT_AND_RESPONSE: frozenset[LossName] = frozenset({"zero_shot", "response"})
BOTH_LOSSES: frozenset[LossName] = frozenset({"zero_shot", "one_shot"})
EXTRA_LOSSES: Mapping[ExtraLosses, frozenset[LossName]] = {"none": NO_LOSS, "zero_shot": ZERO_SHOT, "both": BOTH_LOSSES}


Formula = Callable[[Measured], np.ndarray]
MIWV_MEANING = (
    "MIWV is the loss of a sample's response when its most similar sample comes before it as a solved example "
    "(one-shot), minus its loss alone (zero-shot), in nats per response token. A high MIWV means that even a solved "
    "example does not help, so the model lacks the skill."
)


@dataclass(frozen=True)
class Score:
    """
    All that the package knows about one score.

    Args:
        name: The value of `MIWVConfig.score`, or a description of the user's function or array.
        label: The ranked quantity as people read it.
        meaning: What the quantity is, in whole sentences for readers of a report or a dataset card.
        losses: The losses that must be measured before `formula` can be computed. Empty where no forward is needed.
        formula: Returns the `(N,)` ranked quantity, NaN where a sample has none.
        difficulty: Returns `(N,)`, higher for harder samples, for `epoch_order`. None where the score cannot tell.
        column: The column of scores.parquet that holds the ranked quantity. None where no column but `score` does.
        most: The highest value that may be selected; None where all may.
        is_lowest_first: Whether the samples with the lowest values are selected. Else those with the highest are.
        missing: Why a sample may lack a value although its losses are known, in words that follow "unscorable:".
        is_of_exemplars: Whether a sample's losses count for its exemplar's value and not for its own.
        is_random: Whether the values depend on the sampler's seed and the round.
        is_given: Whether the values are numbers that the user gave.
    """

    name: str
    label: str
    meaning: str
    losses: frozenset[LossName]
    formula: Formula
    difficulty: Formula | None
    column: str | None = None
    most: float | None = None
    is_lowest_first: bool = False
    missing: str | None = None
    is_of_exemplars: bool = False
    is_random: bool = False
    is_given: bool = False

    @property
    def needs_forwards(self) -> bool:
        return len(self.losses) > 0

    @property
    def needs_exemplars(self) -> bool:
        return "one_shot" in self.losses

    @property
    def ranks_miwv(self) -> bool:
        """Whether the ranked quantity is MIWV, so that a selection has a threshold in MIWV."""
        return self.column == "miwv"

    @property
    def ranking_label(self) -> str:
        """Names the ranking: the quantity, and its direction where the lowest values are selected."""
        return f"lowest {self.label}" if self.is_lowest_first else self.label


def _get_miwv(measured: Measured) -> np.ndarray:
    return measured.miwv


def _get_zero_shot_loss(measured: Measured) -> np.ndarray:
    return mask_infinite(measured.zero_shot_loss)


def _get_one_shot_loss(measured: Measured) -> np.ndarray:
    return mask_infinite(measured.one_shot_loss)


def _draw_scores(measured: Measured) -> np.ndarray:
    # One draw for every sample, also for those that cannot be selected, so that a sample's number does not depend on
    # how many before it lack a prompt or a response.
    return np.random.default_rng(measured.draw).random(len(measured.response_tokens))


def _count_response_tokens(measured: Measured) -> np.ndarray:
    return measured.response_tokens


def _get_given(measured: Measured) -> np.ndarray:
    if measured.given is None:
        raise ValueError("The samples are to be ranked by scores of your own, but none were given.")
    return measured.given


_RECORDS = (
    Score(
        name="miwv",
        label="MIWV",
        meaning=MIWV_MEANING,
        losses=BOTH_LOSSES,
        formula=_get_miwv,
        difficulty=_get_miwv,
        column="miwv",
    ),
    Score(
        name="low_miwv",
        label="MIWV",
        meaning=f"{MIWV_MEANING} The samples are ranked from the lowest to the highest.",
        losses=BOTH_LOSSES,
        formula=_get_miwv,
        difficulty=_get_miwv,
        column="miwv",
        is_lowest_first=True,
    ),
    Score(
        name="residual_miwv",
        label="residual_miwv",
        meaning=f"{MIWV_MEANING} The residual is what response length and the similarity leave unexplained.",
        losses=BOTH_LOSSES,
        formula=compute_residual_miwv,
        # The residual says how unusual a MIWV is for its length and similarity, and MIWV how hard the sample is.
        difficulty=_get_miwv,
    ),
    Score(
        name="zero_shot_loss",
        label="zero_shot_loss",
        meaning="The zero-shot loss is that of a sample's response behind its prompt, in nats per response token.",
        losses=ZERO_SHOT,
        formula=_get_zero_shot_loss,
        difficulty=_get_zero_shot_loss,
        column="zero_shot_loss",
    ),
    Score(
        name="one_shot_loss",
        label="one_shot_loss",
        meaning="The one-shot loss is that of a sample's response when its most similar sample comes before it as a "
        "solved example, in nats per response token.",
        losses=BOTH_LOSSES,
        formula=_get_one_shot_loss,
        difficulty=_get_one_shot_loss,
        column="one_shot_loss",
    ),
    Score(
        name="influence",
        label="influence",
        meaning="Influence is how much a sample, as a solved example, lowers the loss of the responses that are scored "
        "behind it: the mean of their zero-shot minus one-shot losses, in nats per response token.",
        losses=BOTH_LOSSES,
        formula=compute_influence,
        # Influence says how much a sample helps others, and MIWV how hard it is.
        difficulty=_get_miwv,
        missing="no sample was scored behind it",
        is_of_exemplars=True,
    ),
    Score(
        name="ifd",
        label="IFD",
        meaning="IFD (Instruction-Following Difficulty) is the perplexity of a sample's response behind its prompt, "
        "over that of the response alone. Near 1, the prompt hardly helps; samples above 1 are not selected.",
        losses=ZERO_SHOT_AND_RESPONSE,
        formula=compute_ifd,
        difficulty=compute_ifd,
        most=1.0,
    ),
    Score(
        name="random",
        label="random",
        meaning="The samples are ranked by random numbers.",
        losses=NO_LOSS,
        formula=_draw_scores,
        difficulty=None,
        is_random=True,
    ),
    Score(
        name="longest",
        label="longest",
        meaning="The samples are ranked by the number of tokens of their responses.",
        losses=NO_LOSS,
        formula=_count_response_tokens,
        difficulty=_count_response_tokens,
        column="response_tokens",
    ),
    Score(
        name="column",
        label="column",
        meaning="The samples are ranked by the numbers in a column of the dataset.",
        losses=NO_LOSS,
        formula=_get_given,
        # What the numbers mean is the user's: the higher one counts as the harder.
        difficulty=_get_given,
        is_given=True,
        missing="the column has no number for it",
    ),
)
SCORES: Mapping[str, Score] = {score.name: score for score in _RECORDS}


def name_bound(score: Score) -> str | None:
    """Returns the name of the guard that is on for a score by itself; None where there is none."""
    return None if score.most is None else f"{score.label} above {score.most:g}"


def get_score(config: MIWVConfig) -> Score:
    """Returns the record of the score that a configuration names, with the losses that it asks for besides."""
    if isinstance(config.score, str):
        record = SCORES[config.score]
        if config.score_column is not None:
            meaning = f"The samples are ranked by the numbers in the dataset's column '{config.score_column}'."
            record = replace(record, label=config.score_column, meaning=meaning)
    else:
        record = _describe_own(config.score)
    return replace(record, losses=record.losses | EXTRA_LOSSES[config.extra_losses])


def _describe_own(score: object) -> Score:
    """The record of a function or an array of the user's, or of a stored round's."""
    name = describe_score(score)
    formula = partial(_call_function, score, name) if is_function(score) else _get_given
    return Score(
        name=name,
        label=name.rpartition(":")[2],  # of a function, without its module
        meaning=f"The samples are ranked by numbers from outside: {name}.",
        losses=NO_LOSS,
        formula=formula,
        difficulty=formula,
        is_given=not is_function(score),
        missing=f"{name.rpartition(':')[2]} gives it no number",
    )


def _call_function(function: ScoreFunction, name: str, measured: Measured) -> np.ndarray:
    try:
        values = function(measured.copy())
    # Whatever the user's lines raise: after hours of scoring the error must say whose lines they are.
    except Exception as error:
        raise ValueError(f"`score` {name} failed: {describe_error(error)}") from error
    return validate_scores(values, len(measured.response_tokens), f"`score` {name}")


def read_given_scores(config: MIWVConfig, column_scores: np.ndarray | None, count: int) -> np.ndarray | None:
    """
    Returns `(count,)` float32, the scores that the user gave as an array or a column; None if the score is another.

    Args:
        column_scores: `(count,)` numbers of the dataset's `score_column`, if the pool has them.

    Raises:
        ValueError: they do not fit the pool, or the pool lacks the column.
    """
    if is_array(config.score):
        return validate_scores(config.score, count, "`score`")
    if config.score_column is None:
        return None
    if column_scores is None:
        raise ValueError(
            f"`score_column` is {config.score_column!r}, but the pool has no numbers of it: columns are read by "
            "`attach`, `miwv score` and `select_again`. Give them as an array, `score=numpy.asarray(...)`."
        )
    return validate_scores(column_scores, count, f"`score_column` {config.score_column!r}")


def needs_exemplars(config: MIWVConfig) -> bool:
    """Tells whether the score or a guard needs each sample's most similar sample."""
    return get_score(config).needs_exemplars or config.min_similarity > -1


def get_draw_seed(config: MIWVConfig, number: int) -> tuple[int, ...]:
    """Returns the seed of the random scores of round `number`."""
    return config.sampler_seed or 0, number


def find_missing_losses(measured: Measured, score: Score) -> list[LossName]:
    """Returns the losses that a score needs and that not one sample has."""
    return sorted(name for name, values in _get_losses(measured, score).items() if not np.isfinite(values).any())


def _get_losses(measured: Measured, score: Score) -> dict[LossName, np.ndarray]:
    """The losses that a score needs, each `(N,)`; NaN where one was not measured."""
    unknown = np.full(len(measured.response_tokens), np.nan, dtype=np.float32)
    losses: Mapping[LossName, np.ndarray | None] = {
        "zero_shot": measured.zero_shot_loss,
        "one_shot": measured.one_shot_loss,
        "response": measured.response_loss,
    }
    found = {name: losses[name] for name in score.losses}
    return {name: unknown if values is None else values for name, values in found.items()}


def has_losses(measured: Measured, score: Score) -> np.ndarray:
    """Returns `(N,)` bool, whether all losses that a score needs are finite."""
    found = np.ones(len(measured.response_tokens), dtype=bool)
    for values in _get_losses(measured, score).values():
        found &= np.isfinite(values)
    return found


def compute_difficulty(measured: Measured, score: Score) -> np.ndarray:
    """Returns `(N,)`, higher for harder samples; NaN where that is not known."""
    if score.difficulty is None:
        return np.full(len(measured.response_tokens), np.nan)
    return score.difficulty(measured)


def score_samples(measured: Measured, score: Score, has_prompt_and_response: np.ndarray) -> np.ndarray:
    """
    Returns `(N,)` float32 scores, of which the highest are selected; NaN where a sample has none.

    Args:
        has_prompt_and_response: `(N,)` bool. A sample without either has no score.
    """
    # float32, because scores.parquet stores float32: another selection from the stored losses must break the same ties.
    values = score.formula(measured).astype(np.float32)
    scores = -values if score.is_lowest_first else values
    return np.where(has_prompt_and_response, scores, np.nan).astype(np.float32)
