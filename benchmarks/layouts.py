"""The ways to score a pool that are compared: baselines written here, and the library's two layouts.

`row` is what the public MIWV scorer does (OpenDataArena's `MIWVScorer`, batch size 8): eight texts at a time in pool
order are padded to the longest of them, and each is forwarded alone, padding included; its loss comes from the model's
own `labels`, so with logits for every position, in float32. `row_unpadded` is the same without the padding.
`padded_full` batches rows of like length, still with all logits. `padded` and `tree` are the library's. `ceiling` is no
scorer: what forwards of as many tokens as the trees' take at least, in plain causal rows that are short enough for
attention to cost little.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from benchmarks.cases import Case
from miwv_trainer.data.pool import IGNORED_LABEL
from miwv_trainer.scoring.layout import score_pool
from miwv_trainer.scoring.losses import Losses
from miwv_trainer.scoring.memory import BatchSize, size_batches
from miwv_trainer.scoring.rows import PaddedBatch, Row, batch_rows, one_shot_row, plan_padded, zero_shot_row
from miwv_trainer.scoring.trees import Tree, plan_trees

CEILING_ROW = 512
FULL_LOGITS_TOKENS = 4096
PUBLIC_BATCH = 8
LAYOUTS = ("row", "row_unpadded", "padded_full", "padded", "tree", "ceiling")


@dataclass(frozen=True)
class Work:
    """What a layout forwards: tokens (padding included), positions whose logits are made, pairs of attention."""

    tokens: int
    positions: int
    pairs: int

    def flops(self, model: PreTrainedModel) -> float:
        """
        Floating-point operations of the forwards of a dense model: 2 for each token and weight outside the
        embeddings, 2 for each position and weight of the head, and 4 (scores, weighted sum) for each pair and unit of
        attention's width in each layer. Pairs that a mask hides are not counted.
        """
        config = model.config.get_text_config()
        inputs, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        tables = inputs.numel() + (head.numel() if head is not inputs else 0)
        weights = sum(parameter.numel() for parameter in model.parameters()) - tables
        head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        width = config.num_hidden_layers * config.num_attention_heads * head_width
        return 2.0 * self.tokens * weights + 2.0 * self.positions * head.numel() + 4.0 * self.pairs * width


def prepare(layout: str, case: Case) -> Callable[[], Losses | None]:
    """What is timed: one layout over the whole pool, planning included. The ceiling has no plan and no losses."""
    if layout in ("row", "row_unpadded"):
        return partial(row_by_row, case, is_padded=layout == "row")
    if layout == "padded_full":
        return partial(padded_with_full_logits, case)
    if layout == "ceiling":
        trees = tree_work(case)
        return partial(plain_rows, case, trees.tokens, trees.positions)
    return partial(score_pool, case.scorer, case.exemplars, layout)


def work(layout: str, case: Case) -> Work:
    """What a layout forwards, from the same plans."""
    if layout in ("row", "row_unpadded"):
        lengths = np.asarray([length for *_, length in both_rows(case, is_padded=layout == "row")])
        return Work(int(lengths.sum()), int(lengths.sum()), causal_pairs(lengths))
    if layout == "tree":
        return tree_work(case)
    if layout == "ceiling":
        trees = tree_work(case)
        rows = np.full(-(-trees.tokens // CEILING_ROW), CEILING_ROW)
        return Work(trees.tokens, trees.positions, causal_pairs(rows))
    batches = planned_batches(case, full_logits=layout == "padded_full")
    tokens = sum(batch.tokens for batch in batches)
    pairs = causal_pairs(np.concatenate([np.full(len(batch.samples), batch.padded_length) for batch in batches]))
    if layout == "padded_full":
        return Work(tokens, tokens, pairs)
    return Work(tokens, scored_positions(case), pairs)


def row_by_row(case: Case, is_padded: bool) -> Losses:
    """Each sample without and behind its exemplar, one row a forward, the loss from the model's own `labels`."""
    losses, tokens = np.full((2, len(case.pool)), np.nan, dtype=np.float32), 0
    for kind, sample, row, length in both_rows(case, is_padded):
        ids, mask, labels = _labelled([row], length, case)
        output = case.model(input_ids=ids, attention_mask=mask, labels=labels)
        losses[kind, sample] = output.loss.item()
        tokens += ids.numel()
    return Losses(losses[0], losses[1], tokens)


