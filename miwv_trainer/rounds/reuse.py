"""Rounds and journals that are the same as those of an earlier process, so that nothing is scored twice."""

import logging

import numpy as np

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import find_complete_samples
from miwv_trainer.distributed.world import World
from miwv_trainer.own_scores import is_function
from miwv_trainer.rounds.identity import ModelFingerprint
from miwv_trainer.rounds.inputs import read_measured
from miwv_trainer.scoring.layout import EQUAL, plan_scoring
from miwv_trainer.scoring.refine import REFINED
from miwv_trainer.scoring.scorer import Scorer, ScoringPlan
from miwv_trainer.selection.scores import get_draw_seed, get_score, score_samples
from miwv_trainer.storage.journal import Journal, JournalHeader
from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import RoundIdentity, StoredRound

logger = logging.getLogger(__name__)
# Nats by which a loss of one model may differ between two processes, by other kernels or numbers of threads.
PROBE_TOLERANCE = 1e-4
PROBE_TOLERANCE_LOW_PRECISION = 0.02


def is_same_round(found: RoundIdentity, identity: RoundIdentity) -> bool:
    """
    Whether a summary or a journal's header is of the round, its model's losses within the dtype's tolerance.

    Args:
        found: As read from the disk, so entries may be missing.
    """
    fingerprint, other = dict(found.get("fingerprint", {})), dict(identity["fingerprint"])
    model, other_model = fingerprint.pop("model", None), other.pop("model", None)
    point = (found.get("round"), found.get("global_step"))
    is_same_point = point == (identity["round"], identity["global_step"])
    return is_same_point and fingerprint == other and is_same_model(model, other_model)


def is_same_model(found: ModelFingerprint | None, other: ModelFingerprint | None) -> bool:
    """Whether two models are the same, their losses within the dtype's tolerance."""
    if found is None or other is None:
        return found is other
    losses, others = found["zero_shot_losses"], other["zero_shot_losses"]
    if found["config"] != other["config"] or found["dtype"] != other["dtype"] or losses.keys() != others.keys():
        return False
    tolerance = PROBE_TOLERANCE if found["dtype"] == "float32" else PROBE_TOLERANCE_LOW_PRECISION
    # Not `any(... > tolerance)`: a difference of NaN is no agreement.
    return all(abs(losses[sample] - others[sample]) <= tolerance for sample in losses)


def find_finished(
    store: Store, identity: RoundIdentity, config: MIWVConfig, rows: str | None, world: World
) -> StoredRound | None:
    """
    The same round, if the store holds it.

    Args:
        rows: Hash of the raw rows, which a stored round of `miwv score` must have too.
    """
    found: StoredRound | None = None
    with world.run_together("reading the rounds"):
        if world.is_main and identity["round"] in store.list_rounds():
            stored = store.read_round(identity["round"])
            refines = stored.summary["config"].get("refine_near_threshold") == config.refine_near_threshold
            is_same = stored.summary.get("rows") == rows and is_same_round(stored.summary, identity)
            found = stored if refines and is_same and _has_scores_of(stored, config) else None
            if found is not None:
                # The process was killed after the round was written and before its journal was deleted.
                store.delete_journal(found.number)
    return world.broadcast_from_main(found)


def _has_scores_of(stored: StoredRound, config: MIWVConfig) -> bool:
    """
    Whether the user's function gives the scores that a round has stored; True for every other score.

    The fingerprint knows a function by its name only, and its lines may have been changed since.
    """
    if not is_function(config.score):
        return True
    measured = read_measured(stored, get_draw_seed(config, stored.number))
    is_complete = find_complete_samples(stored.column("prompt_tokens"), measured.response_tokens)
    scores = score_samples(measured, get_score(config), is_complete)
    return np.array_equal(scores, stored.column("score"), equal_nan=True)


def open_journal(
    scorer: Scorer, exemplars: np.ndarray, store: Store, identity: RoundIdentity
) -> tuple[Journal, ScoringPlan]:
    """
    The journal of a round on this rank, and the plan that its header holds.

    If a killed attempt at the same round left a journal, that one is taken up with its plan, so that the round composes
    the batches that it had. Otherwise both are new.

    Args:
        exemplars: `(N,)` index of the exemplar that each sample is scored behind.
    """
    world, folder = scorer.world, store.journal_folder(identity["round"])
    found: JournalHeader | None = None
    with world.run_together("reading the journal"):
        if world.is_main:
            found = next((each for each in Journal.read_headers(folder) if is_same_round(each, identity)), None)
    found = world.broadcast_from_main(found)
    # A model that padding changes has rows of equal length where padded ones are asked for.
    asked = scorer.config.layout
    if found is not None and (asked in ("auto", found["layout"]) or (asked, found["layout"]) == ("padded", EQUAL)):
        if world.is_main:
            logger.info("Round %d goes on where it was interrupted, by its journal in %s.", identity["round"], folder)
        return Journal(folder, world.rank, found), ScoringPlan.from_header(found)
    plan = plan_scoring(scorer, exemplars)
    return Journal(folder, world.rank, {**identity, **plan.to_header()}), plan


def read_earlier_seconds(journal: Journal, world: World) -> tuple[float, float]:
    """
    Seconds that earlier attempts at a round took, outside of and in the refinement, on the rank that took longest.
    """
    before = refined = 0.0
    if world.is_main:
        for entries in journal.read():
            before = max(before, sum(entry.seconds for entry in entries if not entry.stage.startswith(REFINED)))
            refined = max(refined, sum(entry.seconds for entry in entries if entry.stage.startswith(REFINED)))
    return world.broadcast_from_main((before, refined))
