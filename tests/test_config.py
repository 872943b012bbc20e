"""The configuration: defaults, single values and their errors, and the ways in which it is made and handed on."""

import copy
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments
from trl import SFTConfig

from miwv_trainer import MIWVConfig


def test_the_defaults_are_the_papers_embedder_one_scoring_and_five_percent():
    config = MIWVConfig()
    assert config.embedder == "BAAI/bge-large-en-v1.5"
    assert config.rescore_strategy == "no"
    assert config.fraction == 0.05
    assert config.allow_identical_exemplars is False


@pytest.mark.parametrize("fraction", [1, 1.0, 1e-9, 0.5])
def test_every_fraction_above_zero_and_up_to_one_is_accepted(fraction):
    assert MIWVConfig(fraction=fraction).fraction == fraction


@pytest.mark.parametrize("fraction", [0, 0.0, -0.1, 1.0000001, 5, float("nan"), float("inf"), True, "0.05", None])
def test_any_other_fraction_is_refused_with_what_was_given(fraction):
    with pytest.raises(ValueError, match="`fraction` must be a number above 0 and at most 1") as error:
        MIWVConfig(fraction=fraction)
    assert repr(fraction) in str(error.value)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"rescore_strategy": "step"}, "`rescore_strategy` must be one of 'no', 'epoch', 'steps', but got 'step'"),
        ({"rescore_strategy": None}, "`rescore_strategy` must be one of 'no', 'epoch', 'steps', but got None"),
        ({"attention": "flash"}, "`attention` must be one of 'auto', 'segments', 'blocks', 'mask', 'varlen', but got"),
        (
            {"attention": "varlen", "layout": "padded"},
            "`attention` is 'varlen', but it has a meaning in rows of trees only, and `layout` is \"padded\"",
        ),
        ({"layout": "rows"}, "`layout` must be one of 'auto', 'tree', 'padded', but got 'rows'"),
    ],
)
def test_a_choice_that_is_none_of_the_allowed_names_them(values, words):
    with pytest.raises(ValueError, match=words):
        MIWVConfig(**values)


