"""
Samples whose token ids hold less than the columns of text beside them, as truncation to a longest length leaves them.

A cut changes no column, so that hashes of columns do not show it. Only a part that is missing at the end of the answers
or at the beginning of the question counts. Templates and tokenizers change texts in other ways: they drop thinking,
write calls of tools in their own form and replace letters. Such samples are not cut. The price is decoding all samples,
about 70 µs of CPU time each.
"""

from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from miwv_trainer.data.columns import ColumnNames
from miwv_trainer.data.content import DecodedSample, decode_samples, iterate_texts
from miwv_trainer.data.map_style import MapStyleDataset
from miwv_trainer.data.pool import Pool
from miwv_trainer.data.sample_texts import RowTexts, condense, read_texts
from miwv_trainer.data.turn_markers import TurnMarkers, find_all_tokens

# What a tokenizer shows for the half of a character that a cut has left.
HALF_CHARACTER = "\ufffd"


class _Left(NamedTuple):
    """
    What is left of a sample.

    Args:
        said: What its tokens say.
        has_user_header: Whether what opens a user's turn is still there.
        behind_prompt: Everything from the first response on.
    """

    said: DecodedSample
    has_user_header: bool
    behind_prompt: str


def find_cut_samples(
    dataset: MapStyleDataset,
    pool: Pool,
    tokenizer: PreTrainedTokenizerBase,
    markers: TurnMarkers,
    columns: ColumnNames | None = None,
) -> np.ndarray:
    """
    Ascending indices of the samples that are cut. Those without known columns of text are not among them.

    Args:
        dataset: The N rows that the pool was made of.
        columns: The dataset's own names of what is read.
    """
    decoded = decode_samples(pool, range(len(pool)), tokenizer, markers)
    told = (read_texts(row, columns) for row in iterate_texts(dataset, columns))
    header = np.asarray(markers.user_header)
    cut = []
    for index, (texts, sample) in enumerate(zip(told, decoded, strict=True)):
        if texts is None:
            continue
        has_header = len(header) > 0 and len(find_all_tokens(pool.prompt(index), header)) > 0
        behind = tokenizer.decode(pool.sample(index)[pool.prompt_tokens[index] :], skip_special_tokens=True)
        left = _Left(sample, has_header, behind)
        if _is_cut(texts, left) and _is_cut(_rewrite(texts, tokenizer), left):
            cut.append(index)
    return np.array(cut, dtype=np.int64)


def _is_cut(texts: RowTexts, sample: _Left) -> bool:
    if texts.whole is not None:
        whole, left = condense(texts.whole), condense(sample.said.whole)
        return _is_beginning(left, whole) or _is_end(left, whole)
    return _is_cut_at_end(texts, sample) or _is_cut_at_beginning(texts, sample)


def _is_cut_at_end(texts: RowTexts, sample: _Left) -> bool:
    answers, parts = [condense(each) for each in texts.answers], [condense(each) for each in sample.said.answers]
    # The loss may be on some of the answers only: where the last answer stands, nothing behind it was cut.
    if not answers or not parts or answers[-1] in condense(sample.behind_prompt):
        return False
    return _is_beginning("".join(parts), "".join(answers)) or _is_beginning(parts[-1], answers[-1])


def _is_cut_at_beginning(texts: RowTexts, sample: _Left) -> bool:
    question = condense(sample.said.question)
    # A row's own task is a question and an input, of which a script may have rendered one.
    if sample.has_user_header or question in map(condense, (*texts.questions, *texts.parts)):
        return False
    return any(_is_end(question, condense(whole)) for whole in texts.questions)


def _is_beginning(part: str, whole: str) -> bool:
    """Whether a part is left of a text whose end is missing. What is its end too may have lost its beginning."""
    part, whole = part.rstrip(HALF_CHARACTER), whole.rstrip(HALF_CHARACTER)
    return 0 < len(part) < len(whole) and whole.startswith(part) and not whole.endswith(part)


def _is_end(part: str, whole: str) -> bool:
    """Whether a part is left of a text whose beginning is missing."""
    part, whole = part.lstrip(HALF_CHARACTER), whole.lstrip(HALF_CHARACTER)
    return 0 < len(part) < len(whole) and whole.endswith(part) and not whole.startswith(part)


def _rewrite(texts: RowTexts, tokenizer: PreTrainedTokenizerBase) -> RowTexts:
    """The texts as the tokenizer gives them back: one that knows few characters drops others, at the end too."""

    def rewrite(text: str, keeps_special_tokens: bool = False) -> str:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokenizer.decode(ids, skip_special_tokens=not keeps_special_tokens)

    return RowTexts(
        questions=[rewrite(each) for each in texts.questions],
        answers=[rewrite(each) for each in texts.answers],
        parts=[rewrite(each) for each in texts.parts],
        whole=None if texts.whole is None else rewrite(texts.whole, keeps_special_tokens=True),
    )
