"""
Round 0 of another run, in place of forwards: ten trainings of a sweep over learning rates need the same losses.

What is taken is losses and exemplars. Guards, fraction and score are this run's own, so its selection is made anew.
"""

from datetime import datetime, timezone
from pathlib import Path
from typing import cast

import numpy as np

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.pool import Pool
from miwv_trainer.data.sample_hashes import hash_pool_content
from miwv_trainer.embeddings.embedders import get_embedder
from miwv_trainer.own_scores import describe_score
from miwv_trainer.rounds.identity import fingerprint_exemplars, hash_array
from miwv_trainer.rounds.row_matching import match_rows
from miwv_trainer.scoring.scorer import Scorer
from miwv_trainer.selection.scores import get_score, needs_exemplars
from miwv_trainer.storage.provenance import JsonObject
from miwv_trainer.storage.store import FOLDER, Store
from miwv_trainer.storage.stored_round import SUMMARY_FILE, ScoresOrigin, StoredRound

# What decides the exemplars besides the pool. The context does too, but only of samples that are nearly as long: a
# smaller model, whose context is another, could not score for a larger one.
EXEMPLAR_SETTINGS = ("embedder", "allow_identical_exemplars")
PER_SAMPLE = "exemplars_per_sample"


def read_source(scorer: Scorer, store: Store) -> StoredRound | None:
    """
    Round 0 of the run that `scores_from` names, on every rank; None if it names none. Only rank 0 need see the disk.

    Args:
        store: This run's own.

    Raises:
        FileNotFoundError: there is no round 0.
        ValueError: it is of another pool or of exemplars that were found otherwise, or lacks a loss that is needed.
    """
    config, found = scorer.config, None
    if config.scores_from is None:
        return None
    with scorer.world.run_together("reading the scores of another run"):
        if scorer.world.is_main:
            found = _read_round(config.scores_from, store)
            found = _match_samples(found, scorer.pool, config.match)
            _check_exemplars(found, scorer)
            _check_losses(found, config)
    return cast(StoredRound, scorer.world.broadcast_from_main(found))


def _read_round(folder: str, store: Store) -> StoredRound:
    source = Store(Path(folder).expanduser())
    if source.folder.resolve() == store.folder.resolve():
        raise ValueError(
            f"`scores_from` is {folder!r}, the folder that this run itself writes to. Leave it out: a round that this "
            "folder holds of the same model and pool is read again without it."
        )
    if 0 not in source.list_rounds():
        raise FileNotFoundError(
            f"`scores_from` is {folder!r}, but there is no round 0 in {source.folder}. {_advise_on_folder(source)}"
        )
    return source.read_round(0)


def _advise_on_folder(source: Store) -> str:
    """Which folder to give, where a part of a run's folder was given instead."""
    above = next((each for each in source.output.absolute().parents if 0 in Store(each).list_rounds()), None)
    if above is not None and (above / FOLDER) in (source.output.absolute(), *source.output.absolute().parents):
        return f"Give {str(above)!r}, which holds it."
    return "Give the folder that `miwv score --output` or a Trainer wrote to."


def _match_samples(source: StoredRound, pool: Pool, match: str) -> StoredRound:
    """A round, of the samples of the pool. Raises `ValueError` if it is of others."""
    # A Trainer and `miwv score` keep the same pool differently, so that the fingerprint alone says little.
    theirs, ours = source.summary.get("pool_content"), hash_pool_content(pool)
    if theirs == ours or source.summary["fingerprint"]["pool"] == pool.fingerprint:
        return source
    if match == "rows":
        return match_rows(source, pool)
    raise ValueError(
        f"`scores_from` names scores of another pool: {source.folder} is of {len(source.scores)} samples with the "
        f"fingerprint {theirs or source.summary['fingerprint']['pool'][:16]}, this run's are {len(pool)} with "
        f"{ours if theirs else pool.fingerprint[:16]}. Both need the same rows in the same order, with the same "
        'tokenizer, chat template and labels; with `match="rows"`, the same texts suffice.'
    )


