"""What a Trainer is, and whether it trains what MIWV scores: one sentence each, before anything is computed."""

import inspect
from collections.abc import Iterable

import numpy as np
from torch import nn
from transformers import Trainer

from miwv_trainer.checks import describe_given
from miwv_trainer.compat import computes_loss_past_the_head, masks_prompts_of_conversations
from miwv_trainer.data.map_style import MapStyleDataset, check_map_style, has_values, list_columns
from miwv_trainer.distributed.sharding import is_sharded
from miwv_trainer.distributed.wrappers import get_inner_model, unwrap_model

AS_FILES = "Score the answers as a file (`miwv score`), and train this Trainer on what `miwv select` writes"
NO_RESPONSE = "There is no response whose loss could count, so train it without a selection"
PREFERENCES = ("compares a chosen answer with a rejected one", f"{AS_FILES}; the chosen answer counts as the response")
REWARDS = ("trains a reward model, which predicts no text", NO_RESPONSE)
OWN_ANSWERS = ("samples its answers itself", "There is nothing to score: train it without a selection")
TEACHER = (
    "follows a teacher's predictions, on answers of which it samples some itself",
    "If the dataset has answers, score them as a file (`miwv score`), and train this Trainer on what `miwv select` "
    "writes",
)
# Trainers of TRL by the name of their class: importing it to ask for the class would make it a requirement. A subclass
# is known by the names of the classes it is made from.
OTHER_TRAINERS = {
    **dict.fromkeys(("DPOTrainer", "CPOTrainer", "ORPOTrainer", "TPOTrainer"), PREFERENCES),
    **dict.fromkeys(
        ("KTOTrainer", "BCOTrainer"),
        ("learns from answers that are marked as good or bad", f"{AS_FILES}; give it the good ones alone"),
    ),
    **dict.fromkeys(("RewardTrainer", "PRMTrainer"), REWARDS),
    **dict.fromkeys(
        (
            "GRPOTrainer",
            "AsyncGRPOTrainer",
            "RLOOTrainer",
            "PPOTrainer",
            "OnlineDPOTrainer",
            "A2POTrainer",
            "SDPOTrainer",
            "SSDTrainer",
        ),
        OWN_ANSWERS,
    ),
    **dict.fromkeys(
        ("GKDTrainer", "GOLDTrainer", "SDFTTrainer", "DistillationTrainer", "AsyncDistillationTrainer", "IWOPDTrainer"),
        TEACHER,
    ),
}
# All Trainers of this package train encoders, whatever their names.
ENCODERS = ("sentence_transformers", ("trains an encoder of sentences, which predicts no text", NO_RESPONSE))
# Columns that scoring passes on or reads, and those by which collators know what they need not pass on.
READ_COLUMNS = {"input_ids", "attention_mask", "labels", "position_ids", "completion_mask", "assistant_masks"}
# Columns that a collator turns into inputs of the model, so that they are no parameters of its forward.
MEDIA_COLUMNS = {"image", "images", "pixel_values", "video", "videos", "audio", "audios", "input_features"}
# A tokenizer's encoding has this many fields at most: token ids, attention mask, token types.
MOST_FIELDS = 3
ROWS_LOOKED_AT = 100


def check_trainer_kind(trainer: Trainer) -> None:
    """
    Checks that the Trainer fine-tunes a language model on given responses.

    Raises:
        TypeError: it is no Trainer.
        ValueError: it trains something else; the message says what it is and what to do.
    """
    if not isinstance(trainer, Trainer):
        raise TypeError(
            f"`attach(trainer, config)` takes a Trainer that has been made, but got {describe_given(trainer)}."
        )
    for kind in type(trainer).__mro__:
        package, encoder = ENCODERS
        found = encoder if kind.__module__.partition(".")[0] == package else OTHER_TRAINERS.get(_find_name(kind))
        if found is not None:
            what, advice = found
            raise ValueError(
                f"The {kind.__name__} {what}; MIWV is the loss of a given response behind its prompt. {advice}."
            )


def _find_name(kind: type) -> str:
    """The name of a class, without what Unsloth puts before the names of TRL's."""
    return kind.__name__.removeprefix("_").removeprefix("Unsloth")


def is_sft_trainer(trainer: Trainer) -> bool:
    """Whether a Trainer is TRL's SFTTrainer, Unsloth's of that name, or a subclass of them."""
    return any(_find_name(kind) == "SFTTrainer" for kind in type(trainer).__mro__)


def check_batching(trainer: Trainer) -> None:
    """
    Checks that the Trainer makes batches of single samples, in the order of the sampler that it is given.

    Raises:
        ValueError: it packs samples, or builds batches itself; the message names the option and what to do.
    """
    options = trainer.args.to_dict()
    if options.get("packing"):
        raise ValueError(
            "The Trainer packs its dataset (`packing=True`): several samples share a line, so none can be chosen by "
            "itself. Set `packing=False`."
        )
    # axolotl's `_get_train_sampler` knows both options. `attach` stands in its place, so that they would be left out
    # without a word.
    if options.get("sample_packing"):
        raise ValueError(
            "axolotl's `sample_packing: true` composes lines of several samples from the whole dataset, before "
            "a selection is known. Set `sample_packing: false`."
        )
    if options.get("curriculum_sampling"):
        raise ValueError(
            "axolotl's `curriculum_sampling: true` trains samples in the order of the dataset, not of a selection. "
            'Set `curriculum_sampling: false`; `epoch_order="easy_to_hard"` sorts each epoch by difficulty.'
        )
    kinds = {kind.__name__ for kind in type(trainer).__mro__}
    if "SwiftMixin" in kinds and "get_train_dataloader" not in vars(trainer):
        raise ValueError(
            "ms-swift's Trainer draws its batches itself and asks no sampler. Give this Trainer the dataloader of "
            "transformers before `attach`: `trainer.get_train_dataloader = functools.partial("
            "transformers.Trainer.get_train_dataloader, trainer)`."
        )


