"""What a Trainer is, and whether it trains what MIWV scores: one sentence each, before anything is computed."""

import inspect
from collections.abc import Iterable

from torch import nn
from transformers import Trainer

from miwv_trainer.data.map_style import MapStyleDataset, check_map_style, list_columns
from miwv_trainer.distributed.wrappers import get_inner_model

AS_FILES = "Score the answers as a file (`miwv score`), and train this Trainer on what `miwv select` writes"
NO_RESPONSE = "There is no response whose loss could count"
PREFERENCES = ("compares a chosen answer with a rejected one", f"{AS_FILES}; the chosen answer counts as the response")
REWARDS = ("trains a reward model, which predicts no text", NO_RESPONSE)
OWN_ANSWERS = ("samples its answers itself", "There is nothing to score; MIWV selects data for fine-tuning")
# Trainers of TRL and sentence-transformers by the name of their class: importing these packages to ask for the class
# would make them requirements. A subclass is known by the names of the classes it is made from.
OTHER_TRAINERS = {
    "DPOTrainer": PREFERENCES,
    "CPOTrainer": PREFERENCES,
    "ORPOTrainer": PREFERENCES,
    "KTOTrainer": ("learns from answers that are marked as good or bad", AS_FILES),
    "RewardTrainer": REWARDS,
    "PRMTrainer": REWARDS,
    "GRPOTrainer": OWN_ANSWERS,
    "RLOOTrainer": OWN_ANSWERS,
    "PPOTrainer": OWN_ANSWERS,
    "OnlineDPOTrainer": OWN_ANSWERS,
    "GKDTrainer": OWN_ANSWERS,
    "SentenceTransformerTrainer": ("trains embeddings of sentences", NO_RESPONSE),
    "CrossEncoderTrainer": ("trains a score of pairs of texts", NO_RESPONSE),
}
# Columns that scoring passes on or reads, and those by which collators know what they need not pass on.
READ_COLUMNS = {"input_ids", "attention_mask", "labels", "position_ids", "completion_mask", "assistant_masks"}
# Columns that a collator turns into inputs of the model, so that they are no parameters of its forward.
MEDIA_COLUMNS = {"image", "images", "pixel_values", "video", "videos", "audio", "audios", "input_features"}


def check_trainer_kind(trainer: Trainer) -> None:
    """
    Checks that the Trainer fine-tunes a language model on given responses.

    Raises:
        TypeError: it is no Trainer.
        ValueError: it trains something else; the message says what it is and what to do.
    """
    if not isinstance(trainer, Trainer):
        given = f"the class {trainer.__name__}" if inspect.isclass(trainer) else f"a {type(trainer).__name__}"
        raise TypeError(f"`attach` takes a Trainer that has been made, but got {given}.")
    for kind in type(trainer).__mro__:
        if kind.__name__ in OTHER_TRAINERS:
            what, advice = OTHER_TRAINERS[kind.__name__]
            raise ValueError(
                f"The {kind.__name__} {what}; MIWV is the loss of a given response behind its prompt. {advice}."
            )


def check_inputs(dataset: MapStyleDataset, model: nn.Module) -> None:
    """
    Checks that the model sees nothing in training that scoring would not pass to it.

    Raises:
        ValueError: the dataset has a column that the model's forward takes, or a collator would turn into such inputs,
            and that scoring does not pass on.
    """
    check_map_style(dataset)
    if len(dataset) == 0:
        return
    parameters = inspect.signature(get_inner_model(model).forward).parameters
    columns = set(list_columns(dataset))
    passed_on = sorted((columns & set(parameters)) - READ_COLUMNS)
    media = sorted(columns & MEDIA_COLUMNS)
    if passed_on or media:
        raise ValueError(
            f"The training dataset has {_name_columns(passed_on or media)}, which the model is given in training and "
            "which scoring does not pass on, so that its losses would be those of another input. MIWV is scored on "
            "token ids alone: remove the column, or train such samples without a selection."
        )


def _name_columns(names: Iterable[str]) -> str:
    listed = ", ".join(f"`{name}`" for name in names)
    return f"the column{'s' if ', ' in listed else ''} {listed}"
