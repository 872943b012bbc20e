"""What a round begins with: which samples it scores, behind which exemplars, and earlier losses of the others."""

from dataclasses import dataclass, replace

import numpy as np

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.embeddings.vectors import Embeddings
from miwv_trainer.rounds.identity import Exemplars, TrainingPoint, get_one_shot_exemplars
from miwv_trainer.rounds.messages import explain_no_candidate, explain_nothing_scorable
from miwv_trainer.scoring.losses import Losses
from miwv_trainer.scoring.rows import find_scorable
from miwv_trainer.scoring.scorer import Scorer
from miwv_trainer.selection.choose import Choice, choose
from miwv_trainer.selection.guards import apply_guards
from miwv_trainer.selection.measured import Measured
from miwv_trainer.selection.rescoring import NEVER_SCORED, choose_samples_to_score
from miwv_trainer.selection.scores import (
    SCORES,
    compute_difficulty,
    get_draw_seed,
    get_score,
    has_losses,
    read_given_scores,
    score_samples,
)
from miwv_trainer.storage.stored_round import StoredRound


@dataclass(frozen=True)
class RoundInputs:
    """
    What a round begins with.

    Args:
        pool: N samples.
        exemplars: The exemplars of each sample, and how similar they are to it.
        config: What to select and how.
        context: Longest sequence, in tokens, that is forwarded.
        point: Where in training the round stands.
        previous: The round before, or None.
        earlier: What the round before measured; NaN if there is none or it is not needed.
        ages: `(N,)` rounds since each sample was scored; None if this round scores all.
        scored_behind: `(N, m)` indices of the exemplars that each sample is scored behind; `(N,)` its own if of none.
        is_scored: `(N,)` bool, the samples that this round scores.
    """

    pool: Pool
    exemplars: Exemplars
    config: MIWVConfig
    context: int
    point: TrainingPoint
    previous: StoredRound | None
    earlier: Measured
    ages: np.ndarray | None
    scored_behind: np.ndarray
    is_scored: np.ndarray

    def merge(self, losses: Losses) -> Measured:
        """What the round before measured, with the losses of the samples that this round scores."""
        return self.earlier.replace_losses(
            self.is_scored, losses.zero_shot, losses.one_shot, losses.response, losses.further
        )

    def choose(self, measured: Measured, embeddings: Embeddings | None = None) -> Choice:
        """The selection by the configuration's score, guards and budget."""
        return choose(measured, self.pool.has_prompt_and_response, self.config, self.pool.groups, embeddings)

    def without_diversity(self) -> "RoundInputs":
        """The same inputs without the options that need embeddings."""
        config = replace(self.config, diversity="none", max_selected_similarity=1.0)
        return replace(self, config=config)

    def score(self, measured: Measured) -> np.ndarray:
        """`(N,)` scores, NaN where a sample has none."""
        return score_samples(measured, get_score(self.config), self.pool.has_prompt_and_response)

    def find_lost(self, measured: Measured) -> np.ndarray:
        """`(N,)` bool, the samples that this round scores and that have no score for want of a finite loss."""
        is_missing = np.isnan(self.score(measured)) & ~has_losses(measured, get_score(self.config))
        return self.is_scored & is_missing

    def count_without_value(self, measured: Measured, scores: np.ndarray) -> int:
        """How many samples have all losses that the score needs and yet no score: nobody's exemplar, say."""
        has_all = self.pool.has_prompt_and_response & has_losses(measured, get_score(self.config))
        return int((np.isnan(scores) & has_all).sum())

    def rank(self, losses: Losses) -> tuple[np.ndarray, np.ndarray]:
        """
        `(N,)` the scores that each sample's losses count for, and `(N,)` their distances from the threshold of the
        selection, NaN where this round does not score.

        Guards count. Diversity does not, because it has no threshold. The highest value that a score allows is a
        threshold too: a sample that rounding moves across it enters or leaves at the top.
        """
        choice = self.without_diversity().choose(self.merge(losses))
        distances, most = choice.distances, get_score(self.config).most
        if most is not None:
            distances = np.fmin(distances, np.abs(choice.scores - np.float32(most)))
        scores = choice.scores
        if get_score(self.config).is_of_exemplars:
            # To know a score better, the samples that were scored behind it must be scored again: of several exemplars
            # the one that is nearest to the threshold decides.
            has_exemplar = self.scored_behind >= 0
            of_each, scores_of_each = (
                np.where(has_exemplar, part[self.scored_behind], np.nan) for part in (distances, scores)
            )
            nearest = np.where(np.isnan(of_each), np.inf, of_each).argmin(axis=1)[:, None]
            scores, distances = (np.take_along_axis(part, nearest, axis=1)[:, 0] for part in (scores_of_each, of_each))
        return scores, np.where(self.is_scored, distances, np.nan)


