"""Writes configuration.md from the docstring of `MIWVConfig`: python docs/make_configuration.py"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from miwv_trainer import MIWVConfig
from miwv_trainer.storage.atomic import write_text

PAGE = Path(__file__).with_name("configuration.md")
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


def entries() -> Iterator[tuple[str, str, str]]:
    """Name, type with default, and description of each setting, as the docstring has them."""
    text = inspect.getdoc(MIWVConfig) or ""
    arguments = re.split(r"\n(?=[A-Z]\w+:\n)", text.split("Args:\n")[1])[0]
    for entry in re.findall(r"^    (\w+) \(([^\n]*)\):\n((?:        [^\n]*\n?|\n)+)", arguments, re.MULTILINE):
        name, kind, description = entry
        yield name, kind, inspect.cleandoc(description)


def page() -> str:
    parts = [f"## `{name}`\n\n{kind}\n\n{description}\n" for name, kind, description in entries()]
    return "\n".join([HEAD, *parts])


if __name__ == "__main__":
    write_text(PAGE, page())
