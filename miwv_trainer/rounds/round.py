"""
One round, from pool to selection: score, select, write. The callback and the command line call it, on all ranks alike.

Losses are computed on all ranks. Only rank 0 selects and writes, because only it holds the embeddings and only its disk
counts; the others get its result.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import cast

import numpy as np

from miwv_trainer.config import MIWVConfig, describe_embedder
from miwv_trainer.data.pool import Pool
from miwv_trainer.data.sample_hashes import hash_pool_content
from miwv_trainer.distributed.agreement import check_same_scores
from miwv_trainer.distributed.world import World
from miwv_trainer.distributed.wrappers import disable_compilation, get_inner_model
from miwv_trainer.embeddings.exemplar_facts import explain_degenerate, measure_exemplars
from miwv_trainer.own_scores import describe_score, is_function
from miwv_trainer.rounds.exemplars import find_embeddings
from miwv_trainer.rounds.identity import Exemplars, TrainingPoint, identify_round
from miwv_trainer.rounds.inputs import RoundInputs, prepare_inputs
from miwv_trainer.rounds.messages import (
    describe_cost,
    explain_no_candidate,
    explain_no_finite_loss,
    tell_left_out,
    warn_of_unmeasured,
    warn_of_unscorable,
)
from miwv_trainer.rounds.proxy import check_proxy, renew_check
from miwv_trainer.rounds.reuse import find_finished, open_journal, read_earlier_seconds
from miwv_trainer.rounds.source import describe_origin, hash_losses, read_source
from miwv_trainer.rounds.statistics import Cost, compute_statistics, count_epochs
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import count_planned_tokens, find_attention
from miwv_trainer.scoring.losses import Losses
from miwv_trainer.scoring.refine import Ranking, Refined, score_refined
from miwv_trainer.scoring.rows import restrict_exemplars
from miwv_trainer.scoring.scorer import Scorer
from miwv_trainer.selection.budget import count_selected
from miwv_trainer.selection.choose import Choice
from miwv_trainer.selection.measured import Measured
from miwv_trainer.selection.rescoring import update_ages
from miwv_trainer.selection.scores import get_score, has_losses
from miwv_trainer.storage.journal import Journal
from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import HASHES, RoundIdentity, RoundNotes, RoundSummary, StoredRound
from miwv_trainer.version import __version__

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredRound:
    """
    The losses of a round that is not yet written.

    Args:
        refined: Losses of all samples that the round scores.
        layout: How samples shared a forward; `"none"` if nothing was forwarded.
        attention: How layers attended in rows of trees; `"none"` if there were none.
        earlier_seconds: Time that killed attempts at the same round took.
        forward_seconds: Time of the pass over the pool in all attempts, without checks and refinement.
        journal: The file that the losses were written to; None if nothing was forwarded.
    """

    refined: Refined
    layout: str = "none"
    attention: str = "none"
    earlier_seconds: float = 0.0
    forward_seconds: float = 0.0
    journal: Journal | None = None

    def forget(self) -> None:
        """Deletes the journal of a round that cannot be finished. Resumed from it, the round would fail again."""
        if self.journal is not None:
            self.journal.delete_folder()


def run_round(
    scorer: Scorer,
    exemplars: Exemplars,
    store: Store,
    point: TrainingPoint | None = None,
    notes: RoundNotes | None = None,
    previous: StoredRound | None = None,
) -> StoredRound:
    """
    Scores the pool with the model as it is, selects, and writes the round. Leaves no trace in the model.

    Losses that a killed attempt at the same round has computed are read from its journal. A round that was finished
    before is read instead. A score that needs no forward runs none.

    Args:
        point: Where in training the round stands; by default round 0, before the first step.
        notes: Entries that are added to round.json.
        previous: The round before, from which samples beyond `rescore_budget` keep their scores.

    Raises:
        ValueError: not one sample could be scored, or the guards leave none.
    """
    started, notes, point = time.perf_counter(), notes or RoundNotes(), point or TrainingPoint()
    config, world = scorer.config, scorer.world
    source = read_source(scorer, store) if point.number == 0 else None
    inputs = prepare_inputs(scorer, exemplars, point, previous, source)
    if inputs.earlier.given is not None:
        check_same_scores(inputs.earlier.given, f"`score` {describe_score(config.score)}", world)
    with (
        leave_no_trace(scorer.model),
        disable_compilation(scorer.model),
        _tell_interruption(store, point.number, world),
    ):
        identity = identify_round(scorer, exemplars, point, previous, hash_losses(source) if source else None)
        finished = find_finished(store, identity, config, notes.get("rows"), world)
        if finished is not None:
            if world.is_main:
                logger.info("Round %d was finished before and is read from %s.", point.number, finished.folder)
            return replace(renew_check(scorer, inputs, store, finished), was_there=True)
        is_forwarded = source is None and get_score(config).needs_forwards and not point.is_drawn_again
        scored = _score(scorer, inputs, store, identity) if is_forwarded else _score_nothing(inputs.pool)
    seconds = time.perf_counter() - started + scored.earlier_seconds
    measured = inputs.merge(scored.refined.losses)
    proxy = check_proxy(scorer, inputs, scored.refined.losses, scored.forward_seconds)
    choice = _select(scorer, inputs, measured, scored, store, source)
    cost = _add_up(scored, seconds, inputs, choice)
    summary = {
        **identity,
        **_summarise(inputs, measured, choice),
        **cost.to_summary(),
        "processes": world.size,
        **notes,
    }
    if proxy is not None:
        summary["proxy"] = proxy
    if world.is_main:
        summary |= _describe_model(scorer, source)
    summary["statistics"] = compute_statistics(choice, measured, inputs.is_scored, cost, previous)
    summary |= _judge_exemplars(exemplars, config, point.number == 0 and world.is_main)
    columns = _make_columns(inputs, measured, choice)
    return _write(scored, store, point.number, columns, cast(RoundSummary, summary), world)


def _describe_model(scorer: Scorer, source: StoredRound | None) -> dict[str, object]:
    """Entries of round.json about what made the losses, and when."""
    if source is not None:
        origin = describe_origin(source, scorer.config.match)
        return {"model": origin["model"], "scores_from": origin}
    # The name is empty if the model was not loaded but made in this process.
    return {"model": get_inner_model(scorer.model).config.name_or_path}


def _judge_exemplars(exemplars: Exemplars, config: MIWVConfig, warns: bool) -> dict[str, object]:
    """What round.json says of the exemplars as a whole: the same in all rounds of a run, and logged in the first."""
    facts = measure_exemplars(exemplars.indices, exemplars.similarities)
    if facts is None:
        return {}
    warning = explain_degenerate(facts, f"`embedder={describe_embedder(config.embedder)!r}`")
    if warning is not None and warns:
        logger.warning(warning)
    return {"exemplars": facts.to_dict()} | ({"exemplar_warning": warning} if warning is not None else {})


def _score_nothing(pool: Pool) -> ScoredRound:
    """The losses of a round whose score needs none."""
    nothing = np.full(len(pool), np.nan, dtype=np.float32)
    return ScoredRound(Refined(Losses(nothing, nothing, 0)))


def _score(scorer: Scorer, inputs: RoundInputs, store: Store, identity: RoundIdentity) -> ScoredRound:
    """The losses of the samples that the round scores, by the plan that its journal holds."""
    journal, plan = open_journal(scorer, inputs.scored_behind, store, identity)
    # Free memory may be less now than when the round began; its plan holds what was measured then.
    scorer = scorer.follow(plan)
    earlier, refined_earlier = read_earlier_seconds(journal, scorer.world)
    exemplars = restrict_exemplars(inputs.is_scored, inputs.scored_behind)
    tokens = count_planned_tokens(scorer, exemplars, plan.layout)
    if scorer.world.is_main:
        number, previous = inputs.point.number, inputs.previous
        logger.info(describe_cost(number, inputs.is_scored, tokens, inputs.pool, inputs.config, previous))
    ranking = _rank_alike(inputs, scorer.world) if is_function(inputs.config.score) else inputs.rank
    # Before the refinement, which may attend otherwise: variable-length attention does not compute in float32.
    attention = find_attention(scorer, plan.layout)
    refined = score_refined(scorer, exemplars, plan.layout, ranking, journal)
    refined = replace(refined, seconds=refined.seconds + refined_earlier)
    journal.close()
    seconds = earlier + refined.first_seconds
    return ScoredRound(refined, plan.layout, attention, earlier + refined_earlier, seconds, journal)


def _rank_alike(inputs: RoundInputs, world: World) -> Ranking:
    """The ranking by a function of the user's, compared over ranks: ranks that differed would score other samples."""

    def rank(losses: Losses) -> tuple[np.ndarray, np.ndarray]:
        _check_function(inputs, inputs.merge(losses), world)
        return inputs.rank(losses)

    return rank


