"""What a checkpoint carries of the rounds: a few hundred bytes of JSON in its trainer_state.json.

The selections themselves lie in the files of the rounds; the state holds their checksums.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from miwv_trainer.training.schedule import StepSchedule

STATE_VERSION = 2
AFRESH = "or start afresh in another output folder"
EXPLANATIONS = {
    "pool": "the pool's token ids (dataset, tokenizer, chat template)",
    "embedder": "the embedder",
    "given_scores": "the numbers of the score of your own",
    "sampler_seed": "the seed of the order",
    "effective_batch": "an effective batch (per device x processes x accumulation)",
    "steps_per_epoch": "a number of steps per epoch",
}


@dataclass(frozen=True)
class RoundEntry:
    """
    A round in the history of a training.

    Args:
        round: Its number.
        global_step: Steps made before it was scored.
        epoch: The epoch in which its selection takes effect.
        position: The position of that epoch's order from which on it does.
        selection: The selection's checksum.
    """

    round: int
    global_step: int
    epoch: int
    position: int
    selection: str


# In trainer_state.json and not in a file of its own, because the Trainer writes, rotates and deletes it with the
# checkpoint. Read by `read_run_state`, because the Trainer would build a new callback from it, without pool and sampler
# (`restore_callback_states_from_checkpoint`, transformers 5.23).
@dataclass(frozen=True)
class RunState:
    """
    What a resumed run must know, as JSON can hold it.

    `global_step` is the checkpoint's. It tells a state that is out of date: the Trainer copies the state of a callback
    that is no longer attached into every later checkpoint.
    """

    global_step: int
    sampler_seed: int
    train_sampling_strategy: str
    epoch_order: str
    world_size: int
    steps_per_epoch: int
    effective_batch: int
    look_ahead: int
    fingerprint: dict[str, object]
    history: list[RoundEntry]

    @property
    def schedule(self) -> StepSchedule:
        return StepSchedule(self.steps_per_epoch, self.effective_batch, self.look_ahead)

    def to_dict(self) -> dict[str, object]:
        return {"version": STATE_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunState":
        """
        The state that `to_dict` described.

        Raises:
            ValueError: another format version, or values that are missing or out of place.
        """
        version = values.get("version")
        if version != STATE_VERSION:
            raise ValueError(
                f"The checkpoint's MIWV state has format version {version!r}, but this miwv_trainer reads version "
                f"{STATE_VERSION}. Resume with the version that wrote it, {AFRESH}."
            )
        try:
            named = {name: value for name, value in values.items() if name != "version"}
            state = cls(**{**named, "history": [RoundEntry(**entry) for entry in named["history"]]})
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"The checkpoint's MIWV state is damaged ({error}): its trainer_state.json was edited or cut. Resume "
                f"from another checkpoint, {AFRESH}."
            ) from error
        # A checkpoint cannot be older than round 0, which is scored before the first step.
        if not state.history or [entry.round for entry in state.history] != list(range(len(state.history))):
            raise ValueError(
                f"The checkpoint's MIWV state is damaged (rounds {[entry.round for entry in state.history]}). Resume "
                f"from another checkpoint, {AFRESH}."
            )
        return state

    def check_fits(self, own: "RunState") -> None:
        """
        Checks that this state, from a checkpoint, belongs to the same training as `own`.

        Raises:
            ValueError: it does not. The first difference that would change the remaining order is named, with both
                values.
        """
        # The Trainer itself only warns of another batch size. With another effective batch it would skip other samples
        # than those that have been trained.
        names = ("sampler_seed", "train_sampling_strategy", "epoch_order", "effective_batch", "steps_per_epoch")
        before = {**self.fingerprint, **{name: getattr(self, name) for name in names}}
        now = {**own.fingerprint, **{name: getattr(own, name) for name in names}}
        for name, value in now.items():
            if before.get(name) == value:
                continue
            raise ValueError(
                f"The checkpoint at step {self.global_step} was trained with {name} = {before.get(name)!r}, but this "
                f"run has {name} = {value!r}{_explain(name)}. {_suggest(name, before.get(name))}, {AFRESH}."
            )

    def resume(self, before: "RunState") -> "RunState":
        """
        This run's state with the history of the checkpoint that it goes on from.

        Raises:
            ValueError: the checkpoint belongs to another training.
        """
        before.check_fits(self)
        # With fewer dataloader workers than before, rounds still take effect where the uninterrupted run had them.
        look_ahead = max(before.look_ahead, self.look_ahead)
        return replace(self, global_step=before.global_step, look_ahead=look_ahead, history=list(before.history))


def _explain(name: str) -> str:
    return f" ({EXPLANATIONS[name]})" if name in EXPLANATIONS else ""


def _suggest(name: str, before: object) -> str:
    if name == "effective_batch":
        return (
            "Set `per_device_train_batch_size` and `gradient_accumulation_steps` so that their product with the number "
            f"of processes is {before}"
        )
    if name in ("sampler_seed", "train_sampling_strategy", "epoch_order"):
        return f"Set `{name}={before!r}`"
    if name == "steps_per_epoch":
        return "Resume with the same batch sizes and `dataloader_drop_last`"
    return f"Resume with the {name} of the run that wrote it"


def hash_selection(selection: np.ndarray) -> str:
    """A checksum of `(k,)` ascending pool indices."""
    return hashlib.sha256(np.asarray(selection, dtype="<i8").tobytes()).hexdigest()[:16]
