"""One round, from pool to selection. Called by the callback and by the command line, on all ranks alike."""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.distributed.wrappers import disable_compilation, is_prompt_tuned, unwrap_model
from miwv_trainer.rounds.exemplars import find_embeddings
from miwv_trainer.rounds.identity import Exemplars, TrainingPoint, identify, one_shot_exemplars
from miwv_trainer.rounds.messages import (
    cost_line,
    log_left_out,
    no_candidate,
    no_finite_loss,
    nothing_scorable,
    warn_of_unscorable,
)
from miwv_trainer.rounds.reuse import earlier_seconds, finished_before, open_journal
from miwv_trainer.rounds.statistics import Cost, statistics
from miwv_trainer.scoring.isolation import no_trace
from miwv_trainer.scoring.layout import context_length, planned_tokens, text_config
from miwv_trainer.scoring.losses import Losses
from miwv_trainer.scoring.refine import Refined, score_refined
from miwv_trainer.scoring.rows import exemplars_of, scorable
from miwv_trainer.selection.budget import count_selected
from miwv_trainer.selection.choose import Choice, choose
from miwv_trainer.selection.guards import apply_guards
from miwv_trainer.selection.rescoring import choose_samples_to_score, update_ages
from miwv_trainer.selection.scores import Measured, compute_difficulty, get_draw_seed, get_score, score_samples
from miwv_trainer.storage.journal import Journal
from miwv_trainer.storage.store import Store, StoredRound

logger = logging.getLogger(__name__)


def check_model(model: Any, pool: Pool) -> None:
    """
    Raises `ValueError` where MIWV is not defined for the model, or the pool is not in its vocabulary.
    """
    config = model.config
    if config.is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder model; MIWV is defined for causal language models, where "
            "the exemplar stands before the sample in one sequence."
        )
    if is_prompt_tuned(model):
        raise ValueError(
            "The model is prompt-tuned by PEFT: its virtual tokens shift every position, and losses would be read at "
            "the wrong ones. Train LoRA, another adapter, or the whole model."
        )
    vocabulary = text_config(model).vocab_size
    tokens = np.concatenate([pool.preamble, pool.tokens])
    wrong = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if len(wrong):
        raise ValueError(
            f"The pool holds token id {wrong.max()}, but the model's vocabulary has {vocabulary} entries: the pool was "
            "tokenised with another tokenizer. Tokenise it with the model's own, or resize the embeddings."
        )


@dataclass(frozen=True)
class RoundInputs:
    """
    What a round begins with.

    Args:
        before: What is known of the samples from the round before; no losses where there is none.
        ages: `(N,)` rounds since they were scored, or None.
        behind: `(N,)` the exemplars that samples are scored behind.
        is_scored: `(N,)` which samples this round scores.
    """

    pool: Pool
    exemplars: Exemplars
    config: MIWVConfig
    moment: TrainingPoint
    previous: StoredRound | None
    before: Measured
    ages: np.ndarray | None
    behind: np.ndarray
    is_scored: np.ndarray

    def merged(self, losses: Losses) -> Measured:
        """What is known with this round's losses."""
        return self.before.updated(self.is_scored, losses.zero_shot, losses.one_shot)

    def choice(self, measured: Measured, embeddings: Any = None) -> Choice:
        return choose(measured, self.pool.has_prompt_and_response, self.config, self.pool.groups, embeddings)

    def by_score(self) -> "RoundInputs":
        """Without what looks at embeddings."""
        plain = replace(self.config, diversity="none", max_selected_similarity=1.0)
        return replace(self, config=plain)

    def scores(self, measured: Measured) -> np.ndarray:
        return score_samples(measured, get_score(self.config), self.pool.has_prompt_and_response)

    def ranking(self, losses: Losses) -> tuple[np.ndarray, np.ndarray]:
        """Scores, and distances from the threshold that the guards leave; diversity has none."""
        choice = self.by_score().choice(self.merged(losses))
        return choice.scores, np.where(self.is_scored, choice.distances, np.nan)


@dataclass(frozen=True)
class ScoredRound:
    """This round's losses, and what they took besides this attempt at it."""

    refined: Refined
    layout: str = "none"
    earlier_seconds: float = 0.0
    journal: Journal | None = None