def _check_function(inputs: RoundInputs, measured: Measured, world: World) -> None:
    """Raises `ValueError` on all ranks where the user's function fails on one, or gives ranks different scores."""
    with world.run_together("computing the scores"):
        scores = inputs.score(measured)
    check_same_scores(scores, f"`score` {describe_score(inputs.config.score)}", world)


def _select(
    scorer: Scorer,
    inputs: RoundInputs,
    measured: Measured,
    scored: ScoredRound,
    store: Store,
    source: StoredRound | None,
) -> Choice:
    """
    The choice of rank 0, on every rank.

    Args:
        source: The round of another run whose losses these are, or None.

    Raises:
        ValueError: not one loss is finite, or the guards leave no sample.
    """
    config, world, number = inputs.config, scorer.world, inputs.point.number
    if is_function(config.score):
        _check_function(inputs, measured, world)
    is_lost = inputs.find_lost(measured)
    # Float16 that overflows and damaged weights give NaN everywhere. A selection of nothing would train on nothing.
    if inputs.is_scored.any() and is_lost[inputs.is_scored].all():
        if world.is_main:
            scored.forget()
        raise ValueError(explain_no_finite_loss(is_proxy=scorer.stands_for is not None))
    if world.is_main and get_score(config).needs_forwards and not inputs.point.is_drawn_again:
        if source is None:
            warn_of_unscorable(
                number, inputs.pool, inputs.scored_behind, inputs.context, is_lost, scorer.has_proxys_context
            )
        else:
            warn_of_unmeasured(number, has_losses(measured, get_score(config)), str(source.folder))
    embeddings = find_embeddings(scorer, store, may_embed=number == 0) if config.needs_embeddings else None
    choice: Choice | None = None
    with world.run_together("selecting"):
        if world.is_main:
            choice = inputs.choose(measured, embeddings)
            if not len(choice.selection):
                scored.forget()
                raise ValueError(explain_no_candidate(choice.left_out, measured, config))
            tell_left_out(number, choice, config, inputs.count_without_value(measured, choice.scores))
    return cast(Choice, world.broadcast_from_main(choice))


