"""What a dataclass's docstring says about its fields, for `--help` and the documentation.

A description that is written in several places soon says several things. So it is written once, in the `Args` section
of the docstring, which editors and `help()` show, and everything else is made from there.
"""

import inspect
import re
from dataclasses import fields
from types import MappingProxyType
from typing import NamedTuple, TypeVar

Described = TypeVar("Described")


class FieldDescription(NamedTuple):
    """
    Args:
        name: The field's name.
        text: Its description, in one line.
    """

    name: str
    text: str

    @property
    def summary(self) -> str:
        """The first sentence, for a line of help."""
        return self.text.partition(". ")[0].removesuffix(".") + "."


def describe_fields(cls: type) -> list[FieldDescription]:
    """The entries of the docstring's `Args` section; none under `python -OO`, which removes docstrings."""
    docstring = inspect.getdoc(cls) or ""
    # The section ends with its first blank line, where `Raises` or another section begins.
    section = docstring.partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return [FieldDescription(name, " ".join(text.split())) for name, text in entries]


def with_help(cls: type[Described]) -> type[Described]:
    """Decorates a dataclass: gives each field the `help` that HfArgumentParser shows beside its option."""
    summaries = {described.name: described.summary for described in describe_fields(cls)}
    for each in fields(cls):  # type: ignore[arg-type]
        if each.name in summaries:
            # HfArgumentParser hands all of a field's metadata to `add_argument`, so the long text has no place in it.
            each.metadata = MappingProxyType({**each.metadata, "help": summaries[each.name]})
    return cls
