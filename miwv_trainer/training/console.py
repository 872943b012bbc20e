"""The lines that a person at the console of a training sees: one a round, unless the Trainer's arguments say no."""

import logging
import sys
from dataclasses import dataclass

from tqdm.auto import tqdm
from transformers import TrainingArguments

logger = logging.getLogger("miwv_trainer")


@dataclass(frozen=True)
class Console:
    """
    Where lines for people go: to the log if it takes level INFO, else above the progress bars.

    Args:
        shows: Whether they go above the progress bars: neither `disable_tqdm` nor a log level above "warning" was asked
            for.
    """

    shows: bool

    @classmethod
    def of(cls, args: TrainingArguments) -> "Console":
        """The console of a Trainer. Sets this library's log level to the Trainer's `log_level`, if one is given."""
        level = args.get_process_log_level()
        if args.log_level != "passive":
            logger.setLevel(level)
        return cls(shows=not args.disable_tqdm and level <= logging.WARNING)

    def tell(self, line: str) -> None:
        # A script that sets up no logging has no handler, and Python then prints warnings only, whatever the level is.
        if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
            logger.info(line)
        elif self.shows:
            tqdm.write(line, file=sys.stderr)