def both_rows(case: Case, is_padded: bool) -> list[tuple[int, int, Row, int]]:
    """`(kind, sample, row, padded length)` of every scored sample, eight samples without, then behind an exemplar."""
    rows: list[tuple[int, int, Row, int]] = []
    for start in range(0, len(case.scored), PUBLIC_BATCH):
        samples = case.scored[start : start + PUBLIC_BATCH].tolist()
        alone = [zero_shot_row(case.pool, i) for i in samples]
        behind = [one_shot_row(case.pool, i, int(case.exemplars[i]), case.context) for i in samples]
        for kind, batch in enumerate((alone, behind)):
            longest = max(len(row.ids) for row in batch)
            rows += [
                (kind, i, row, longest if is_padded else len(row.ids)) for i, row in zip(samples, batch, strict=True)
            ]
    return rows


def padded_with_full_logits(case: Case) -> Losses:
    """Length-sorted batches, logits at every position, cross-entropy over all of them, mean over each response."""
    losses, tokens = np.full((2, len(case.pool)), np.nan, dtype=np.float32), 0
    for batch in planned_batches(case, full_logits=True):
        rows = batch_rows(batch, case.pool, case.exemplars, case.context)
        ids, mask, labels = _labelled(rows, batch.padded_length, case)
        logits = case.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        answers = labels[:, 1:]
        nll = F.cross_entropy(
            logits.flatten(0, 1), answers.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
        ).view_as(answers)
        means = nll.sum(dim=1) / (answers != IGNORED_LABEL).sum(dim=1)
        losses[batch.kinds, batch.samples] = means.cpu().numpy()
        tokens += ids.numel()
    return Losses(losses[0], losses[1], tokens)


def plain_rows(case: Case, tokens: int, positions: int) -> None:
    """
    Forwards so many random tokens in plain causal rows, as many at once as trees are, the head on so many positions in
    all, and nothing else.
    """
    rows_at_once = max(find_batch_size(case).tokens_per_batch // CEILING_ROW, 1)
    vocabulary = case.model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (rows_at_once, CEILING_ROW), device=case.world.device)
    done = kept = 0
    while done < tokens:
        left = tokens - done
        batch = ids[: max(left // CEILING_ROW, 1), : min(left, CEILING_ROW)]
        done += batch.numel()
        of_each_row = (positions * done // tokens - kept) // len(batch)
        kept += of_each_row * len(batch)
        case.model(input_ids=batch, use_cache=False, logits_to_keep=torch.arange(of_each_row, device=ids.device))


def find_batch_size(case: Case) -> BatchSize:
    """The tokens of a row and of a forward that the library takes."""
    return size_batches(case.model, case.config, case.scorer.memory)


def planned_trees(case: Case) -> list[list[Tree]]:
    """The rows that the library forwards in the tree layout."""
    return plan_trees(case.pool, case.exemplars, case.context, find_batch_size(case).tokens_per_row)


def planned_batches(case: Case, full_logits: bool = False) -> list[PaddedBatch]:
    """The batches that the library forwards in the padded layout; full logits leave room for no more than 4,096."""
    most = min(find_batch_size(case).tokens_per_batch, FULL_LOGITS_TOKENS if full_logits else 2**31)
    return plan_padded(case.pool, case.exemplars, case.context, most)


def tree_work(case: Case) -> Work:
    """What the tree layout forwards: a trunk's tokens see their trunk, a branch's the trunk and their branch."""
    tokens = pairs = 0
    for tree in (tree for row in planned_trees(case) for tree in row):
        branches = case.pool.lengths[list(tree.branches)]
        trunk = tree.tokens(case.pool) - int(branches.sum())
        tokens += tree.tokens(case.pool)
        pairs += causal_pairs(np.append(branches, trunk)) + trunk * int(branches.sum())
    return Work(tokens, scored_positions(case), pairs)


def scored_positions(case: Case) -> int:
    """Response tokens of both losses."""
    return 2 * int(case.pool.response_tokens[case.scored].sum())


def causal_pairs(lengths: np.ndarray) -> int:
    """Pairs of a token and one that it sees, itself included, over rows of these lengths."""
    return int((lengths * (lengths + 1) // 2).sum())


def _labelled(rows: list[Row], length: int, case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`(rows, length)` ids, mask and labels, padded on the right; labels where a response token is scored."""
    ids = torch.zeros((len(rows), length), dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED_LABEL)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.from_numpy(row.ids.astype(np.int64))
        mask[number, : len(row.ids)] = 1
        labels[number, row.targets] = ids[number, row.targets]
    device = case.world.device
    return ids.to(device), mask.to(device), labels.to(device)
