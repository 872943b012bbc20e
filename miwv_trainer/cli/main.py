"""The command `miwv`: score a pool, select from its scores, report on them."""

import logging
import sys
from collections.abc import Sequence

from miwv_trainer.cli.options import OPTIONS, ReportOptions, ScoreOptions, SelectOptions, parse_options
from miwv_trainer.foreign_errors import join_lines

BAD_INPUT, INTERRUPTED = 2, 130  # 128 + SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs one subcommand.

    Args:
        argv: The words after `miwv`; by default those of this process.

    Returns:
        The exit status. Bad input is told in one line on standard error.
    """
    # INFO of this library only: transformers and datasets log dozens of lines of it while a model is loaded.
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("miwv_trainer").setLevel(logging.INFO)
    options = parse_options(list(sys.argv[1:] if argv is None else argv))
    try:
        run(options)
    # What the library raises for bad input, and what a machine does (a full disk, no memory). Anything else is a defect
    # of the library and shows its traceback.
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        # The message begins on a line of its own, because a progress bar may stand on the current one.
        print(f"\nmiwv: {join_lines(name_as_typed(str(error)))}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\nmiwv: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def run(options: ScoreOptions | SelectOptions | ReportOptions) -> None:
    """Runs the subcommand that the options belong to."""
    # Each is imported only where it runs. They import torch and transformers, which took 6.5 s before `miwv --help`
    # printed its first line; test_startup.py holds the rest of the command line to what is light.
    if isinstance(options, ScoreOptions):
        from miwv_trainer.cli.score import score

        score(options)
    elif isinstance(options, SelectOptions):
        from miwv_trainer.cli.select import select

        select(options)
    else:
        from miwv_trainer.cli.report import report

        report(options)


def name_as_typed(message: str) -> str:
    """
    Replaces the names of fields in an error of the library by the options that set them.

    The library's errors are for Python and for `HfArgumentParser`, where a setting is called by its field.
    """
    for name, option in OPTIONS.items():
        message = message.replace(f"`{name}`", f"`{option}`")
    return message
