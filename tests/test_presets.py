"""Presets: applied once, to what was not given; an error blames the preset for the values that it has set."""

import copy
import dataclasses
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser

from miwv_trainer import MIWVConfig
from miwv_trainer.choices import PRESETS, SELECTION_FIELDS
from miwv_trainer.rounds.stored_config import restore_config
from tests.helpers.rounds import made_columns, write_round

GUARDED = {"selection_budget": "tokens", "loss_band": [0.0, 0.7], "max_selected_similarity": 0.95}
BY_PRESET = (
    "The `preset` 'guarded' sets `loss_band` to [0.0, 0.7], but `score='random'` makes no forward, so that there are "
    "no losses. Use another score, or leave the preset out and give those of its values that you want, or measure "
    'losses with `extra_losses="zero_shot"`.'
)
BY_USER = "`loss_band` is [0.0, 0.7], but `score='random'` makes no forward"


def changed(config: MIWVConfig) -> dict[str, Any]:
    default = MIWVConfig().to_dict()
    return {name: value for name, value in config.to_dict().items() if value != default[name]}


def parse(line: str) -> MIWVConfig:
    (config,) = HfArgumentParser(MIWVConfig).parse_args_into_dataclasses(line.split())
    return config


def test_presets_name_fields_and_change_their_defaults() -> None:
    names = {field.name for field in dataclasses.fields(MIWVConfig)}
    assert set(SELECTION_FIELDS) <= names
    for values in PRESETS.values():
        assert set(values) <= names
        assert all(getattr(MIWVConfig(), name) != value for name, value in values.items())


def test_a_preset_sets_what_it_says_and_nothing_else() -> None:
    assert changed(MIWVConfig(preset="none")) == {}
    assert changed(MIWVConfig(preset="paper")) == {"preset": "paper", "allow_identical_exemplars": True}
    assert changed(MIWVConfig(preset="guarded")) == {"preset": "guarded", **GUARDED}


@pytest.mark.parametrize(
    "name, value",
    [("loss_band", [0.0, 0.9]), ("max_selected_similarity", 0.5), ("min_response_tokens", 7), ("length_bands", 2)],
)
def test_a_preset_leaves_what_is_given(name: str, value: Any) -> None:
    wanted = {"preset": "guarded", **GUARDED, name: value}
    assert changed(MIWVConfig(preset="guarded", **{name: value})) == wanted
    assert changed(MIWVConfig.from_dict({"preset": "guarded", name: value})) == wanted


def test_a_default_that_is_given_is_given() -> None:
    """It used to be taken for not given, so that a value that was typed was overruled in silence."""
    rest = {"selection_budget": "tokens", "max_selected_similarity": 0.95}
    for config in (
        MIWVConfig(preset="guarded", loss_band=[0.0, 1.0]),
        MIWVConfig.from_dict({"preset": "guarded", "loss_band": [0.0, 1.0]}),
        HfArgumentParser(MIWVConfig).parse_dict({"preset": "guarded", "loss_band": [0.0, 1.0]})[0],
        MIWVConfig(0.05, "no", None, 1.0, "miwv", None, "none", "tokens", "guarded", 0, [0.0, 1.0], [0.0, 1.0]),
    ):
        assert changed(config) == {"preset": "guarded", **rest}
    assert MIWVConfig(preset="guarded", loss_band=[0.0, 1.0], score="random").selection_budget == "tokens"


def test_an_argument_parser_gives_every_field_and_so_a_default_counts_as_not_given() -> None:
    assert parse("--preset guarded") == MIWVConfig(preset="guarded")
    assert parse("--preset guarded --length_bands 2") == MIWVConfig(preset="guarded", length_bands=2)
    assert parse("--preset guarded --loss_band 0 0.9").loss_band == [0.0, 0.9]
    with pytest.raises(ValueError, match=re.escape(BY_PRESET)):
        parse("--preset guarded --score random")


