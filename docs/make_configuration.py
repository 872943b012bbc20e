"""Writes configuration.md and the README's table of settings from `MIWVConfig`: python -m docs.make_configuration"""

import textwrap
from dataclasses import MISSING, Field, fields
from typing import Any, get_args, get_type_hints

from benchmarks.measure_code import ROOT, write_between_markers
from miwv_trainer import MIWVConfig

PAGE, README = ROOT / "docs" / "configuration.md", ROOT / "README.md"
HEAD = """# Every setting

`MIWVConfig` is a dataclass that works with `HfArgumentParser`, where each setting is an option of the same name; none
of them is one of `TrainingArguments` or of `SFTConfig`. `attach` also takes a mapping of them. Values are checked when
it is constructed, and unknown names are refused. [Bad input](bad_input.md) lists the errors.

```python
from transformers import HfArgumentParser, TrainingArguments

from miwv_trainer import MIWVConfig

parser = HfArgumentParser([TrainingArguments, MIWVConfig])
args, config = parser.parse_args_into_dataclasses(["--output_dir", "out", "--fraction", "0.1", "--score", "longest"])
assert (config.fraction, config.score) == (0.1, "longest")
```
"""


def get_default(setting: Field[Any]) -> Any:
    return setting.default_factory() if setting.default_factory is not MISSING else setting.default


def show_value(value: Any) -> str:
    """A value as it is written in Python, texts in double quotes."""
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def list_choices(setting: Field[Any]) -> str:
    """The values that a setting allows, if it has a fixed set of them; else an empty text."""
    allowed = get_args(get_type_hints(MIWVConfig)[setting.name])
    if not all(isinstance(value, str) for value in allowed):
        return ""
    return ", ".join(map(show_value, allowed))


def describe_type(setting: Field[Any]) -> str:
    """What values a setting takes and which is its default, in a line."""
    hint, default = get_type_hints(MIWVConfig)[setting.name], get_default(setting)
    if choices := list_choices(setting):
        return f"one of {choices}; defaults to {show_value(default)}"
    if default is None:
        return f"`{get_args(hint)[0].__name__}`, *optional*"
    name = hint.__name__ if not get_args(hint) else f"{hint.__name__}[{get_args(hint)[0].__name__}]"
    return f"`{name}`, defaults to {show_value(default)}"


def make_page() -> str:
    """The text of docs/configuration.md."""
    settings = {setting.name: setting for setting in fields(MIWVConfig)}
    parts = [HEAD]
    for name, text in MIWVConfig.describe():
        wrapped = textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)
        parts.append(f"## `{name}`\n\n{describe_type(settings[name])}\n\n{wrapped}\n")
    return "\n".join(parts)


def make_table() -> str:
    """The README's table: the first sentence of each description."""
    settings = {setting.name: setting for setting in fields(MIWVConfig)}
    lines = ["| name | default | |", "|---|---|---|"]
    for described in MIWVConfig.describe():
        setting = settings[described.name]
        default, choices = get_default(setting), list_choices(setting)
        shown = "none" if default is None else show_value(default)
        told = f"{described.summary} One of {choices}." if choices else described.summary
        lines.append(f"| `{described.name}` | {shown} | {told} |")
    return "\n".join(lines)


def main() -> None:
    PAGE.write_text(make_page(), encoding="utf-8")
    write_between_markers(README, "settings", make_table())


if __name__ == "__main__":
    main()
