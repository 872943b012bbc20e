"""
How many tokens one scoring forward takes: as many as make it faster on the device, as far as memory is free.

Extra memory of a forward without gradients, in bytes over the loaded model, with b bytes a number of the model's dtype:

    tokens * b * (4 * intermediate size + 8 * hidden size)      one layer's activations, the widest moment
    + tokens * b * 6 * hidden size                              copied keys and values, in variable-length attention
    + rows * tokens_per_row**2 * (kinds + b)                    masks, if rows have them, one for each kind of layer
    + rows * tokens_per_row**2 * heads * (4 + 2 * b)            eager attention's weights, instead of masks
    + logits_chunk * vocabulary * (8 + b)                       the head
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch import nn

from miwv_trainer.choices import Attention, AttentionChoice
from miwv_trainer.config import MIWVConfig
from miwv_trainer.distributed.world import World
from miwv_trainer.distributed.wrappers import get_attention_implementation, get_inner_model
from miwv_trainer.scoring.attention import choose_tree_attention, count_masks
from miwv_trainer.scoring.context import read_size

# The formula leaves out fragmentation, kernels' workspaces and what other processes will take.
SHARE_OF_FREE_MEMORY = 0.5
LEAST_TOKENS = 256
# A longer forward is no faster, however much memory is free.
TOKENS_ON_CPU = 4096
TOKENS_ON_ACCELERATOR = 32768
# A forward takes at most 1/256 of the pool's tokens, so that up to 64 ranks get nearly equal work.
LEAST_FORWARDS = 256
# Longer rows repeat fewer trunks. Rows with masks also compute the masked pairs, whose number grows with the square.
ROW_WITHOUT_MASK = 4096
ROW_WITH_MASK_ON_CPU = 1024
ROW_WITH_MASK_ON_ACCELERATOR = 2048


@dataclass(frozen=True)
class MemoryBudget:
    """
    What limits the size of forwards.

    It is measured once for a round and kept in the round's journal, because free memory changes from minute to minute:
    a round that is resumed after a kill must compose the batches that it had.

    Args:
        free_bytes: Memory free on the rank that has least.
        longest_row: Most tokens of a row of trees that still make scoring faster on this device.
        longest_batch: Most tokens of a forward that still do.
    """

    free_bytes: int
    longest_row: int
    longest_batch: int


@dataclass(frozen=True)
class BatchSize:
    """Most tokens of one row of trees, and of one forward, padding included. A longer sample is forwarded alone."""

    tokens_per_row: int
    tokens_per_batch: int


def measure_memory(model: nn.Module, world: World, asked: AttentionChoice = "auto") -> MemoryBudget:
    """The memory budget, the same on every rank. All ranks call this together."""
    device = next(model.parameters()).device
    longest_batch = TOKENS_ON_CPU if device.type == "cpu" else TOKENS_ON_ACCELERATOR
    return MemoryBudget(find_least_free_memory(device, world), find_longest_row(model, asked), longest_batch)


def find_longest_row(model: nn.Module, asked: AttentionChoice) -> int:
    """Most tokens of a row of trees that make scoring faster, by how layers attend."""
    if choose_tree_attention(model, asked) != "mask":
        return ROW_WITHOUT_MASK
    is_on_cpu = next(model.parameters()).device.type == "cpu"
    return ROW_WITH_MASK_ON_CPU if is_on_cpu else ROW_WITH_MASK_ON_ACCELERATOR


def size_batches(model: nn.Module, config: MIWVConfig, memory: MemoryBudget, work: int | None = None) -> BatchSize:
    """
    The size of forwards: as configured; else the most that is faster, halved until half of the free memory holds it.

    Args:
        work: Tokens of all forwards together, about. A forward takes at most a small share of them, or one row. The
            share does not depend on the number of ranks, so neither do batches, nor the last bits of losses.
    """
    longest_row, batch = memory.longest_row, config.tokens_per_batch
    if batch is None:
        batch = memory.longest_batch
        if work is not None:
            batch = min(batch, max(work // LEAST_FORWARDS, longest_row))
        batch = max(batch, config.tokens_per_row or 0)
        attention = choose_tree_attention(model, config.attention)
        while batch > LEAST_TOKENS and (
            estimate_memory(
                model, min(config.tokens_per_row or longest_row, batch), batch, config.logits_chunk, attention
            )
            > SHARE_OF_FREE_MEMORY * memory.free_bytes
        ):
            batch //= 2
    return BatchSize(config.tokens_per_row or min(longest_row, batch), batch)


def estimate_memory(model: nn.Module, tokens_per_row: int, tokens: int, logits_chunk: int, attention: Attention) -> int:
    """Bytes that a scoring forward of `tokens` tokens takes over the loaded model, by the formula above."""
    number = next(model.parameters()).dtype.itemsize
    hidden, intermediate, heads, vocabulary = read_sizes(model)
    # A trunk's keys and values stand once for each branch: 1.5 keys for each token of real pools, at most 2.3 in a row.
    copies = 6 * hidden if attention == "varlen" else 0
    activations = tokens * number * (4 * intermediate + 8 * hidden + copies)
    pairs = 0 if attention != "mask" else -(-tokens // tokens_per_row) * tokens_per_row**2
    is_eager = get_attention_implementation(model) == "eager"
    of_a_pair = heads * (4 + 2 * number) if is_eager else count_masks(model) + number
    return activations + pairs * of_a_pair + logits_chunk * vocabulary * (8 + number)


class Sizes(NamedTuple):
    """What the formula knows of a model."""

    hidden: int
    intermediate: int
    heads: int
    vocabulary: int


def read_sizes(model: nn.Module) -> Sizes:
    """
    The sizes of a model by its configuration. Entries that a family does not have (Mamba has no heads, MPT no hidden
    size) come from its modules, whose attributes say the whole size also where weights are sharded.
    """
    inner = get_inner_model(model)
    config = inner.config.get_text_config()
    linear = [module for module in inner.modules() if isinstance(module, nn.Linear)]
    embeddings = [module for module in inner.modules() if isinstance(module, nn.Embedding)]
    vocabulary = read_size(config, "vocab_size") or max((each.num_embeddings for each in embeddings), default=1)
    hidden = read_size(config, "hidden_size", "d_model") or max((each.embedding_dim for each in embeddings), default=1)
    widths = [width for each in linear for width in (each.in_features, each.out_features) if width != vocabulary]
    intermediate = read_size(config, "intermediate_size") or max([4 * hidden, *widths])
    # Most heads are 64 numbers wide or wider.
    heads = read_size(config, "num_attention_heads", "n_heads") or max(hidden // 64, 1)
    return Sizes(hidden, intermediate, heads, vocabulary)


def find_least_free_memory(device: torch.device, world: World) -> int:
    """Bytes free on the rank that has least, on every rank. Ranks on a CPU share what is free."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        # Memory that torch has reserved and not given out counts as taken for the driver, and is free to torch.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free = psutil.virtual_memory().available // world.size
    slots = np.zeros(world.size, dtype=np.int64)
    slots[world.rank] = free
    return int(world.all_reduce_sum(slots).min())
