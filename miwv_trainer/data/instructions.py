"""The instructions of a tokenised dataset as text, for embedders that read text."""

from collections.abc import Callable

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from miwv_trainer.data.columns import list_text_columns, read_instruction
from miwv_trainer.data.map_style import MapStyleDataset, has_own_columns, iterate_rows
from miwv_trainer.data.pool import Pool
from miwv_trainer.data.turn_markers import TurnMarkers, find_all_tokens, make_blank_test, strip_blank_end


def read_instructions(
    dataset: MapStyleDataset, pool: Pool, tokenizer: PreTrainedTokenizerBase | None, markers: TurnMarkers
) -> list[str] | None:
    """
    The N instructions: from raw columns that the dataset has kept, else from decoded prompts.

    Returns None without such columns and without a tokenizer.
    """
    first = dataset[0]
    if read_instruction(first) is not None:
        rows = dataset
        if isinstance(dataset, datasets.Dataset) and has_own_columns(dataset):
            # The columns of token ids are not decoded: they are most of the dataset.
            rows = dataset.select_columns([name for name in list_text_columns() if name in first])
        return [read_instruction(row) or "" for row in iterate_rows(rows)]
    if tokenizer is None:
        return None
    is_blank = make_blank_test(tokenizer)
    prompts = [cut_users_words(pool.prompt(index), markers, is_blank) for index in range(len(pool))]
    return [text.strip() for text in tokenizer.batch_decode(prompts, skip_special_tokens=True)]


def cut_users_words(
    prompt: np.ndarray, markers: TurnMarkers, is_blank: Callable[[int], bool], of_last_turn: bool = False
) -> np.ndarray:
    """
    The tokens between the user's header and the generation prompt, which are those of the raw column.

    Args:
        of_last_turn: Whether the words begin with the user's last turn instead of the first.
    """
    header, generation_prompt = np.asarray(markers.user_header), markers.generation_prompt
    if len(header) and len(starts := find_all_tokens(prompt, header)):
        prompt = prompt[starts[-1 if of_last_turn else 0] + len(header) :]
    trimmed = strip_blank_end(prompt, is_blank)
    ends_in_it = generation_prompt and tuple(trimmed[-len(generation_prompt) :]) == generation_prompt
    return trimmed[: -len(generation_prompt)] if ends_in_it else prompt
