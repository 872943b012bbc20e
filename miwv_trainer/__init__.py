"""Choosing the data a language model learns from, while it learns."""

from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.build import tokenize
from miwv_trainer.training.attach import attach
from miwv_trainer.training.callback import MIWVCallback
from miwv_trainer.training.checkpoints import last_complete_checkpoint
from miwv_trainer.training.sampler import MIWVDataSampler
from miwv_trainer.version import __version__ as __version__

__all__ = [
    "MIWVCallback",
    "MIWVConfig",
    "MIWVDataSampler",
    "attach",
    "last_complete_checkpoint",
    "tokenize",
]
