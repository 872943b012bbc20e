"""Choosing the data a language model learns from, while it learns.

What is imported here is for users, and docs/python.md lists it. Everything below may change from version to version.

A name is imported when it is first used (PEP 562). With all of them imported at once, `miwv --help` took 6.5 s, most of
it for torch and transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from miwv_trainer.version import __version__ as __version__

# For type checkers and editors, which do not run `__getattr__`. A test holds `_MODULES` to it.
if TYPE_CHECKING:
    from miwv_trainer.config import MIWVConfig
    from miwv_trainer.data.build import pool_from_rows, pool_from_tokenized, tokenize
    from miwv_trainer.data.files import load_rows
    from miwv_trainer.data.models import load_model
    from miwv_trainer.data.pool import Pool
    from miwv_trainer.data.rows import JsonRows, to_dataset
    from miwv_trainer.report.tables import format_rounds, format_scores
    from miwv_trainer.rounds.without_training import score_and_select, select_again
    from miwv_trainer.scoring.response_losses import compute_response_losses
    from miwv_trainer.selection.choose import Choice
    from miwv_trainer.selection.measured import Measured
    from miwv_trainer.storage.store import read_rounds
    from miwv_trainer.storage.stored_round import StoredRound
    from miwv_trainer.training.attach import attach
    from miwv_trainer.training.callback import MIWVCallback
    from miwv_trainer.training.checkpoints import last_complete_checkpoint
    from miwv_trainer.training.sampler import MIWVDataSampler

# In the order in which docs/python.md lists them: training, pools, rounds, models.
__all__ = [
    "MIWVConfig",
    "Measured",
    "attach",
    "MIWVCallback",
    "MIWVDataSampler",
    "last_complete_checkpoint",
    "tokenize",
    "load_rows",
    "JsonRows",
    "to_dataset",
    "pool_from_rows",
    "pool_from_tokenized",
    "Pool",
    "score_and_select",
    "read_rounds",
    "StoredRound",
    "select_again",
    "Choice",
    "format_rounds",
    "format_scores",
    "load_model",
    "compute_response_losses",
]
_MODULES = {
    "config": ("MIWVConfig",),
    "data.build": ("pool_from_rows", "pool_from_tokenized", "tokenize"),
    "data.files": ("load_rows",),
    "data.models": ("load_model",),
    "data.pool": ("Pool",),
    "data.rows": ("JsonRows", "to_dataset"),
    "report.tables": ("format_rounds", "format_scores"),
    "rounds.without_training": ("score_and_select", "select_again"),
    "scoring.response_losses": ("compute_response_losses",),
    "selection.choose": ("Choice",),
    "selection.measured": ("Measured",),
    "storage.store": ("read_rounds",),
    "storage.stored_round": ("StoredRound",),
    "training.attach": ("attach",),
    "training.callback": ("MIWVCallback",),
    "training.checkpoints": ("last_complete_checkpoint",),
    "training.sampler": ("MIWVDataSampler",),
}
_HOMES = {name: f"miwv_trainer.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Imports a public name when it is first asked for, and keeps it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """All names, those that are not imported yet among them: tab completion asks for them."""
    return sorted({*globals(), *__all__})