def check_tokenized(trainer: Trainer) -> None:
    """
    Checks that the Trainer's dataset holds token ids with a label for each token.

    Raises:
        ValueError: it does not; the message says what it holds and what to do.
    """
    if len(trainer.train_dataset) == 0:
        return
    columns = list_columns(trainer.train_dataset)
    listed = f"(columns: {', '.join(columns) or 'none'})"
    if "input_ids" not in columns:
        if any(name.startswith(("chosen", "rejected")) for name in columns):
            raise ValueError(
                f"The training dataset compares answers {listed}; MIWV is the loss of a given response behind its "
                f"prompt. {AS_FILES}; the chosen answer counts as the response."
            )
        advice = (
            "SFTTrainer left it as it was; let it prepare the dataset (no `skip_prepare_dataset`), or tokenise it "
            "before with `miwv_trainer.tokenize`"
            if is_sft_trainer(trainer)
            else "tokenise it before it goes to the Trainer, with `miwv_trainer.tokenize`, or use TRL's SFTTrainer, "
            "which does it itself"
        )
        raise ValueError(f"The training dataset has no `input_ids` {listed}: {advice}.")
    label = trainer.train_dataset[0].get("labels")
    if label is not None and np.ndim(label) == 0:
        raise ValueError(
            f"The training dataset has one label for a whole sample ({label!r}), as classification has, and MIWV is "
            "the loss of the tokens of a response. Give a label for each token, -100 outside the response "
            "(`miwv_trainer.tokenize` makes them), or train without a selection."
        )


def check_prompt_masks(dataset: MapStyleDataset) -> None:
    """
    Checks that the masks of a dataset leave out its prompts, which some versions of TRL do not.

    Raises:
        ValueError: an SFTTrainer of such a version has prepared conversations.
    """
    if masks_prompts_of_conversations() or len(dataset) == 0 or "completion_mask" not in list_columns(dataset):
        return
    rows = [dataset[index] for index in range(min(len(dataset), ROWS_LOOKED_AT))]
    # Prompts that are text are masked rightly. Their column is gone where the Liger kernel is used.
    starts = {int(np.argmax(row["completion_mask"])) for row in rows if not isinstance(row.get("prompt"), str)}
    if len(starts) == 1 and max(starts) <= MOST_FIELDS:
        raise ValueError(
            "TRL before 0.27.1 marks the prompts of conversations as completions where transformers is 5.0 or later "
            "(trl#4880), and so it is here: prompts would be trained, and scored as responses. Take TRL 0.27.1 or "
            "later, or transformers 4, or tokenise the dataset with `miwv_trainer.tokenize` before SFTTrainer gets it."
        )


def check_split_head(model: nn.Module) -> None:
    """
    Checks that a training whose parameters are split over ranks can go on after a round.

    DeepSpeed fetches parameters in the order of earlier forwards. A round runs the head, the training does not, and its
    first step after the round ends with "Cannot partition a param in flight".

    Raises:
        ValueError: TRL computes the loss from the head's weight, and not by the head.
    """
    if computes_loss_past_the_head(get_inner_model(unwrap_model(model)).forward) and is_sharded(model):
        raise ValueError(
            "SFTTrainer of TRL before 1.15 computes its loss from the weight of the model's head, past the head "
            '(`loss_type="chunked_nll"`). Where ZeRO-3 splits the weights, such a training cannot go on after a round. '
            'Set `loss_type="nll"` in SFTConfig, or take TRL 1.16.'
        )


def check_inputs(dataset: MapStyleDataset, model: nn.Module) -> None:
    """
    Checks that the model predicts tokens, and sees nothing in training that scoring would not pass to it.

    Raises:
        ValueError:
            the model has no output layer, or the dataset has a column that the model's forward takes, or a collator
            would turn into such inputs, and that scoring does not pass on.
    """
    check_map_style(dataset)
    if len(dataset) == 0:
        return
    inside = get_inner_model(model)
    parameters = inspect.signature(inside.forward).parameters
    # A bare model such as `LlamaModel`. A model of one's own may have its output layer under any name.
    if inside.get_output_embeddings() is None and type(inside).__module__.startswith("transformers."):
        raise ValueError(
            f"{type(inside).__name__} has no output layer that predicts tokens, and so no loss of a response. "
            "Load it with `AutoModelForCausalLM`."
        )
    columns = set(list_columns(dataset))
    passed_on = sorted((columns & set(parameters)) - READ_COLUMNS)
    # LLaMA-Factory's datasets have columns of images, videos and audios, which are null where all samples are text.
    media = [name for name in sorted(columns & MEDIA_COLUMNS) if has_values(dataset, name)]
    if passed_on or media:
        raise ValueError(
            f"The training dataset has {_name_columns(passed_on or media)}, which the model is given in training and "
            "which scoring does not pass on, so that its losses would be those of another input. MIWV is scored on "
            "token ids alone: remove the column, or train such samples without a selection."
        )


def _name_columns(names: Iterable[str]) -> str:
    listed = ", ".join(f"`{name}`" for name in names)
    return f"the column{'s' if ', ' in listed else ''} {listed}"
