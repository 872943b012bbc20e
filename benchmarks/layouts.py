"""The ways to score a pool that are compared: baselines written here, and the library's two layouts.

`row` is what the public MIWV scorer does (OpenDataArena's `MIWVScorer`, batch size 8). It pads eight texts at a time,
in pool order, to the longest of them, and forwards each alone with its padding. Its loss comes from the model's own
`labels`, so logits are computed for every position, in float32. `row_unpadded` is the same without the padding.
`padded_full` batches rows of similar length, still with all logits. `padded` and `tree` are the library's layouts.
`ceiling` computes no losses: it measures the least time in which as many tokens as the trees have can be forwarded, in
plain causal rows that are short enough for attention to cost little. `segments`, `blocks`, `mask` and `varlen` are the
trees with each way to attend in them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from benchmarks.cases import Case
from miwv_trainer.choices import AttentionChoice
from miwv_trainer.data.pool import IGNORED_LABEL
from miwv_trainer.distributed.wrappers import get_attention_implementation
from miwv_trainer.scoring.layout import score_pool
from miwv_trainer.scoring.losses import Losses
from miwv_trainer.scoring.memory import BatchSize, size_batches
from miwv_trainer.scoring.rows import PaddedBatch, Row, make_one_shot_row, make_rows, make_zero_shot_row, plan_padded
from miwv_trainer.scoring.trees import Tree, plan_trees

CEILING_ROW = 512
FULL_LOGITS_TOKENS = 4096
PUBLIC_BATCH = 8
LAYOUTS = ("row", "row_unpadded", "padded_full", "padded", "tree", "ceiling")
# Ways to attend in trees, by the model's attention implementation that each of them needs.
ATTENTIONS: dict[AttentionChoice, str] = {
    "segments": "sdpa",
    "blocks": "flex_attention",
    "mask": "sdpa",
    "varlen": "sdpa",
}


@dataclass(frozen=True)
class Work:
    """
    What a layout forwards.

    Args:
        tokens: Number of tokens, padding included.
        positions: Number of positions whose logits are computed.
        pairs: Number of pairs of a token and a token that it attends to.
    """

    tokens: int
    positions: int
    pairs: int

    def flops(self, model: PreTrainedModel) -> float:
        """
        Floating-point operations of the forwards of a dense model.

        They are 2 for each token and weight outside the embeddings, 2 for each position and weight of the head, and 4
        (scores and weighted sum) for each pair and unit of attention's width in each layer. Pairs that a mask hides are
        not counted.
        """
        config = model.config.get_text_config()
        inputs, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        tables = inputs.numel() + (head.numel() if head is not inputs else 0)
        weights = sum(parameter.numel() for parameter in model.parameters()) - tables
        head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        width = config.num_hidden_layers * config.num_attention_heads * head_width
        return 2.0 * self.tokens * weights + 2.0 * self.positions * head.numel() + 4.0 * self.pairs * width


@contextmanager
def use_attention(layout: str, case: Case) -> Iterator[tuple[str, Case]]:
    """
    The layout and the case to measure, inside. Of a way to attend these are the trees of a case that asks for it, and
    the model has the implementation that it needs.
    """
    asked = next((attention for attention in ATTENTIONS if attention == layout), None)
    if asked is None:
        yield layout, case
        return
    before = get_attention_implementation(case.model) or "sdpa"
    case.model.set_attn_implementation(ATTENTIONS[asked])
    try:
        yield "tree", replace(case, config=replace(case.config, attention=asked))
    finally:
        case.model.set_attn_implementation(before)


def prepare(layout: str, case: Case) -> Callable[[], Losses | None]:
    """A function that runs one layout over the whole pool, planning included; it returns None for the ceiling."""
    if layout in ("row", "row_unpadded"):
        return partial(score_row_by_row, case, is_padded=layout == "row")
    if layout == "padded_full":
        return partial(score_with_full_logits, case)
    if layout == "ceiling":
        trees = count_tree_work(case)
        return partial(forward_plain_rows, case, trees.tokens, trees.positions)
    return partial(score_pool, case.scorer, case.exemplars, layout)


def count_work(layout: str, case: Case) -> Work:
    """What a layout forwards, counted on the plans that it runs."""
    if layout in ("row", "row_unpadded"):
        lengths = np.asarray([length for *_, length in list_rows(case, is_padded=layout == "row")])
        return Work(int(lengths.sum()), int(lengths.sum()), count_causal_pairs(lengths))
    if layout == "tree":
        return count_tree_work(case)
    if layout == "ceiling":
        trees = count_tree_work(case)
        rows = np.full(-(-trees.tokens // CEILING_ROW), CEILING_ROW)
        return Work(trees.tokens, trees.positions, count_causal_pairs(rows))
    batches = plan_case_batches(case, full_logits=layout == "padded_full")
    tokens = sum(batch.tokens for batch in batches)
    pairs = count_causal_pairs(np.concatenate([np.full(len(batch.samples), batch.padded_length) for batch in batches]))
    if layout == "padded_full":
        return Work(tokens, tokens, pairs)
    return Work(tokens, count_positions(case), pairs)


def score_row_by_row(case: Case, is_padded: bool) -> Losses:
    """Each sample without and with its exemplar, one row per forward, with the loss from the model's own `labels`."""
    losses, tokens = np.full((2, len(case.pool)), np.nan, dtype=np.float32), 0
    for kind, sample, row, length in list_rows(case, is_padded):
        ids, mask, labels = _label_rows([row], length, case)
        output = case.model(input_ids=ids, attention_mask=mask, labels=labels)
        losses[kind, sample] = output.loss.item()
        tokens += ids.numel()
    return Losses(losses[0], losses[1], tokens)