@pytest.mark.parametrize("name", ["tokens_per_batch", "logits_chunk", "scoring_max_length"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True])
def test_counts_must_be_whole_numbers_of_at_least_one(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number of at least 1, but got {value!r}"):
        MIWVConfig(**{name: value})


@pytest.mark.parametrize("steps", [0, -1, 1.5, "8", True])
def test_steps_between_rounds_must_be_a_whole_number_of_at_least_one(steps):
    with pytest.raises(ValueError, match=f"`rescore_steps` must be a whole number of at least 1, but got {steps!r}"):
        MIWVConfig(rescore_strategy="steps", rescore_steps=steps)


def test_rescoring_every_few_steps_needs_their_number():
    with pytest.raises(ValueError, match='`rescore_strategy="steps"` needs `rescore_steps`'):
        MIWVConfig(rescore_strategy="steps")


@pytest.mark.parametrize("strategy", ["no", "epoch"])
def test_a_number_of_steps_without_the_strategy_is_refused(strategy):
    with pytest.raises(ValueError, match=f"`rescore_steps` is 7, .*and that is '{strategy}'. Leave one of the two out"):
        MIWVConfig(rescore_strategy=strategy, rescore_steps=7)


@pytest.mark.parametrize("seed", [-1, 0.5, "7", True])
def test_a_seed_that_is_no_whole_number_of_at_least_zero_is_refused(seed):
    with pytest.raises(ValueError, match=f"`sampler_seed` must be a whole number of at least 0, but got {seed!r}"):
        MIWVConfig(sampler_seed=seed)


def test_the_smallest_allowed_numbers_are_accepted():
    config = MIWVConfig(sampler_seed=0, scoring_max_length=1, tokens_per_batch=1, logits_chunk=1)
    assert (config.sampler_seed, config.scoring_max_length) == (0, 1)
    assert (config.tokens_per_batch, config.logits_chunk) == (1, 1)


@pytest.mark.parametrize(
    "name", ["resample_each_epoch", "refine_near_threshold", "allow_identical_exemplars", "check_batches"]
)
@pytest.mark.parametrize("value", ["no", 1, None])
def test_a_switch_is_true_or_false(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be True or False, but got {value!r}"):
        MIWVConfig(**{name: value})


@pytest.mark.parametrize("value", [5, "", True, Path("runs")])
def test_a_folder_is_a_path(value):
    with pytest.raises(
        ValueError, match=f"`scores_dir` must be a folder's path as text, but got {re.escape(repr(value))}"
    ):
        MIWVConfig(scores_dir=value)


@pytest.mark.parametrize("embedder", ["tfidf", "model", "some/folder", np.zeros((3, 2)), torch.zeros(3, 2)])
def test_an_embedder_is_a_name_or_an_array_with_one_line_per_sample(embedder):
    assert MIWVConfig(embedder=embedder).embedder is embedder


@pytest.mark.parametrize(
    "embedder, given",
    [
        ("", "''"),
        (None, "None"),
        (7, "7"),
        (np.zeros(3), r"an array of shape \(3,\)"),
        (np.zeros((2, 3, 4)), r"an array of shape \(2, 3, 4\)"),
        (torch.zeros(3), r"an array of shape .*3"),
    ],
)
def test_an_unknown_embedder_is_refused_with_the_alternatives(embedder, given):
    words = f"Unknown embedder: .*sentence-transformers name or folder, 'tfidf', 'model', or an array.* but got {given}"
    with pytest.raises(ValueError, match=words):
        MIWVConfig(embedder=embedder)


@pytest.mark.parametrize("build", [lambda values: MIWVConfig(**values), MIWVConfig.from_dict])
def test_an_unknown_key_is_refused_with_the_nearest_and_all_known_ones(build):
    with pytest.raises(TypeError, match="Unknown configuration key: 'fractoin'. Did you mean `fraction`") as error:
        build({"fractoin": 0.1})
    for name in ("rescore_strategy", "embedder", "sampler_seed", "scoring_max_length", "scores_dir"):
        assert name in str(error.value).partition("Allowed: ")[2]


def test_several_unknown_keys_are_all_named_and_nothing_is_guessed_where_nothing_is_near():
    with pytest.raises(TypeError, match="Unknown configuration keys: 'zzz', 'qqq'. Allowed: ") as error:
        MIWVConfig(zzz=1, qqq=2, fraction=0.5)
    assert "Did you mean" not in str(error.value)


def test_from_dict_takes_the_same_values_as_the_constructor():
    values = {
        "fraction": 0.2,
        "rescore_strategy": "epoch",
        "embedder": "tfidf",
        "sampler_seed": 3,
        "scoring_max_length": 64,
    }
    assert MIWVConfig.from_dict(values) == MIWVConfig(**values)


def test_the_values_survive_json():
    config = MIWVConfig(fraction=0.2, embedder="tfidf", sampler_seed=3, scores_dir="runs/a")
    assert MIWVConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("array", [np.zeros((3, 2)), torch.zeros(3, 2)])
def test_an_embedding_array_is_described_by_its_shape(array):
    shown = MIWVConfig(embedder=array).to_dict()
    assert json.loads(json.dumps(shown))["embedder"] == "array of shape (3, 2)"


def test_copies_keep_the_values_and_replacements_are_checked_again():
    config = MIWVConfig(fraction=0.2, sampler_seed=4)
    assert copy.deepcopy(config) == config
    assert dataclasses.replace(config, fraction=0.3) == MIWVConfig(fraction=0.3, sampler_seed=4)
    with pytest.raises(ValueError, match="`fraction` must be"):
        dataclasses.replace(config, fraction=2.0)


TYPED = {
    "fraction": ("0.1", 0.1),
    "rescore_strategy": ("steps", "steps"),
    "rescore_steps": ("9", 9),
    "rescore_budget": ("0.5", 0.5),
    "score": ("column", "column"),
    "score_column": ("quality", "quality"),
    "extra_losses": ("both", "both"),
    "selection_budget": ("tokens", "tokens"),
    "preset": ("paper", "paper"),
    "min_response_tokens": ("3", 3),
    "quantile_band": ("0.1 0.9", [0.1, 0.9]),
    "loss_band": ("0.0 0.8", [0.0, 0.8]),
    "min_similarity": ("0.2", 0.2),
    "max_selected_similarity": ("0.8", 0.8),
    "length_bands": ("4", 4),
    "group_column": ("task", "task"),
    "selection": ("sample", "sample"),
    "temperature": ("0.5", 0.5),
    "resample_each_epoch": ("true", True),
    "diversity": ("mmr", "mmr"),
    "diversity_candidates": ("2.5", 2.5),
    "mmr_weight": ("0.7", 0.7),
    "epoch_order": ("easy_to_hard", "easy_to_hard"),
    "embedder": ("tfidf", "tfidf"),
    "exemplars_per_sample": ("4", 4),
    "sampler_seed": ("5", 5),
    "scoring_max_length": ("128", 128),
    "tokens_per_batch": ("99", 99),
    "tokens_per_row": ("88", 88),
    "logits_chunk": ("7", 7),
    "layout": ("tree", "tree"),
    "attention": ("segments", "segments"),
    "refine_near_threshold": ("false", False),
    "allow_identical_exemplars": ("true", True),
    "check_batches": ("false", False),
    "proxy_check": ("9", 9),
    "proxy_warn_below": ("0.25", 0.25),
    "scores_dir": ("runs/b", "runs/b"),
    "scores_from": ("runs/a", "runs/a"),
    "match": ("rows", "rows"),
}


def test_a_command_line_fills_every_field_through_the_argument_parser():
    assert list(TYPED) == [field.name for field in dataclasses.fields(MIWVConfig)]
    # Those that go with no other strategy of rescoring, or with one score only, stand on a line of their own.
    rescoring, per_sample = ("rescore_strategy", "rescore_steps", "rescore_budget"), "exemplars_per_sample"
    of_influence = {"score": ("influence", "influence")}
    for left_out, replaced in (
        (("resample_each_epoch", per_sample), {}),
        ((*rescoring, per_sample), {}),
        (("resample_each_epoch", "score_column"), of_influence),
    ):
        given = {name: typed for name, typed in (TYPED | replaced).items() if name not in left_out}
        line = " ".join(f"--{name} {typed}" for name, (typed, _) in given.items())
        (config,) = HfArgumentParser(MIWVConfig).parse_args_into_dataclasses(line.split())
        found = dataclasses.asdict(config)
        assert {name: found[name] for name in given} == {name: value for name, (_, value) in given.items()}
    default = MIWVConfig()
    assert all(getattr(default, name) != value for name, (_, value) in TYPED.items())


@pytest.mark.parametrize("arguments", [TrainingArguments, Seq2SeqTrainingArguments, SFTConfig])
def test_no_name_is_taken_by_the_arguments_of_a_trainer(arguments):
    assert TYPED.keys().isdisjoint(field.name for field in dataclasses.fields(arguments))


def test_an_empty_command_line_gives_the_defaults():
    (config,) = HfArgumentParser(MIWVConfig).parse_args_into_dataclasses([])
    assert config == MIWVConfig()


def test_the_argument_parser_refuses_an_impossible_value():
    with pytest.raises(ValueError, match="`fraction` must be"):
        HfArgumentParser(MIWVConfig).parse_args_into_dataclasses(["--fraction", "0"])


@pytest.mark.parametrize("temperature", [0, -1, 0.009, float("nan"), float("inf"), "1", True])
def test_a_temperature_is_a_number_above_nothing(temperature):
    with pytest.raises(ValueError, match="`temperature` must be a number of at least 0.01, but got"):
        MIWVConfig(temperature=temperature)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"selection": "top"}, "`resample_each_epoch` draws anew in each epoch, but `selection` is 'top'"),
        ({"selection": "sample", "rescore_strategy": "epoch"}, "but `rescore_strategy` is 'epoch', whose rounds draw"),
        ({"selection": "sample", "rescore_strategy": "steps", "rescore_steps": 2}, "but `rescore_strategy` is 'steps'"),
    ],
)
def test_epochs_draw_anew_from_one_round_only(values, words):
    with pytest.raises(ValueError, match=words):
        MIWVConfig(resample_each_epoch=True, **values)
    assert MIWVConfig(selection="sample", resample_each_epoch=True).resample_each_epoch


def test_a_selection_is_one_of_two():
    with pytest.raises(ValueError, match="`selection` must be one of 'top', 'sample', but got 'soft'"):
        MIWVConfig(selection="soft")
