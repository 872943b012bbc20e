"""What was scored when and from where on it is in force: the small state that a checkpoint carries.

Positions count samples of an epoch's order, over all ranks. Selections themselves lie in the files of the rounds.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

STATE_VERSION = 2
AFRESH = "or start afresh in another output folder"
WHAT_IT_HASHES = {
    "pool": "the pool's token ids (dataset, tokenizer, chat template)",
    "embedder": "the embedder",
    "sampler_seed": "the seed of the order",
    "effective_batch": "an effective batch (per device x processes x accumulation)",
    "steps_per_epoch": "a number of steps per epoch",
}


@dataclass(frozen=True)
class Place:
    """A position of an epoch's order, and the step before which training reaches it."""

    epoch: int
    position: int
    global_step: int


@dataclass(frozen=True)
class RoundEntry:
    """
    A round: its number, the steps made before it was scored, where its selection takes effect, and that selection's
    checksum.
    """

    round: int
    global_step: int
    epoch: int
    position: int
    selection: str


@dataclass(frozen=True)
class Pace:
    """
    How training walks through an epoch's order.

    `look_ahead` is the number of optimizer steps whose samples may have been drawn already when a step ends. It is
    computed, not observed, so that all ranks agree, and a resumed run with the one before.
    """

    steps_per_epoch: int
    effective_batch: int
    look_ahead: int

    def first_free(self, global_step: int) -> Place:
        """The first place that cannot have been drawn after `global_step` steps, at the beginning of a step."""
        epoch, made = divmod(global_step, self.steps_per_epoch)
        if made == 0:
            return Place(epoch, 0, global_step)
        free = made + self.look_ahead
        if free >= self.steps_per_epoch:
            return Place(epoch + 1, 0, (epoch + 1) * self.steps_per_epoch)
        return Place(epoch, free * self.effective_batch, global_step + self.look_ahead)


def look_ahead(workers: int, prefetch_factor: int | None, accumulation: int) -> int:
    """
    Optimizer steps that a dataloader may have drawn beyond the one that just ended.

    accelerate holds one batch ahead, and each worker `prefetch_factor` batches. A rank draws the indices of all ranks
    up to its own batch and of the ranks behind it, so the count is the same for any number of them.
    """
    return math.ceil((1 + workers * (prefetch_factor or 0)) / accumulation)


@dataclass(frozen=True)
class RunState:
    """
    What a resumed run must know, as JSON can hold it.

    `global_step` is that of the checkpoint: Trainer copies the state of a callback that is no longer attached into
    later checkpoints, where it is out of date.
    """

    global_step: int
    sampler_seed: int
    train_sampling_strategy: str
    epoch_order: str
    world_size: int
    steps_per_epoch: int
    effective_batch: int
    look_ahead: int
    fingerprint: dict[str, Any]
    history: list[RoundEntry]

    def to_dict(self) -> dict[str, Any]:
        return {"version": STATE_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunState":
        """
        What `to_dict` gave.

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
        if not state.history or [entry.round for entry in state.history] != list(range(len(state.history))):
            raise ValueError(
                f"The checkpoint's MIWV state is damaged (rounds {[entry.round for entry in state.history]}). Resume "
                f"from another checkpoint, {AFRESH}."
            )
        return state

    def check_fits(self, own: "RunState") -> None:
        """
        Raises `ValueError` where this state, from a checkpoint, belongs to another training than `own`: the first
        difference that would change the remaining order is named with both values.
        """
        names = ("sampler_seed", "train_sampling_strategy", "epoch_order", "effective_batch", "steps_per_epoch")
        before = {**self.fingerprint, **{name: getattr(self, name) for name in names}}
        now = {**own.fingerprint, **{name: getattr(own, name) for name in names}}
        for name, value in now.items():
            if before.get(name) == value:
                continue
            raise ValueError(
                f"The checkpoint at step {self.global_step} was trained with {name} = {before.get(name)!r}, but this "
                f"run has {name} = {value!r}{_explained(name)}. {_way_out(name, before.get(name))}, {AFRESH}."
            )


def _explained(name: str) -> str:
    return f" ({WHAT_IT_HASHES[name]})" if name in WHAT_IT_HASHES else ""


def _way_out(name: str, before: Any) -> str:
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


def selection_checksum(selection: np.ndarray) -> str:
    """Of ascending pool indices, `(k,)`."""
    return hashlib.sha256(np.asarray(selection, dtype="<i8").tobytes()).hexdigest()[:16]