def list_rows(case: Case, is_padded: bool) -> list[tuple[int, int, Row, int]]:
    """`(kind, sample, row, padded length)` of every scored sample: eight samples alone, then with exemplars."""
    rows: list[tuple[int, int, Row, int]] = []
    for start in range(0, len(case.scored), PUBLIC_BATCH):
        samples = case.scored[start : start + PUBLIC_BATCH].tolist()
        zero_shot = [make_zero_shot_row(case.pool, i) for i in samples]
        one_shot = [make_one_shot_row(case.pool, i, int(case.exemplars[i]), case.context) for i in samples]
        for kind, batch in enumerate((zero_shot, one_shot)):
            longest = max(len(row.ids) for row in batch)
            rows += [
                (kind, i, row, longest if is_padded else len(row.ids)) for i, row in zip(samples, batch, strict=True)
            ]
    return rows


def score_with_full_logits(case: Case) -> Losses:
    """Batches of rows of similar length, logits at every position, and the mean cross-entropy of each response."""
    losses, tokens = np.full((2, len(case.pool)), np.nan, dtype=np.float32), 0
    for batch in plan_case_batches(case, full_logits=True):
        rows = make_rows(batch, case.pool, case.exemplars, case.context)
        ids, mask, labels = _label_rows(rows, batch.padded_length, case)
        logits = case.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        answers = labels[:, 1:]
        nll = F.cross_entropy(
            logits.flatten(0, 1), answers.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
        ).view_as(answers)
        means = nll.sum(dim=1) / (answers != IGNORED_LABEL).sum(dim=1)
        losses[batch.kinds, batch.samples] = means.cpu().numpy()
        tokens += ids.numel()
    return Losses(losses[0], losses[1], tokens)


def forward_plain_rows(case: Case, tokens: int, positions: int) -> None:
    """
    Forwards random tokens in plain causal rows, with as many tokens in a forward as the trees have.

    Args:
        case: Model and limits.
        tokens: How many tokens in all.
        positions: On how many of them, in all, the head computes logits.
    """
    rows_at_once = max(find_batch_size(case).tokens_per_batch // CEILING_ROW, 1)
    vocabulary = case.model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (rows_at_once, CEILING_ROW), device=case.world.device)
    tokens_done = positions_done = 0
    while tokens_done < tokens:
        left = tokens - tokens_done
        batch = ids[: max(left // CEILING_ROW, 1), : min(left, CEILING_ROW)]
        tokens_done += batch.numel()
        positions_per_row = (positions * tokens_done // tokens - positions_done) // len(batch)
        positions_done += positions_per_row * len(batch)
        kept = torch.arange(positions_per_row, device=ids.device)
        case.model(input_ids=batch, use_cache=False, logits_to_keep=kept)


def find_batch_size(case: Case) -> BatchSize:
    """How many tokens the library puts into a row and into a forward."""
    return size_batches(case.model, case.config, case.scorer.memory)


def plan_case_trees(case: Case) -> list[list[Tree]]:
    """The rows that the library forwards in the tree layout."""
    return plan_trees(case.pool, case.exemplars, case.context, find_batch_size(case).tokens_per_row)


def plan_case_batches(case: Case, full_logits: bool = False) -> list[PaddedBatch]:
    """The batches that the library forwards in the padded layout; smaller ones where every position has logits."""
    # Logits of 4,096 tokens over the 49,152 words of SmolLM2 take 0.8 GB in float32.
    most = min(find_batch_size(case).tokens_per_batch, FULL_LOGITS_TOKENS if full_logits else 2**31)
    return plan_padded(case.pool, case.exemplars, case.context, most)


def count_tree_work(case: Case) -> Work:
    """What the tree layout forwards: a trunk's tokens attend to their trunk, a branch's to the trunk and the branch."""
    tokens = pairs = 0
    for tree in (tree for row in plan_case_trees(case) for tree in row):
        branches = case.pool.lengths[list(tree.branches)]
        trunk = tree.count_tokens(case.pool) - int(branches.sum())
        tokens += tree.count_tokens(case.pool)
        pairs += count_causal_pairs(np.append(branches, trunk)) + trunk * int(branches.sum())
    return Work(tokens, count_positions(case), pairs)


def count_positions(case: Case) -> int:
    """Number of response tokens, counted once for each of the two losses."""
    return 2 * int(case.pool.response_tokens[case.scored].sum())


def count_causal_pairs(lengths: np.ndarray) -> int:
    """Pairs of a token and a token that it attends to, itself included, over causal rows of these lengths."""
    return int((lengths * (lengths + 1) // 2).sum())


def _label_rows(rows: list[Row], length: int, case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`(rows, length)` ids, mask and labels, padded on the right; labels stand at scored tokens."""
    ids = torch.zeros((len(rows), length), dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED_LABEL)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.from_numpy(row.ids.astype(np.int64))
        mask[number, : len(row.ids)] = 1
        labels[number, row.targets] = ids[number, row.targets]
    device = case.world.device
    return ids.to(device), mask.to(device), labels.to(device)