def run_round(
    model: nn.Module,
    pool: Pool,
    exemplars: Exemplars,
    config: MIWVConfig,
    store: Store,
    world: World,
    moment: TrainingPoint,
    notes: Mapping[str, Any] | None = None,
    previous: StoredRound | None = None,
) -> StoredRound:
    """
    Scores the pool with the model as it is, selects, and writes the round, with `notes` in its round.json. Leaves no
    trace in the model.

    What a killed attempt at the same round has scored is not scored again, and a round that was finished is read. Of a
    model in DataParallel, DistributedDataParallel, a DeepSpeed engine or `torch.compile` the module inside is scored.
    Scores that need no forward make none.

    Args:
        previous: The round before, from which samples beyond `rescore_budget` keep their scores.

    Raises:
        ValueError: not one sample could be scored, or the guards leave none.
    """
    started = time.perf_counter()
    model = unwrap_model(model)
    work = prepare_inputs(model, pool, exemplars, config, moment, previous)
    with no_trace(model), disable_compilation(model), _resumable(store, moment.number, world):
        identity = identify(model, pool, exemplars, config, world, moment, previous)
        before = finished_before(store, identity, config, (notes or {}).get("rows"), world)
        if before is not None:
            if world.is_main:
                logger.info("Round %d was finished before and is read from %s.", moment.number, before.folder)
            return replace(before, was_there=True)
        needs_forwards = get_score(config).needs_forwards
        scored = _score(model, work, store, world, identity) if needs_forwards else _nothing_scored(pool)
    seconds = time.perf_counter() - started + scored.earlier_seconds
    measured = work.merged(scored.refined.losses)
    choice = _selected(model, work, measured, scored, store, world)
    epoch = count_selected(config.fraction, len(pool))
    cost = Cost.of(scored.refined, scored.layout, seconds, work.is_scored, pool, choice, epoch)
    described = {**identity, **_summary(work, choice), **cost.described(), "processes": world.size, **(notes or {})}
    described["model"] = _name(model)
    described["statistics"] = statistics(choice, measured, work.is_scored, cost, previous)
    finished: Any = None
    with world.run_together("writing the round"):
        if world.is_main:
            store.set_aside(moment.number)
            finished = store.write_round(moment.number, _columns(work, measured, choice), described)
            shutil.rmtree(store.journal_folder(moment.number), ignore_errors=True)
    finished = world.broadcast_from_main(finished)
    if scored.journal is not None:
        scored.journal.path.unlink(missing_ok=True)  # on a machine whose disk rank 0 does not see
    return finished


def difficulties_of(current: StoredRound, config: MIWVConfig) -> np.ndarray:
    """`(k,)` how hard each sample of a round's selection is."""
    return compute_difficulty(measured_of(current), get_score(config))[current.selection]


def measured_of(current: StoredRound, draw: tuple[int, ...] = (0,)) -> Measured:
    """What a round has measured."""
    zero_shot, one_shot = current.column("zero_shot_loss"), current.column("one_shot_loss")
    return Measured(zero_shot, one_shot, current.column("similarity"), current.column("response_tokens"), draw)


def prepare_inputs(
    model: nn.Module,
    pool: Pool,
    exemplars: Exemplars,
    config: MIWVConfig,
    moment: TrainingPoint,
    previous: StoredRound | None,
) -> RoundInputs:
    context, behind = context_length(model, config), one_shot_exemplars(exemplars, config)
    can_score = scorable(pool, behind, context)
    needs_forwards = get_score(config).needs_forwards
    if needs_forwards and not can_score.any():
        raise ValueError(nothing_scorable(pool, behind, context))
    nothing = np.full(len(pool), np.nan, dtype=np.float32)
    _check_guards(can_score if needs_forwards else pool.has_prompt_and_response, pool, exemplars, config)
    draw = get_draw_seed(config, moment.number)
    before = Measured(nothing, nothing, exemplars.similarities, pool.response_tokens, draw)
    work = RoundInputs(pool, exemplars, config, moment, previous, before, None, behind, can_score)
    if not needs_forwards:
        return replace(work, is_scored=np.zeros(len(pool), dtype=bool))
    if previous is None or config.rescore_budget == 1:
        return work
    known, ages = measured_of(previous, draw), previous.column("age")
    last = replace(work, config=config.without_bands()).by_score().choice(known)
    # What the other guards leave out can never be selected; losses and scores change.
    may_be_scored = can_score & ((last.cells >= 0) | np.isnan(last.scores))
    is_scored = choose_samples_to_score(last.ranked, ages, may_be_scored, config.rescore_budget, draw)
    return replace(work, before=known, ages=ages, is_scored=is_scored)


def _check_guards(may: np.ndarray, pool: Pool, exemplars: Exemplars, config: MIWVConfig) -> None:
    """Raises `ValueError` where the guards that need no loss leave nothing, before hours are spent on losses."""
    alike = np.where(may, np.float32(0), np.float32(np.nan))
    known = Measured(alike, alike, exemplars.similarities, pool.response_tokens)
    is_left, left_out = apply_guards(alike, known, config.without_bands())
    if not is_left.any():
        raise ValueError(no_candidate(left_out))


