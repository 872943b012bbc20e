"""Whether the batches that arrive hold selected samples.

The dataset is compared before training begins, but a dataloader and a collator stand between it and the model, and both
may be the user's own. One batch is compared before anything is scored (`collator_check.py`). In training, a hook on the
model looks at the token ids of some batches: the first two of every epoch, and every hundredth. On a GPU a look waits
for the device once, which is why not every batch is looked at.

Labels are compared too, where the model is given them: a collator for language modelling replaces them by all token
ids, so that prompts are trained and a selection by the loss of responses means little. Two kinds of training are left
out: where the model gets no labels (a Trainer with label smoothing or a loss of its own takes them out of the batch),
and where the dataset's own labels cover prompts.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from miwv_trainer.data.pool import IGNORED_LABEL, Pool
from miwv_trainer.data.sample_hashes import hash_ids, hash_sample_ids

logger = logging.getLogger(__name__)

FIRST_LOOKS = 2
LOOK_EVERY = 100
ROWS_PER_LOOK = 4


class BatchRow(NamedTuple):
    """A row of a batch without padding: `(length,)` token ids, and labels if the model is given them."""

    ids: np.ndarray
    labels: np.ndarray | None


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
        self._has_warned = False

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
        rows = list(_read_rows(inputs))
        self._compare_rows(rows, np.unique(self._order(epoch)))
        self._warn_of_rows_without_response(rows)

    def compare(self, inputs: Mapping[str, Any], samples: np.ndarray) -> None:
        """
        Compares a batch with the samples of which it may be made.

        Raises:
            RuntimeError: a row is none of them, or has other labels than the dataset.
        """
        self._compare_rows(list(_read_rows(inputs)), samples)

    def _compare_rows(self, rows: list[BatchRow], allowed: np.ndarray) -> None:
        samples = [self._find_samples(row.ids, allowed) for row in rows]
        strangers = [row.ids for row, found in zip(rows, samples, strict=True) if not found]
        if strangers:
            raise RuntimeError(self._explain(strangers[0], len(strangers), len(rows)))
        if not self._pool.is_trained_whole:
            pairs = zip(rows, samples, strict=True)
            relabelled = [(row, found[0]) for row, found in pairs if not self._has_labels_of_any(row, found)]
            if relabelled:
                raise RuntimeError(self._explain_labels(*relabelled[0], len(relabelled), len(rows)))

    def _warn_of_rows_without_response(self, rows: list[BatchRow]) -> None:
        """A collator that cuts rows may leave none of a response: the loss is then 0, and nothing is learnt."""
        cut = sum(row.labels is not None and bool((row.labels == IGNORED_LABEL).all()) for row in rows)
        if cut and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%d of %d rows of a training batch hold no token of their response: nothing is learnt from them. "
                "The collator cuts rows: cut the dataset before `attach`, or let the collator keep more tokens.",
                cut, len(rows),
            )  # fmt: skip

    def _find_samples(self, ids: np.ndarray, allowed: np.ndarray) -> list[int]:
        """The selected samples with these token ids, or those that the collator has cut or added tokens to."""
        same = allowed[self._hashes[allowed] == np.uint64(hash_ids(ids))].tolist()
        return same or [index for index in allowed.tolist() if _find_offset(self._whole(index), ids) is not None]

    def _whole(self, index: int) -> np.ndarray:
        return np.concatenate([self._pool.preamble, self._pool.sample(index)])

    def _has_labels_of_any(self, row: BatchRow, samples: list[int]) -> bool:
        return row.labels is None or any(self._has_labels_of(row.ids, row.labels, sample) for sample in samples)

    def _has_labels_of(self, ids: np.ndarray, labels: np.ndarray, sample: int) -> bool:
        is_response = np.concatenate([np.zeros(len(self._pool.preamble), dtype=bool), self._pool.response_mask(sample)])
        expected = np.where(is_response, self._whole(sample), IGNORED_LABEL)
        offset = _find_offset(self._whole(sample), ids)
        assert offset is not None
        # Nothing predicts the first token of a row, and TRL's rows without padding take its label away.
        here = slice(max(-offset, 0) + 1, None)
        there = slice(max(offset, 0) + 1, None)
        pairs = zip(labels[here].tolist(), expected[there].tolist(), strict=False)
        return all(label == other for label, other in pairs)

    def _explain(self, row: np.ndarray, strangers: int, rows: int) -> str:
        (found,) = np.nonzero(self._hashes == np.uint64(hash_ids(row)))
        which = f"sample {found[0]} of the pool, which is not selected" if len(found) else "no sample of the pool"
        return (
            f"{strangers} of {rows} rows of a training batch are not what was selected; the first is {which}. The "
            "dataset, the dataloader or the collator gives other samples than the ones that were scored. Make all "
            "changes to the dataset first, then attach again; a collator must not change token ids. If your training "
            "step makes rows of its own, set `check_batches=False`."
        )

    def _explain_labels(self, row: BatchRow, sample: int, relabelled: int, rows: int) -> str:
        trained = 0 if row.labels is None else int((row.labels != IGNORED_LABEL).sum())
        return (
            f"{relabelled} of {rows} rows of a training batch have other labels than the dataset; the first is sample "
            f"{sample}, of which {trained} tokens are trained and {self._pool.response_tokens[sample]} were scored as "
            "its response. The collator makes labels of its own. Take one that keeps the dataset's, such as "
            "`DataCollatorForSeq2Seq`, or put these labels into the dataset and attach again. If the labels are meant "
            "to differ, set `check_batches=False`."
        )


def _read_rows(inputs: Mapping[str, Any]) -> Iterator[BatchRow]:
    """A few rows of a batch without padding; none where padding cannot be told."""
    ids, mask, positions = (inputs.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    if not isinstance(ids, torch.Tensor) or ids.ndim != 2:
        return
    labels = inputs.get("labels")
    given = labels if isinstance(labels, torch.Tensor) and labels.shape == ids.shape else None
    few, few_labels = _to_array(ids), None if given is None else _to_array(given)
    if isinstance(mask, torch.Tensor) and mask.shape == ids.shape:
        places = [(number, np.flatnonzero(row)) for number, row in enumerate(_to_array(mask))]
    elif isinstance(positions, torch.Tensor) and positions.shape == ids.shape and len(ids) == 1:
        # Rows without padding (TRL's `padding_free`): a sample begins where positions begin anew.
        starts = np.flatnonzero(_to_array(positions)[0] == 0)
        places = [(0, tokens) for tokens in np.split(np.arange(ids.shape[1]), starts)[1:][:ROWS_PER_LOOK]]
    elif mask is None and len(ids) == 1:
        places = [(0, np.arange(ids.shape[1]))]
    else:
        return
    for number, tokens in places:
        yield BatchRow(few[number][tokens], None if few_labels is None else few_labels[number][tokens])


def _to_array(rows: torch.Tensor) -> np.ndarray:
    # `tolist`, because a tensor subclass of a compiled or sharded forward need not convert to NumPy.
    return np.asarray(rows[:ROWS_PER_LOOK].tolist())


def _find_offset(sample: np.ndarray, row: np.ndarray) -> int | None:
    """
    At which token of a sample a row begins, if one of the two holds the other without a gap; less than 0 if tokens
    stand before the sample.
    """
    if (inside := _find_part(sample, row)) is not None:
        return inside
    outside = _find_part(row, sample)
    return None if outside is None else -outside


def _find_part(whole: np.ndarray, part: np.ndarray) -> int | None:
    """Where a sequence of at least one token begins in another one; None if it does not."""
    if not 0 < len(part) <= len(whole):
        return None
    starts = np.flatnonzero(whole[: len(whole) - len(part) + 1] == part[0]).tolist()
    return next((start for start in starts if np.array_equal(whole[start : start + len(part)], part)), None)