def _add_up(scored: ScoredRound, seconds: float, inputs: RoundInputs, choice: Choice) -> Cost:
    """What the round cost. `seconds` is the time of all attempts together."""
    refined, pool = scored.refined, inputs.pool
    tokens = refined.losses.tokens_forwarded
    samples_per_epoch = count_selected(inputs.config.fraction, len(pool))
    return Cost(
        scored=int(inputs.is_scored.sum()),
        tokens=tokens - refined.tokens,
        seconds=seconds,
        epochs=count_epochs(tokens, pool, choice.selection, samples_per_epoch),
        layout=scored.layout,
        attention=scored.attention,
        refined=refined,
    )


def _write(
    scored: ScoredRound,
    store: Store,
    number: int,
    columns: Mapping[str, np.ndarray],
    summary: RoundSummary,
    world: World,
) -> StoredRound:
    """Writes the round on rank 0, in the place of an earlier one of that number, and deletes its journal."""
    finished: StoredRound | None = None
    with world.run_together("writing the round"):
        if world.is_main:
            # A round of that number with another identity is of an earlier run, and so are all that follow it.
            store.archive_rounds(number)
            finished = store.write_round(number, columns, summary)
            store.delete_journal(number)
    written = cast(StoredRound, world.broadcast_from_main(finished))
    if scored.journal is not None:
        # Rank 0 has deleted the whole journal, but may not see the disk of this rank's machine.
        scored.journal.delete_file()
    return written


