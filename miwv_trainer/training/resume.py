"""What a resumed run takes over: the state in the checkpoint, and the rounds on disk that it names."""

from collections.abc import Mapping

from transformers import TrainerState, TrainingArguments

from miwv_trainer.storage.store import Store
from miwv_trainer.storage.stored_round import StoredRound
from miwv_trainer.training.run_state import AFRESH, RoundEntry, RunState, hash_selection


def read_run_state(state: TrainerState, args: TrainingArguments, name: str, was_begun: bool) -> RunState | None:
    """
    The run state in the checkpoint that the Trainer loaded, or None where training begins.

    Args:
        name: The callback's class name, under which the Trainer keeps its state.
        was_begun: Whether this callback has trained in this process. The Trainer's new state then holds that of the
            earlier training, which is no checkpoint's.

    Raises:
        ValueError:
            the checkpoint was written without the callback, or its state is damaged, or `ignore_data_skip` would train
            the beginning of an epoch again.
    """
    values = _find_values(state, name)
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
    # At the end of an epoch there is nothing to skip.
    if args.ignore_data_skip and state.global_step % before.steps_per_epoch > 0:
        raise ValueError(
            f"`ignore_data_skip=True` would train the beginning of the epoch again (the checkpoint at step "
            f"{state.global_step} lies within one). Set it to False, or resume from the end of an epoch."
        )
    return before


def _find_values(state: TrainerState, name: str) -> dict[str, object] | None:
    """The exported run state in a trainer_state.json, which may have been edited by hand."""
    exported = state.stateful_callbacks.get(name)
    attributes = exported.get("attributes") if isinstance(exported, dict) else None
    values = attributes.get("run_state") if isinstance(attributes, dict) else None
    return values if isinstance(values, dict) else None


def read_trained_rounds(store: Store, state: RunState) -> list[StoredRound]:
    """
    The rounds that a resumed run was trained on so far.

    Raises:
        FileNotFoundError: one of them is not in the store.
        ValueError: one of them is another round than the checkpoint was trained on.
    """
    return [_read_round(store, state, entry) for entry in state.history]


def _read_round(store: Store, state: RunState, entry: RoundEntry) -> StoredRound:
    there = store.list_rounds()
    if entry.round not in there:
        raise FileNotFoundError(
            f"Training resumes at step {state.global_step}, but round {entry.round}, which selected what it was "
            f"trained on, is not in {store.folder} (rounds there: {', '.join(map(str, there)) or 'none'}). "
            f"Set `scores_dir` to the folder whose `miwv` holds it, {AFRESH}."
        )
    stored = store.read_round(entry.round, state.fingerprint)
    # The fingerprint does not hold the model: two runs of one configuration have the same, and other selections.
    if hash_selection(stored.selection) != entry.selection:
        raise ValueError(
            f"{stored.folder} is not the round that the checkpoint at step {state.global_step} was trained on: it "
            "selects other samples, so another run wrote it. The right one may lie in a previous-N beside it; "
            f"move it back, set `scores_dir` to the folder whose `miwv` holds it, {AFRESH}."
        )
    return stored


def keep_exemplars(store: Store, scored: StoredRound, fingerprint: Mapping[str, object]) -> None:
    """
    Writes the exemplars of a round again where their own file is gone.

    They cannot be searched for again: the model that may have embedded the prompts has been trained since.
    """
    if store.read_exemplars(fingerprint) is None:
        store.write_exemplars(scored.ranked("exemplar"), scored.ranked("similarity"), fingerprint)