def prepare_inputs(
    scorer: Scorer,
    exemplars: Exemplars,
    point: TrainingPoint,
    previous: StoredRound | None,
    source: StoredRound | None = None,
) -> RoundInputs:
    """
    Decides what a round scores: all samples, in a later round with a `rescore_budget` a share of them, and none where
    it draws again from the scores of the round before.

    Args:
        source: A round of another run that holds the losses, so that this round scores nothing.

    Raises:
        ValueError: not one sample can be scored, or the guards that need no loss leave none.
    """
    pool, config = scorer.pool, scorer.config
    scored_behind = get_one_shot_exemplars(exemplars, config)
    needs_forwards = get_score(config).needs_forwards
    if source is None:
        can_score = find_scorable(pool, scored_behind, scorer.context)
    else:  # Whatever fits the context of this run, the losses are those of the other.
        can_score = has_losses(read_measured(source), get_score(config))
    if needs_forwards and not can_score.any():
        raise ValueError(explain_nothing_scorable(pool, scored_behind, scorer.context, scorer.has_proxys_context))
    nothing = np.full(len(pool), np.nan, dtype=np.float32)
    _check_guards(can_score if needs_forwards else pool.has_prompt_and_response, pool, exemplars, config)
    # Of seed and round, so that each round draws anew and a resumed one draws what it drew before.
    draw = get_draw_seed(config, point.number)
    given = read_given_scores(config, pool.column_scores, len(pool))
    earlier = Measured(
        nothing,
        nothing,
        exemplars.similarities,
        pool.response_tokens,
        draw,
        exemplars=exemplars.indices,
        given=given,
        further_exemplars=exemplars.further,
    )
    inputs = RoundInputs(
        pool, exemplars, config, scorer.context, point, previous, earlier, None, scored_behind, is_scored=can_score
    )
    nobody = np.zeros(len(pool), dtype=bool)
    if point.is_drawn_again and previous is not None:
        ages = previous.column("age")
        return replace(inputs, earlier=read_measured(previous, draw), ages=ages, is_scored=nobody)
    if not needs_forwards:
        return replace(inputs, is_scored=nobody)
    if source is not None:
        return _take_losses(inputs, source)
    if previous is None or config.rescore_budget == 1:
        return inputs
    return _limit_to_budget(inputs, previous)


def _take_losses(inputs: RoundInputs, source: StoredRound) -> RoundInputs:
    """The inputs of a round whose losses another run has measured, as if that had been the round before."""
    measured = read_measured(source, inputs.earlier.draw)
    ages = np.where(np.isfinite(measured.zero_shot_loss), 0, NEVER_SCORED)
    further = inputs.earlier.further_exemplars
    kept = (
        None if further is None or measured.further_losses is None else measured.further_losses[:, : further.shape[1]]
    )
    measured = replace(
        measured,
        given=inputs.earlier.given,
        further_exemplars=further,
        further_losses=kept,
        # What is selected, this run's tokenizer has made tokens of.
        response_tokens=inputs.pool.response_tokens,
    )
    return replace(inputs, earlier=measured, ages=ages, is_scored=np.zeros(len(inputs.pool), dtype=bool))


def _limit_to_budget(inputs: RoundInputs, previous: StoredRound) -> RoundInputs:
    """The inputs of a round that scores a share of the pool. The other samples keep what `previous` measured."""
    config, draw = inputs.config, inputs.earlier.draw
    measured, ages = read_measured(previous, draw), previous.column("age")
    # What guards leave out can never be selected, so it is not scored. Bands are no such guards: they are drawn on
    # losses, and a sample outside of them now may be inside after training.
    ranking = replace(inputs, config=config.without_bands()).without_diversity().choose(measured)
    may_be_scored = inputs.is_scored & ((ranking.cells >= 0) | np.isnan(ranking.scores))
    is_scored = choose_samples_to_score(ranking.ranked, ages, may_be_scored, config.rescore_budget, draw)
    return replace(inputs, earlier=measured, ages=ages, is_scored=is_scored)


def read_measured(current: StoredRound, draw: tuple[int, ...] = (0,)) -> Measured:
    """
    What a stored round has measured.

    Args:
        draw: Seed of the random score, from [`~miwv_trainer.selection.scores.get_draw_seed`].
    """
    return Measured(
        zero_shot_loss=current.column("zero_shot_loss"),
        one_shot_loss=current.column("one_shot_loss"),
        similarity=current.column("similarity"),
        response_tokens=current.column("response_tokens"),
        draw=draw,
        response_loss=current.column("response_loss"),
        exemplars=current.column("exemplar"),
        given=_find_given(current),
        further_exemplars=_cut(current.ranked("exemplar")),
        further_losses=_cut(current.ranked("one_shot_loss")),
    )


def _cut(ranked: np.ndarray) -> np.ndarray | None:
    """`(N, m - 1)` without the nearest; None if nothing is left."""
    return ranked[:, 1:] if ranked.shape[1] > 1 else None


def _find_given(current: StoredRound) -> np.ndarray | None:
    """`(N,)` the scores of the user's own by which a stored round was selected, if it was."""
    name = current.summary.get("config", {}).get("score")
    is_own = name is not None and (name not in SCORES or SCORES[name].is_given)
    return current.column("score") if is_own else None


def compute_difficulties(current: StoredRound, config: MIWVConfig) -> np.ndarray:
    """`(k,)` how hard each sample of a round's selection is, by the configuration's score."""
    return compute_difficulty(read_measured(current), get_score(config))[current.selection]


def _check_guards(is_candidate: np.ndarray, pool: Pool, exemplars: Exemplars, config: MIWVConfig) -> None:
    """Raises `ValueError` if the guards that need no loss leave nothing, before hours are spent on losses."""
    zeros = np.where(is_candidate, np.float32(0), np.float32(np.nan))
    measured = Measured(zeros, zeros, exemplars.similarities, pool.response_tokens, response_loss=zeros)
    is_left, left_out = apply_guards(zeros, measured, config.without_bands())
    if not is_left.any():
        raise ValueError(explain_no_candidate(left_out, measured, config))
