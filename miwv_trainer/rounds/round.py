"""One round, from pool to selection. Called by the callback and by the command line, on all ranks alike."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.distributed.wrappers import disable_compilation
from miwv_trainer.rounds.exemplars import find_embeddings
from miwv_trainer.rounds.identity import Exemplars, TrainingPoint, identify_round
from miwv_trainer.rounds.inputs import RoundInputs, prepare_inputs, read_measured
from miwv_trainer.rounds.messages import (
    describe_cost,
    explain_no_candidate,
    explain_no_finite_loss,
    log_left_out,
    warn_of_unscorable,
)
from miwv_trainer.rounds.reuse import find_finished, open_journal, read_earlier_seconds
from miwv_trainer.rounds.statistics import Cost, compute_statistics, count_epochs
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import count_planned_tokens
from miwv_trainer.scoring.losses import Losses
from miwv_trainer.scoring.refine import Refined, score_refined
from miwv_trainer.scoring.rows import restrict_exemplars
from miwv_trainer.scoring.scorer import Scorer
from miwv_trainer.selection.budget import count_selected
from miwv_trainer.selection.choose import Choice
from miwv_trainer.selection.rescoring import update_ages
from miwv_trainer.selection.scores import Measured, compute_difficulty, get_score
from miwv_trainer.storage.journal import Journal
from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import RoundIdentity, RoundNotes, RoundSummary, StoredRound

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredRound:
    """
    This round's losses.

    Args:
        refined: Losses of all samples that the round scores.
        layout: How samples shared a forward; `"none"` where nothing was forwarded.
        earlier_seconds: What attempts at the same round took that were killed.
        journal: What the losses were noted in, or None.
    """

    refined: Refined
    layout: str = "none"
    earlier_seconds: float = 0.0
    journal: Journal | None = None

    def forget(self) -> None:
        """Removes the journal of a round that cannot be finished: begun again, it would end the same."""
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

    What a killed attempt at the same round has scored is not scored again, and a round that was finished is read.
    Scores that need no forward make none.

    Args:
        point: Where in training the round stands; by default round 0, before the first step.
        notes: Entries that are added to round.json.
        previous: The round before, from which samples beyond `rescore_budget` keep their scores.

    Raises:
        ValueError: not one sample could be scored, or the guards leave none.
    """
    started, notes, point = time.perf_counter(), notes or RoundNotes(), point or TrainingPoint()
    config, world = scorer.config, scorer.world
    inputs = prepare_inputs(scorer, exemplars, point, previous)
    with (
        leave_no_trace(scorer.model),
        disable_compilation(scorer.model),
        _tell_interruption(store, point.number, world),
    ):
        identity = identify_round(scorer, exemplars, point, previous)
        before = find_finished(store, identity, config, notes.get("rows"), world)
        if before is not None:
            if world.is_main:
                logger.info("Round %d was finished before and is read from %s.", point.number, before.folder)
            return replace(before, was_there=True)
        scored = (
            _score(scorer, inputs, store, identity) if get_score(config).needs_forwards else _score_nothing(inputs.pool)
        )
    seconds = time.perf_counter() - started + scored.earlier_seconds
    measured = inputs.merge(scored.refined.losses)
    choice = _select(scorer, inputs, measured, scored, store)
    cost = _add_up(scored, seconds, inputs, choice)
    described = {**identity, **_summarise(inputs, choice), **cost.to_summary(), "processes": world.size, **notes}
    described["model"] = scorer.model.config.name_or_path  # empty where the model was made here
    described["statistics"] = compute_statistics(choice, measured, inputs.is_scored, cost, previous)
    return _write(
        scored, store, point.number, _make_columns(inputs, measured, choice), cast(RoundSummary, described), world
    )


def compute_difficulties(current: StoredRound, config: MIWVConfig) -> np.ndarray:
    """`(k,)` how hard each sample of a round's selection is."""
    return compute_difficulty(read_measured(current), get_score(config))[current.selection]


def _score_nothing(pool: Pool) -> ScoredRound:
    nothing = np.full(len(pool), np.nan, dtype=np.float32)
    return ScoredRound(Refined(Losses(nothing, nothing, 0)))


