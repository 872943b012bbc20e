"""Choosing the data a language model learns from, while it learns.

What is imported here is for users, and docs/python.md lists it. Everything below may change from version to version.
"""

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
from miwv_trainer.storage.store import read_rounds
from miwv_trainer.storage.stored_round import StoredRound
from miwv_trainer.training.attach import attach
from miwv_trainer.training.callback import MIWVCallback
from miwv_trainer.training.checkpoints import last_complete_checkpoint
from miwv_trainer.training.sampler import MIWVDataSampler
from miwv_trainer.version import __version__ as __version__

# In the order in which docs/python.md lists them: training, pools, rounds, models.
__all__ = [
    "MIWVConfig",
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
