"""The command `miwv`: score a pool, select from its scores, report on them."""

import logging
import sys
from collections.abc import Sequence

from miwv_trainer.cli.options import OPTIONS, make_parser
from miwv_trainer.cli.report import report
from miwv_trainer.cli.score import score
from miwv_trainer.cli.select import select


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; bad input ends in one line on standard error and exit status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("miwv_trainer").setLevel(logging.INFO)
    typed = list(sys.argv[1:] if argv is None else argv)
    arguments = make_parser(score, select, report).parse_args(typed)
    arguments.typed = typed
    try:
        arguments.run(arguments)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"\nmiwv: {_as_typed(str(error))}", file=sys.stderr)  # a progress bar may stand on the line
        return 2
    except KeyboardInterrupt:
        print("\nmiwv: interrupted", file=sys.stderr)
        return 130
    return 0


def _as_typed(message: str) -> str:
    """An error of the library in the words of the command line."""
    for name, option in OPTIONS.items():
        message = message.replace(f"`{name}`", f"`{option}`")
    return message