def _score(scorer: Scorer, inputs: RoundInputs, store: Store, identity: RoundIdentity) -> ScoredRound:
    """The losses of the samples that the round scores, by the plan that its journal holds."""
    journal, plan = open_journal(scorer, inputs.shown, store, identity)
    scorer = scorer.follow(plan)
    earlier, refined_earlier = read_earlier_seconds(journal, scorer.world)
    exemplars = restrict_exemplars(inputs.is_scored, inputs.shown)
    tokens = count_planned_tokens(scorer, exemplars, plan.layout)
    if scorer.world.is_main:
        number, previous = inputs.point.number, inputs.previous
        logger.info(describe_cost(number, inputs.is_scored, tokens, inputs.pool, inputs.config, previous))
    refined = score_refined(scorer, exemplars, plan.layout, inputs.rank, journal)
    refined = replace(refined, seconds=refined.seconds + refined_earlier)
    journal.close()
    return ScoredRound(refined, plan.layout, earlier + refined_earlier, journal)


def _select(scorer: Scorer, inputs: RoundInputs, measured: Measured, scored: ScoredRound, store: Store) -> Choice:
    """The choice of rank 0, on every rank: only rank 0 holds embeddings."""
    config, world, number = inputs.config, scorer.world, inputs.point.number
    is_lost = inputs.is_scored & np.isnan(inputs.score(measured))
    if inputs.is_scored.any() and is_lost[inputs.is_scored].all():
        if world.is_main:
            scored.forget()
        raise ValueError(explain_no_finite_loss())
    if world.is_main and get_score(config).needs_forwards:
        warn_of_unscorable(number, inputs.pool, inputs.shown, inputs.context, is_lost)
    embeddings = find_embeddings(scorer, store, may_embed=number == 0) if config.needs_embeddings else None
    found: Any = None
    with world.run_together("selecting"):
        if world.is_main:
            found = inputs.choose(measured, embeddings)
            if not len(found.selection):
                scored.forget()
                raise ValueError(explain_no_candidate(found.left_out))
            log_left_out(number, found)
    return world.broadcast_from_main(found)


def _add_up(scored: ScoredRound, seconds: float, inputs: RoundInputs, choice: Choice) -> Cost:
    """What the round took; `seconds` is the time of all attempts together."""
    refined, pool = scored.refined, inputs.pool
    tokens = refined.losses.tokens_forwarded
    samples_per_epoch = count_selected(inputs.config.fraction, len(pool))
    return Cost(
        scored=int(inputs.is_scored.sum()),
        tokens=tokens - refined.tokens,
        seconds=seconds,
        epochs=count_epochs(tokens, pool, choice.selection, samples_per_epoch),
        layout=scored.layout,
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
    """Writes the round on rank 0, in the place of one of that number, and removes its journal."""
    finished: Any = None
    with world.run_together("writing the round"):
        if world.is_main:
            store.archive_rounds(number)
            finished = store.write_round(number, columns, summary)
            store.delete_journal(number)
    finished = world.broadcast_from_main(finished)
    if scored.journal is not None:
        # Rank 0 has deleted the whole journal, but may not see the disk of this rank's machine.
        scored.journal.delete_file()
    return finished


def _make_columns(inputs: RoundInputs, measured: Measured, choice: Choice) -> dict[str, np.ndarray]:
    """The columns of scores.parquet."""
    unscored = np.isnan(choice.scores)
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
    }


def _summarise(inputs: RoundInputs, choice: Choice) -> dict[str, Any]:
    """What round.json says of pool, configuration and selection."""
    pool = inputs.pool
    return {
        "epoch": inputs.point.epoch,
        "fraction": inputs.config.fraction,
        "number_selected": len(choice.selection),
        "samples": len(pool),
        "unscorable": int(np.isnan(choice.scores).sum()),
        "pool_tokens": int(pool.lengths.sum()) + len(pool) * len(pool.preamble),
        "left_out": choice.left_out,
        "config": inputs.config.to_dict(),
    }


@contextmanager
def _tell_interruption(store: Store, number: int, world: World) -> Iterator[None]:
    """Says what becomes of a round that is interrupted by hand."""
    try:
        yield
    except KeyboardInterrupt:
        if world.is_main and store.journal_folder(number).is_dir():
            logger.warning(
                "Round %d was interrupted. What it has scored is kept in %s: the same run, begun again, goes on from "
                "there.", number, store.journal_folder(number),
            )  # fmt: skip
        raise