def test_replacing_does_not_apply_a_preset_again() -> None:
    config = MIWVConfig(preset="guarded", length_bands=2)
    plain = dataclasses.replace(config, loss_band=[0.0, 1.0], selection_budget="samples", max_selected_similarity=1.0)
    assert changed(plain) == {"preset": "guarded", "length_bands": 2}
    assert changed(dataclasses.replace(plain, fraction=0.2)) == {**changed(plain), "fraction": 0.2}
    assert changed(dataclasses.replace(plain, preset="guarded")) == changed(plain)
    assert changed(dataclasses.replace(config, fraction=0.2)) == {**changed(config), "fraction": 0.2}
    paper = MIWVConfig(preset="paper")
    assert not dataclasses.replace(paper, allow_identical_exemplars=False).allow_identical_exemplars
    assert changed(config.without_bands())["preset"] == "guarded"
    assert config.without_bands().loss_band == config.without_bands().quantile_band == [0.0, 1.0]


def test_another_preset_is_applied_when_it_replaces_the_first() -> None:
    guarded = MIWVConfig(preset="guarded")
    assert changed(dataclasses.replace(MIWVConfig(), preset="guarded")) == changed(guarded)
    both = dataclasses.replace(guarded, preset="paper")
    assert changed(both) == {**GUARDED, "preset": "paper", "allow_identical_exemplars": True}
    assert changed(dataclasses.replace(guarded, preset="none")) == GUARDED


@pytest.mark.parametrize("passed_on", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_a_copy_knows_that_its_preset_was_applied(passed_on: Any) -> None:
    config = passed_on(MIWVConfig(preset="guarded"))
    assert config == MIWVConfig(preset="guarded")
    assert dataclasses.replace(config, loss_band=[0.0, 1.0]).loss_band == [0.0, 1.0]


def test_what_is_written_as_json_is_read_again_as_it_was() -> None:
    replaced = dataclasses.replace(MIWVConfig(preset="guarded"), loss_band=[0.0, 1.0])
    for config in (MIWVConfig(), MIWVConfig(preset="guarded", length_bands=2), replaced):
        again = MIWVConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert dataclasses.replace(again, fraction=0.05) == config


def test_what_a_preset_has_set_is_not_shared() -> None:
    MIWVConfig(preset="guarded").loss_band[1] = 0.5
    assert MIWVConfig(preset="guarded").loss_band == [0.0, 0.7]


def test_that_a_preset_was_applied_is_no_setting() -> None:
    with pytest.raises(TypeError, match="Unknown configuration key: 'applied_preset'"):
        MIWVConfig.from_dict({"applied_preset": None})
    assert "applied_preset" not in MIWVConfig(preset="guarded").to_dict()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MIWVConfig(preset="guarded", score="random"), BY_PRESET),
        (lambda: MIWVConfig.from_dict({"preset": "guarded", "score": "random"}), BY_PRESET),
        (lambda: dataclasses.replace(MIWVConfig(preset="guarded"), score="random"), BY_PRESET),
        (lambda: MIWVConfig(loss_band=[0.0, 0.7], score="random"), BY_USER),
        (lambda: MIWVConfig(preset="guarded", loss_band=[0.0, 0.7], score="random"), BY_USER),
        (
            lambda: dataclasses.replace(MIWVConfig(preset="guarded"), loss_band=[0.1, 0.7], score="random"),
            "`loss_band` is [0.1, 0.7], but `score='random'` makes no forward",
        ),
    ],
)
def test_an_error_says_whether_a_value_was_given_or_set_by_the_preset(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(words)):
        make()


def test_a_value_of_the_round_that_is_selected_from_is_told_as_that(tmp_path: Path) -> None:
    current = write_round(tmp_path, made_columns(4), [0], number=3, loss_band=[0.0, 0.7])
    told = "Settings that are not given are those of round 3; to undo one, give its default."
    with pytest.raises(ValueError, match=f"^{re.escape(BY_USER)}.* {told}$"):
        restore_config(current, score="random")
    assert restore_config(current, score="random", loss_band=[0.0, 1.0]).score == "random"
    for changes in ({"score": "random", "loss_band": [0.0, 0.7]}, {"fraction": 5}):
        with pytest.raises(ValueError) as error:
            restore_config(current, **changes)
        assert "Round 3" not in str(error.value)


def test_a_preset_given_for_a_round_sets_what_the_round_had_at_its_default(tmp_path: Path) -> None:
    current = write_round(tmp_path, made_columns(4), [0], **MIWVConfig(min_response_tokens=3).to_dict())
    found = restore_config(current, preset="guarded")
    assert {name: getattr(found, name) for name in GUARDED} == GUARDED
    assert found.min_response_tokens == 3
    assert restore_config(current, preset="guarded", loss_band=[0.0, 1.0]).loss_band == [0.0, 1.0]
