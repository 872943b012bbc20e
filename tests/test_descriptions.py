"""Every field is described once, in the docstring; `--help` shows the first sentence."""

import argparse
from dataclasses import dataclass, field, fields

import pytest
from transformers import HfArgumentParser

from miwv_trainer import MIWVConfig
from miwv_trainer.descriptions import FieldDescription, describe_fields, with_help


@dataclass
class Example:
    """
    Something with two fields.

    Args:
        first: How many there are, 0.5 of them at most. More `about: it`
            in another line.
        second: Either
            `"a"` or `"b"`

    Raises:
        third: nothing of the fields.
    """

    first: int = 0
    second: list[str] = field(default_factory=list, metadata={"nargs": 2})
    third: bool = False


def test_descriptions_are_the_entries_of_the_docstring() -> None:
    first, second = describe_fields(Example)
    assert first == FieldDescription(
        "first", "How many there are, 0.5 of them at most. More `about: it` in another line."
    )
    assert (first.summary, second.summary) == ("How many there are, 0.5 of them at most.", 'Either `"a"` or `"b"`.')


def test_help_is_added_to_what_a_field_holds_already() -> None:
    decorated = with_help(Example)
    assert decorated is Example
    assert [dict(each.metadata) for each in fields(Example)] == [
        {"help": "How many there are, 0.5 of them at most."},
        {"nargs": 2, "help": 'Either `"a"` or `"b"`.'},
        {},
    ]


def test_without_docstrings_there_is_no_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `python -OO`."""
    monkeypatch.setattr(Example, "__doc__", None)
    assert describe_fields(Example) == []


def test_every_setting_is_described_once_and_in_the_order_of_the_fields() -> None:
    assert [described.name for described in MIWVConfig.describe()] == [each.name for each in fields(MIWVConfig)]
    assert len({described.text for described in MIWVConfig.describe()}) == len(fields(MIWVConfig))


def test_the_argument_parser_shows_the_first_sentence_of_each_description(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    shown = " ".join(HfArgumentParser(MIWVConfig, formatter_class=argparse.HelpFormatter).format_help().split())
    for described in MIWVConfig.describe():
        assert f"--{described.name}" in shown
        assert described.summary in shown, described.name