def _make_columns(inputs: RoundInputs, measured: Measured, choice: Choice) -> dict[str, np.ndarray]:
    """The columns of scores.parquet."""
    # A sample that has its losses keeps them, although a score of the user's own may be NaN.
    unscored = np.isnan(choice.scores) & ~has_losses(measured, get_score(inputs.config))
    selected = np.zeros(len(inputs.pool), dtype=bool)
    selected[choice.selection] = True
    return {
        "index": np.arange(len(inputs.pool)),
        "exemplar": inputs.exemplars.indices,
        "similarity": inputs.exemplars.similarities,
        "prompt_tokens": inputs.pool.prompt_tokens,
        "response_tokens": inputs.pool.response_tokens,
        "zero_shot_loss": np.where(unscored, np.nan, measured.zero_shot_loss),
        "one_shot_loss": np.where(unscored, np.nan, measured.one_shot_loss),
        "miwv": np.where(unscored, np.nan, measured.miwv),
        "selected": selected,
        "score": choice.scores,
        "age": update_ages(inputs.is_scored, inputs.ages),
        "response_loss": np.where(unscored, np.nan, _fill(measured.response_loss, len(unscored))),
        **_list_further(inputs, measured, unscored),
        **_list_hashes(inputs.pool),
    }


def _list_further(inputs: RoundInputs, measured: Measured, unscored: np.ndarray) -> dict[str, np.ndarray]:
    """The columns about each sample's further exemplars; none if each has one."""
    further = inputs.exemplars.further
    if further is None:
        return {}
    losses = np.full(further.shape, np.nan) if measured.further_losses is None else measured.further_losses
    return {
        "further_exemplars": further,
        "further_similarities": inputs.exemplars.ranked_similarities[:, 1:],
        "further_losses": np.where(unscored[:, None], np.nan, losses),
    }


def _fill(losses: np.ndarray | None, count: int) -> np.ndarray:
    return np.full(count, np.nan, dtype=np.float32) if losses is None else losses


def _list_hashes(pool: Pool) -> dict[str, np.ndarray]:
    if pool.hashes is None:
        return {}
    return dict(zip(HASHES, (pool.hashes.ids, pool.hashes.text, pool.hashes.words, pool.hashes.answer), strict=True))


def _summarise(inputs: RoundInputs, measured: Measured, choice: Choice) -> dict[str, object]:
    """Entries of round.json about pool, configuration and selection."""
    pool = inputs.pool
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "library": __version__,
        "epoch": inputs.point.epoch,
        "fraction": inputs.config.fraction,
        "number_selected": len(choice.selection),
        "samples": len(pool),
        "unscorable": int(np.isnan(choice.scores).sum()),
        "without_value": inputs.count_without_value(measured, choice.scores),
        "pool_tokens": int(pool.lengths.sum()) + len(pool) * len(pool.preamble),
        "pool_content": hash_pool_content(pool),
        "left_out": choice.left_out,
        "config": inputs.config.to_dict(),
        **_tell_where_texts_are_from(pool),
        **({"drawn_from": inputs.point.number - 1} if inputs.point.is_drawn_again else {}),
    }


def _tell_where_texts_are_from(pool: Pool) -> dict[str, object]:
    return {} if pool.hashes is None else {"texts_from": "columns" if pool.hashes.from_columns else "tokens"}


@contextmanager
def _tell_interruption(store: Store, number: int, world: World) -> Iterator[None]:
    """Tells a user who presses Ctrl-C that what was scored is kept, and where."""
    try:
        yield
    except KeyboardInterrupt:
        if world.is_main and store.journal_folder(number).is_dir():
            logger.warning(
                "Round %d was interrupted. What it has scored is kept in %s: the same run, begun again, goes on from "
                "there.", number, store.journal_folder(number),
            )  # fmt: skip
        raise
