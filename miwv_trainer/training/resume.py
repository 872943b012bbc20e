"""Going on where a checkpoint stands: its state and its rounds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader
from transformers import TrainerState, TrainingArguments

from miwv_trainer.storage.store import Store, StoredRound
from miwv_trainer.training.schedule import AFRESH, Pace, RoundEntry, RunState, look_ahead, selection_checksum


def pace_of(dataloader: Any, args: TrainingArguments) -> Pace:
    """How the Trainer will walk through an epoch's order with this dataloader, on all ranks alike."""
    batch, workers, prefetch = args.train_batch_size, args.dataloader_num_workers, args.dataloader_prefetch_factor
    if isinstance(dataloader, DataLoader):
        # Under `auto_find_batch_size` the arguments do not know the batch size.
        sampler: Any = dataloader.batch_sampler
        batch, workers, prefetch = sampler.batch_size, dataloader.num_workers, dataloader.prefetch_factor
    accumulation = args.gradient_accumulation_steps
    ranks = 1 if args.accelerator_config.split_batches else args.world_size
    return Pace(
        steps_per_epoch=max(1, math.ceil(len(dataloader) / accumulation)),
        effective_batch=batch * ranks * accumulation,
        look_ahead=look_ahead(workers, prefetch, accumulation),
    )


def checkpoint_state(state: TrainerState, args: TrainingArguments, name: str, was_begun: bool) -> RunState | None:
    """
    The run state in the checkpoint that the Trainer loaded, or None where training begins.

    Args:
        name: The callback's class name, under which the Trainer keeps its state.
        was_begun: Whether this callback has trained in this process; its own state of then is no checkpoint's.

    Raises:
        ValueError: the checkpoint was written without the callback or its state is damaged, or the Trainer is to repeat
            what the epoch has had.
    """
    values = _run_state_values(state, name)
    if state.global_step == 0 and (was_begun or values is None):
        return None
    if values is None:
        raise ValueError(
            f"The checkpoint at step {state.global_step} was written without the MIWVCallback: the samples it was "
            "trained on are not known, and none is left out of the rest of its epoch. To train its weights on a "
            "selection, load them as the model and call `train()` without `resume_from_checkpoint`."
        )
    before = RunState.from_dict(values)
    if before.global_step != state.global_step:
        raise ValueError(
            f"The checkpoint at step {state.global_step} carries the MIWV state of step {before.global_step}: since "
            "then it was trained without the MIWVCallback, on other data. Resume from the checkpoint at step "
            f"{before.global_step}, {AFRESH}."
        )
    if args.ignore_data_skip and state.global_step % before.steps_per_epoch > 0:
        raise ValueError(
            f"`ignore_data_skip=True` would train the beginning of the epoch again (the checkpoint at step "
            f"{state.global_step} lies within one). Set it to False, or resume from the end of an epoch."
        )
    return before


def _run_state_values(state: TrainerState, name: str) -> dict[str, Any] | None:
    exported = state.stateful_callbacks.get(name)
    attributes = exported.get("attributes") if isinstance(exported, dict) else None
    values = attributes.get("run_state") if isinstance(attributes, dict) else None
    return values if isinstance(values, dict) else None


def read_history(
    store: Store, history: Sequence[RoundEntry], fingerprint: Mapping[str, Any], global_step: int
) -> list[StoredRound]:
    """
    The rounds of a checkpoint at `global_step`.

    Raises:
        FileNotFoundError: one of them is not in the store.
        ValueError: one of them is another round than the checkpoint was trained on.
    """
    rounds = []
    for entry in history:
        if entry.round not in store.rounds():
            raise FileNotFoundError(
                f"Training resumes at step {global_step}, but round {entry.round}, which selected what it was trained "
                f"on, is not in {store.folder} (rounds there: {', '.join(map(str, store.rounds())) or 'none'}). Set "
                f"`scores_dir` to the folder whose `miwv` holds it, {AFRESH}."
            )
        stored = store.read_round(entry.round, fingerprint)
        if selection_checksum(stored.selection) != entry.selection:
            raise ValueError(
                f"{stored.folder} is not the round that the checkpoint at step {global_step} was trained on: it "
                "selects other samples, so another run wrote it. The right one may lie in a previous-N beside it; "
                f"move it back, set `scores_dir` to the folder whose `miwv` holds it, {AFRESH}."
            )
        rounds.append(stored)
    return rounds


def keep_exemplars(store: Store, scored: StoredRound, fingerprint: Mapping[str, Any]) -> None:
    """
    Writes the exemplars of a round where their own file is gone: the model that may have found them has learnt since.
    """
    if store.read_exemplars(fingerprint) is None:
        store.write_exemplars(scored.column("exemplar"), scored.column("similarity"), fingerprint)