def _name(model: Any) -> str:
    """What the model was loaded by; empty where it was made here."""
    return model.config.name_or_path


def _nothing_scored(pool: Pool) -> ScoredRound:
    nothing = np.full(len(pool), np.nan, dtype=np.float32)
    return ScoredRound(Refined(Losses(nothing, nothing, 0)))


def _score(model: nn.Module, work: RoundInputs, store: Store, world: World, identity: Mapping[str, Any]) -> ScoredRound:
    pool, config, moment = work.pool, work.config, work.moment
    journal = open_journal(model, pool, replace(work.exemplars, indices=work.behind), config, store, world, identity)
    layout = journal.header["layout"]
    earlier, refined_earlier = earlier_seconds(journal, world)
    behind = exemplars_of(work.is_scored, work.behind)
    tokens = planned_tokens(model, pool, behind, config, layout, world)
    if world.is_main:
        logger.info(cost_line(moment.number, work.is_scored, tokens, pool, config, work.previous))
    refined = score_refined(model, pool, behind, config, layout, world, work.ranking, world.shows_progress, journal)
    refined = replace(refined, seconds=refined.seconds + refined_earlier)
    journal.close()
    return ScoredRound(refined, layout, earlier + refined_earlier, journal)


def _selected(
    model: nn.Module, work: RoundInputs, measured: Measured, scored: ScoredRound, store: Store, world: World
) -> Choice:
    """The choice of rank 0, on every rank: only rank 0 holds embeddings."""
    config = work.config
    is_lost = work.is_scored & np.isnan(work.scores(measured))
    if work.is_scored.any() and is_lost[work.is_scored].all():
        if world.is_main:
            _forget(scored)
        raise ValueError(no_finite_loss())
    if world.is_main and get_score(config).needs_forwards:
        warn_of_unscorable(work.moment.number, work.pool, work.behind, context_length(model, config), is_lost)
    embeddings = None
    if config.needs_embeddings:
        may_embed = work.moment.number == 0
        embeddings = find_embeddings(model, work.pool, config, store, world, may_embed)
    found: Any = None
    with world.run_together("selecting"):
        if world.is_main:
            found = work.choice(measured, embeddings)
            if not len(found.selection):
                _forget(scored)
                raise ValueError(no_candidate(found.left_out))
            log_left_out(work.moment.number, found)
    return world.broadcast_from_main(found)


def _forget(scored: ScoredRound) -> None:
    """Removes the journal of a round that cannot be finished: begun again, it would end the same."""
    if scored.journal is not None:
        shutil.rmtree(scored.journal.folder, ignore_errors=True)


def _columns(work: RoundInputs, measured: Measured, choice: Choice) -> dict[str, np.ndarray]:
    unscored = np.isnan(choice.scores)
    selected = np.zeros(len(work.pool), dtype=bool)
    selected[choice.selection] = True
    return {
        "index": np.arange(len(work.pool)),
        "exemplar": work.exemplars.indices,
        "similarity": work.exemplars.similarities,
        "prompt_tokens": work.pool.prompt_tokens,
        "response_tokens": work.pool.response_tokens,
        "zero_shot_loss": np.where(unscored, np.nan, measured.zero_shot_loss),
        "one_shot_loss": np.where(unscored, np.nan, measured.one_shot_loss),
        "miwv": np.where(unscored, np.nan, measured.miwv),
        "selected": selected,
        "score": choice.scores,
        "age": update_ages(work.is_scored, work.ages),
    }


def _summary(work: RoundInputs, choice: Choice) -> dict[str, Any]:
    pool = work.pool
    return {
        "epoch": work.moment.epoch,
        "fraction": work.config.fraction,
        "number_selected": len(choice.selection),
        "samples": len(pool),
        "unscorable": int(np.isnan(choice.scores).sum()),
        "pool_tokens": int(pool.lengths.sum()) + len(pool) * len(pool.preamble),
        "left_out": choice.left_out,
        "config": work.config.to_dict(),
    }


@contextmanager
def _resumable(store: Store, number: int, world: World) -> Iterator[None]:
    """Says, where a round is interrupted by hand, what becomes of it."""
    try:
        yield
    except KeyboardInterrupt:
        if world.is_main and store.journal_folder(number).is_dir():
            logger.warning(
                "Round %d was interrupted. What it has scored is kept in %s: the same run, begun again, goes on from "
                "there.", number, store.journal_folder(number),
            )  # fmt: skip
        raise