def _check_exemplars(source: StoredRound, scorer: Scorer) -> None:
    """Raises `ValueError` if exemplars are needed and the round has none, or found them by other settings."""
    if not needs_exemplars(scorer.config):
        return
    if not (source.column("exemplar") >= 0).any():
        raise ValueError(
            f"`scores_from` names scores without exemplars, which this run needs: {source.folder} was made with "
            f"score = {source.summary['config']['score']!r}, this run has score = "
            f'{describe_score(scorer.config.score)!r}. Give a run with `score="miwv"`.'
        )
    if get_embedder(scorer.config.embedder).array is not None and _is_moved(source):
        raise ValueError(
            f"`embedder` is an array, which has a line for each row, and this run's rows stand in another order than "
            f"those of {source.folder}, so that the two arrays cannot be compared. Bring rows and array to the order "
            "of that run, or score the pool of this run (without `scores_from`)."
        )
    theirs = source.summary["fingerprint"]
    ours = fingerprint_exemplars(scorer.pool, scorer.config, scorer.context)
    for name in EXEMPLAR_SETTINGS:
        if theirs.get(name) != ours[name]:
            raise ValueError(
                f"`scores_from` names scores whose exemplars were found otherwise: {source.folder} was made with "
                f"{name} = {theirs.get(name)!r}, this run has {name} = {ours[name]!r}. Set `{name}` to the same value."
            )
    # Rounds of earlier versions have one exemplar a sample. Of several, the nearest ones are taken.
    if theirs.get(PER_SAMPLE, 1) < ours[PER_SAMPLE]:
        raise ValueError(
            f"`scores_from` names scores behind fewer exemplars: {source.folder} was made with {PER_SAMPLE} = "
            f"{theirs.get(PER_SAMPLE, 1)}, this run has {PER_SAMPLE} = {ours[PER_SAMPLE]}. Set `{PER_SAMPLE}` to that "
            "value or a lower one, or leave `scores_from` out."
        )


def _check_losses(source: StoredRound, config: MIWVConfig) -> None:
    """Raises `ValueError` if the score needs a loss that the round does not hold."""
    for loss in sorted(get_score(config).losses):
        if not np.isfinite(source.column(f"{loss}_loss")).any():
            others = "" if loss == "response" else ', or with `score="miwv"`, which has both losses'
            raise ValueError(
                f"`scores_from` names scores without the {loss.replace('_', '-')} loss, which score = "
                f"{describe_score(config.score)!r} needs: {source.folder} was made with score = "
                f"{source.summary['config']['score']!r}. Give a run with the same score{others}."
            )


def copy_exemplars(source: StoredRound, store: Store, config: MIWVConfig, fingerprint: JsonObject) -> None:
    """
    Writes the exemplars of the other run into this one, for later rounds; and its embeddings, if the selection looks at
    them.

    Raises:
        FileNotFoundError: the model in training would have to make other embeddings than those of the exemplars.
    """
    if needs_exemplars(config):
        store.write_exemplars(*take_exemplars(source, config.exemplars_per_sample), fingerprint)
    if not config.needs_embeddings:
        return
    # Not compared by fingerprint: they lie beside the round, and are moved aside with it.
    embeddings = Store(source.folder.parent.parent).read_embeddings({})
    if embeddings is not None:
        in_order = embeddings[source.column("index")] if _is_moved(source) else embeddings
        store.write_embeddings(in_order, fingerprint)
    elif get_embedder(config.embedder).is_model_in_training:
        raise FileNotFoundError(
            f"There are no embeddings in {source.folder.parent}, by which the selection is to be diverse. Score that "
            "pool again, or choose without `diversity` and `max_selected_similarity`."
        )


def _is_moved(source: StoredRound) -> bool:
    """Whether the samples stand in another order than in the run that measured them."""
    order = source.column("index")
    return not np.array_equal(order, np.arange(len(order)))


def take_exemplars(source: StoredRound, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`(N, count)` indices and cosines of the nearest exemplars that a round of another run has scored behind."""
    return source.ranked("exemplar")[:, :count], source.ranked("similarity")[:, :count]


def hash_losses(source: StoredRound) -> str:
    """What a round whose losses come from another is known by, in place of its model."""
    columns = ("exemplar", "zero_shot_loss", "one_shot_loss", "response_loss")
    further = [source.ranked(name)[:, 1:] for name in ("exemplar", "one_shot_loss")]
    arrays = [*(source.column(name) for name in columns), *(each for each in further if each.size)]
    return " ".join(map(hash_array, arrays))


def describe_origin(source: StoredRound, match: str) -> ScoresOrigin:
    """
    Which model scored the round, and when; of the first run, where runs read from each other. Rank 0 calls it, which
    has the disk.

    Args:
        match: How its samples were matched with this run's.
    """
    folder, summary = str(source.folder.parent.parent), source.summary
    if "scores_from" in summary:
        return cast(ScoresOrigin, {**summary["scores_from"], "folder": folder, "match": match})
    fingerprint = summary["fingerprint"]
    return ScoresOrigin(
        folder=folder,
        model=summary.get("model", ""),
        dtype=fingerprint.get("model", {}).get("dtype", ""),
        context=fingerprint["context"],
        # Releases that wrote no date left the time of the file.
        match=match,
        date=summary["date"] if "date" in summary else _read_time(source.folder / SUMMARY_FILE),
    )


def _read_time(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")
