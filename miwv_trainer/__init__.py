"""Choosing the data a language model learns from, while it learns."""

from miwv_trainer.attach import attach
from miwv_trainer.callback import MIWVCallback
from miwv_trainer.checkpoints import last_complete_checkpoint
from miwv_trainer.config import MIWVConfig
from miwv_trainer.rendering import tokenize
from miwv_trainer.sampler import MIWVDataSampler

__version__ = "0.1.0"
__all__ = ["MIWVCallback", "MIWVConfig", "MIWVDataSampler", "attach", "last_complete_checkpoint", "tokenize"]
