"""Whether the batches that arrive hold selected samples.

The dataset is compared before training begins, but a dataloader and a collator stand between it and the model, and both
may be the user's own. A hook on the model looks at the token ids of some training batches: the first two of every
epoch, and every hundredth. On a GPU a look waits for the device once, which is why not every batch is looked at.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from miwv_trainer.data.pool import Pool
from miwv_trainer.data.sample_hashes import hash_ids, hash_sample_ids

FIRST_LOOKS = 2
LOOK_EVERY = 100
ROWS_PER_LOOK = 4


class BatchCheck:
    """
    Compares the rows of training batches with the samples in force.

    Args:
        pool: The N samples.
        find_epoch: Returns the epoch that training is in.
        order: From an epoch to the pool indices that it trains on, which change as rounds are scored.
    """

    def __init__(self, pool: Pool, find_epoch: Callable[[], int], order: Callable[[int], np.ndarray]) -> None:
        self._pool = pool
        self._find_epoch = find_epoch
        self._order = order
        self._hashes = hash_sample_ids(pool)
        self._epoch, self._batches = -1, 0

    def __deepcopy__(self, memo: dict[int, object]) -> "BatchCheck":
        # A copy of the model, as callbacks that average weights make one, copies its hooks. The pool may be a gigabyte.
        return self

    def watch(self, model: nn.Module) -> RemovableHandle:
        """Looks at the batches of a model from now on, until the handle is removed."""
        return model.register_forward_pre_hook(self._look, with_kwargs=True)

    # `model.compile()` compiles hooks too, and stops at the hash of an array that is not there while it traces.
    @torch.compiler.disable
    def _look(self, model: nn.Module, args: tuple[Any, ...], inputs: Mapping[str, Any]) -> None:
        # Scoring, evaluation and generation run in evaluation mode; they forward what they like.
        if not model.training:
            return
        epoch = self._find_epoch()
        self._batches = self._batches + 1 if epoch == self._epoch else 1
        self._epoch = epoch
        if self._batches > FIRST_LOOKS and self._batches % LOOK_EVERY:
            return
        rows, allowed = list(_read_rows(inputs)), np.unique(self._order(epoch))
        hashes = set(self._hashes[allowed].tolist())
        strangers = [row for row in rows if hash_ids(row) not in hashes and not self._is_cut(row, allowed)]
        if strangers:
            raise RuntimeError(self._explain(strangers[0], len(strangers), len(rows)))

    def _is_cut(self, row: np.ndarray, allowed: np.ndarray) -> bool:
        """Whether a row is a selected sample that the collator has cut, or has added tokens to."""
        samples = (np.concatenate([self._pool.preamble, self._pool.sample(index)]) for index in allowed.tolist())
        return any(_contains(sample, row) or _contains(row, sample) for sample in samples)

    def _explain(self, row: np.ndarray, strangers: int, rows: int) -> str:
        (found,) = np.nonzero(self._hashes == np.uint64(hash_ids(row)))
        which = f"sample {found[0]} of the pool, which is not selected" if len(found) else "no sample of the pool"
        return (
            f"{strangers} of {rows} rows of a training batch are not what was selected; the first is {which}. The "
            "dataset, the dataloader or the collator gives other samples than the ones that were scored. Make all "
            "changes to the dataset first, then attach again; a collator must not change token ids. If your training "
            "step makes rows of its own, set `check_batches=False`."
        )


def _read_rows(inputs: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """The token ids of a few rows of a batch without padding; none where padding cannot be told."""
    ids, mask, positions = (inputs.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    if not isinstance(ids, torch.Tensor) or ids.ndim != 2:
        return
    if isinstance(mask, torch.Tensor) and mask.shape == ids.shape:
        for row, is_token in zip(ids[:ROWS_PER_LOOK].tolist(), mask[:ROWS_PER_LOOK].bool().tolist(), strict=True):
            yield np.asarray(row)[np.asarray(is_token)]
    elif isinstance(positions, torch.Tensor) and positions.shape == ids.shape and len(ids) == 1:
        # Rows without padding (TRL's `padding_free`): a sample begins where positions begin anew.
        starts = (positions[0] == 0).nonzero()[:, 0].tolist()
        samples = np.split(np.asarray(ids[0].tolist()), starts)[1:]
        yield from samples[:ROWS_PER_LOOK]
    elif mask is None and len(ids) == 1:
        yield np.asarray(ids[0].tolist())


def _contains(whole: np.ndarray, part: np.ndarray) -> bool:
    """Whether a sequence holds another one, of at least one token, without a gap."""
    if not 0 < len(part) <= len(whole):
        return False
    starts = np.flatnonzero(whole[: len(whole) - len(part) + 1] == part[0])
    return any(np.array_equal(whole[start : start + len(part)], part) for start in starts.tolist())
