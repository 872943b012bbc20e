"""What a training run tells the person at its console: one line a round, as far as the Trainer's arguments let it."""

import logging
import sys
from dataclasses import dataclass

from tqdm.auto import tqdm
from transformers import TrainingArguments

logger = logging.getLogger("miwv_trainer")


@dataclass(frozen=True)
class Console:
    """
    Where lines for people go: to the log where it takes information, else beside the progress bars.

    Args:
        shows: Whether anything is shown where the log takes no information: neither `disable_tqdm` nor a log level
            above "warning" was asked for.
    """

    shows: bool

    @classmethod
    def of(cls, args: TrainingArguments) -> "Console":
        """The console of a Trainer; a `log_level` that was asked for becomes this library's, as it does its own."""
        level = args.get_process_log_level()
        if args.log_level != "passive":
            logger.setLevel(level)
        return cls(shows=not args.disable_tqdm and level <= logging.WARNING)

    def tell(self, line: str) -> None:
        # Without a handler anywhere, logging shows warnings only, whatever a logger's level is.
        if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
            logger.info(line)
        elif self.shows:
            tqdm.write(line, file=sys.stderr)
